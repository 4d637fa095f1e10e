"""The folder in which a server keeps its mixes: `mixes.json`, what they are made of, and `adapters/DIGEST`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import check_place, write_whole
from rlhf_lines.errors import about
from rlhf_lines.lock import only_writer
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters


RECORD = "mixes.json"
ADAPTERS = "adapters"
_DIGEST = re.compile(r"[0-9a-f]{12}")


class MixFolder:
    """Mixes as PEFT folders, each under the digest of its spec.

    Args:
        folder: one that `opened` yields.
        adapters: of the policies, which write below it.
    """

    def __init__(self, folder: Path, adapters: SpecAdapters) -> None:
        self._folder, self._adapters = folder / ADAPTERS, adapters

    def digests(self) -> list[str]:
        """Of the mixes that are there, the one that was asked for longest ago first."""
        found = [path for path in self._folder.glob("*") if _DIGEST.fullmatch(path.name)]
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def path(self, spec: MergeSpec) -> Path:
        """The folder of a mix, written if it is not there yet."""
        path = self._adapters.path(spec).resolve()
        os.utime(path)
        return path

    def remove(self, digest: str) -> None:
        """Remove a mix, if it is there; one whose removal is killed is no mix any more."""
        hidden = self._folder / f".{digest}.leaving"
        with contextlib.suppress(FileNotFoundError):
            (self._folder / digest).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def check_free(folder: str | Path) -> None:
    """Stop where mixes cannot be kept in a folder.

    Raises:
        ValueError: it cannot be made or written, or holds something else.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ValueError(
            f"cache_dir {folder} holds something else than the mixes of rlhf-lines serve (it has no {RECORD}): choose "
            "another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache_dir {folder} is not a folder: choose another one")
    check_place(folder if not folder.exists() else folder / RECORD)


@contextlib.contextmanager
def opened(folder: str | Path, made_of: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder of mixes, made if need be, that no other server has; those of something else are removed.

    Args:
        folder: the place.
        made_of: what the mixes depend on beside their specs, plain JSON values.

    Raises:
        FileExistsError: another server keeps its mixes there.
        ValueError: `check_free`.
    """
    folder = Path(folder)
    check_free(folder)
    with only_writer(folder):
        record, kept = folder / RECORD, folder / ADAPTERS
        with about(f"{record} cannot be read"):
            before = json.loads(record.read_text()) if record.is_file() else None
        if before != made_of:
            shutil.rmtree(kept, ignore_errors=True)
        for left in kept.glob(".*"):  # by a server that was killed
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        kept.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps(made_of, indent=2) + "\n")
        yield folder
