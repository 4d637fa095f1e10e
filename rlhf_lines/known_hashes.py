"""SHA-256 of large files that were computed before, in the user's cache folder: unchanged files are not read again.

One small file holds one hash, with what the system said of the hashed files then. Writers replace such a file whole, so
that any number of processes may share the folder, and one that is missing or damaged only costs the reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


FOLDER = "RLHF_LINES_CACHE"  # the environment variable that moves the cache
MOST = 1000  # hashes that are kept, those written last


class FileState(NamedTuple):
    """A file as the system sees it: whoever writes to it, replaces it or moves it changes this."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of a file now, links followed."""
        stat = path.stat()
        return cls(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def recall(files: Sequence[FileState]) -> str | None:
    """The SHA-256 over these files one after the other, where it was kept and they are what they were then."""
    try:
        kept = json.loads(_place(files).read_text())
        sha256, before = kept["sha256"], kept["files"]
    except (OSError, RuntimeError, ValueError, TypeError, LookupError):
        return None
    same = before == [list(file) for file in files]
    return sha256 if same and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None


def remember(files: Sequence[FileState], sha256: str) -> None:
    """Keep a hash where that is possible; the oldest of too many are dropped."""
    with contextlib.suppress(OSError, RuntimeError):  # a folder that cannot be written, a user without a home
        place = _place(files)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it says which files the user has
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            json.dump({"files": files, "sha256": sha256}, file)
        Path(file.name).replace(place)
        _drop_oldest(place.parent)


def _place(files: Sequence[FileState]) -> Path:
    """Where a hash of these files is kept, whatever they hold: what was kept of them before is replaced."""
    cache = os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rlhf_lines")
    name = hashlib.sha256("\0".join(file.path for file in files).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(cache, "sha256", f"{name}.json")


def _drop_oldest(folder: Path) -> None:
    kept = list(folder.iterdir())
    if len(kept) > MOST:
        for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)[:-MOST]:
            path.unlink(missing_ok=True)
