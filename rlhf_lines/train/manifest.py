"""What a checkpoint holds, file by file: one that has lost something since it was written is known by it.

A trainer goes on in silence without optimizer, schedule or random state, and the result is another model.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_lines.artifact import MANIFEST
from rlhf_lines.merge.inputs.checkpoint import sha256_of


def write_manifest(folder: Path) -> None:
    """Write down name, size and SHA-256 of every file in a checkpoint that is complete."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): [path.stat().st_size, sha256_of([path])] for path in paths}
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
        if sha256_of([path]) != sha256:
            return f"holds another {name} than was written"
    return None
