"""Run a command and write what it took: time, processor time and peak memory, its child processes included (Linux).

    python measure.py result.json command ...

A script of its own without imports beyond the standard library, because the kernel counts the memory of the process
that starts a command towards the command's peak.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path


INTERVAL = 0.02  # seconds between two looks at the memory


def main() -> None:
    result, *command = sys.argv[1:]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    watch = Watch(process.pid)
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    watch.stop()
    measured = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        # The kernel's peak is exact but of the largest process alone, the watched one is a sum that may miss a moment.
        "peak_bytes": max(usage.ru_maxrss * 1024, watch.resident),
        "peak_bytes_without_files": watch.anonymous,
    }
    Path(result).write_text(json.dumps(measured))
    sys.exit(os.waitstatus_to_exitcode(status))


class Watch(threading.Thread):
    """Looks at the memory of a process and all its descendants until it is stopped.

    `resident` is the largest sum of their resident sets; pages that two processes share count twice. `anonymous` is
    that without pages of files, which the kernel can drop.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stopped = pid, threading.Event()
        self.resident = self.anonymous = 0

    def run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            states = [_memory(pid) for pid in _tree(self._pid)]
            self.resident = max(self.resident, sum(state.get("VmRSS", 0) for state in states))
            without_files = sum(state.get("RssAnon", 0) + state.get("RssShmem", 0) for state in states)
            self.anonymous = max(self.anonymous, without_files)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is read
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process or thread that has just ended
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _memory(pid: int) -> dict[str, int]:
    """The memory fields of /proc/pid/status in bytes; empty for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


if __name__ == "__main__":
    main()
