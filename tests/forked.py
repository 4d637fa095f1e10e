"""Processes that run a script, forked from one that has imported what training needs: that takes most of a tiny run.

Each is as fresh as one that a shell or torchrun starts: nothing of the process of the tests is in it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["rlhf_lines.cli", "rlhf_lines.stages", "rlhf_lines.train.ppo", "peft", "datasets"])


def run(count: int, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[int], str]:
    """Run `python ARGUMENT...` in one process, or in several that torchrun would make; return statuses and output.

    `PYTHONPATH` of the environment comes first among the places of modules.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.NamedTemporaryFile("r") as log:
        processes = []
        for rank in map(str, range(count)):
            of_launcher = {**here, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
            own = {**environment, **of_launcher}
            processes.append(FORKS.Process(target=_become, args=(list(arguments), own, log.name)))
            processes[-1].start()
        for process in processes:
            process.join(timeout=300)
            process.kill()  # if it has not ended
            process.join()
        return [process.exitcode for process in processes], log.read()


def _become(arguments: list[str], environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with Path(log).open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = arguments
    runpy.run_path(sys.argv[0], run_name="__main__")
