"""A script in several processes, as torchrun starts them on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def torchrun(
    words: Sequence[object],
    environment: Mapping[str, str] | None = None,
    *,
    processes: int = 2,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess:
    """Run a script with its arguments to its end; without an environment, in one that finds these sources."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment or finding(),
        cwd=cwd,
        timeout=300,
    )


def finding(*folders: object) -> dict[str, str]:
    """The variables of a process of one thread that imports from these folders, and from where this one does."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join([*map(str, folders), str(root), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
