"""Stages as processes of their own, whose output goes into files."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import yaml
from stages import Stage


LAST_LINES = 15
SHARED = ("sweep", "learn")  # verbs whose processes share the batches


def run(stage: Stage, folder: Path, *, threads: int, processes: int = 1) -> None:
    """Write the config of a stage and run it in processes of its own, whose output goes into a file.

    Raises:
        SystemExit: it failed; its last lines have been shown.
    """
    path, log = folder / "configs" / f"{stage.name}.yaml", folder / "logs" / f"{stage.name}.txt"
    for file in (path, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(stage.config, sort_keys=False))
    print(f"study: {path}: its output is in {log}", flush=True)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launched = several if processes > 1 else []
    start = time.monotonic()
    with log.open("a") as output:
        status = subprocess.run(
            [sys.executable, *launched, "-m", "rlhf_lines", stage.verb, "--config", str(path), "--resume", "true"],
            env={"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        print(*log.read_text().splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
        sys.exit(f"study: {path} ended with exit status {status}; the whole output is in {log}")
    print(f"study: {path}: {time.monotonic() - start:.0f} s", flush=True)


def run_unless(failed: threading.Event, stage: Stage, folder: Path) -> None:
    """Run a stage in one thread, unless one beside it has failed before it began."""
    if failed.is_set():
        return
    try:
        run(stage, folder, threads=1)
    except SystemExit:
        failed.set()
        raise


def run_all(todo: Iterator[Stage], folder: Path, jobs: int) -> None:
    """Run stages in their order, those of PPO several at a time. What runs beside one that fails is run to its end.

    On a CPU two processes of one thread are faster than one of two; sweeps and `learn` share their batches among them.
    """
    for verb, some in itertools.groupby(todo, key=lambda stage: stage.verb):
        if verb == "ppo" and jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                failed = threading.Event()
                running = [pool.submit(run_unless, failed, stage, folder) for stage in some]
                for one in as_completed(running):
                    one.result()
        else:
            for stage in some:
                processes = jobs if verb in SHARED else 1
                run(stage, folder, threads=max(1, os.cpu_count() // processes), processes=processes)
