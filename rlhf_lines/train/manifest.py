"""What a checkpoint holds, file by file: one that has lost something since it was written is known by it.

A trainer goes on in silence without optimizer, schedule or random state, and the result is another model.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf_lines.artifact import MANIFEST
from rlhf_lines.sha256 import contents_sha256


def write_manifest(folder: Path) -> None:
    """Write down name, size and SHA-256 of every file in a checkpoint that is complete."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # training waits
        hashes = pool.map(lambda path: contents_sha256([path]), paths)
        files = {
            str(path.relative_to(folder)): [path.stat().st_size, sha256]
            for path, sha256 in zip(paths, hashes, strict=True)
        }
    (folder / MANIFEST).write_text(json.dumps(files, indent=1) + "\n")


def what_is_missing(folder: Path) -> str | None:
    """In what a checkpoint is not what it was when it was written, as the end of a sentence; None for a whole one."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
        held = {folder / name: (size, sha256) for name, (size, sha256) in files.items()}
    except FileNotFoundError:
        return f"has no {MANIFEST}, which is written last, and removed when a run is finished"
    except (ValueError, TypeError, AttributeError):
        return f"has a damaged {MANIFEST}"
    for path, (size, sha256) in held.items():
        name = path.relative_to(folder)
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size:,} bytes of {name}, written were {size:,}"
        if contents_sha256([path]) != sha256:
            return f"holds another {name} than was written"
    return None
