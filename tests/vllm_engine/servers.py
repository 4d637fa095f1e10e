"""A server of the tests: started as a user starts it, waited for, and ended with all of its processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest


STARTING, ENDING = 600, 60  # seconds


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def smollm2() -> Path | None:
    """The folder of SmolLM2, where the tests are told of one."""
    folder = Path(os.environ.get("RLHF_LINES_REAL_MODELS", "")).resolve() / "SmolLM2-135M-Instruct"
    return folder if "RLHF_LINES_REAL_MODELS" in os.environ and folder.is_dir() else None


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """The process of a server that is ready to be asked."""
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for(port, started, log)
        yield started
        assert started.poll() is None, log.read_text()[-4000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGINT)
        try:
            started.wait(ENDING)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def _wait_for(port: int, started: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        assert started.poll() is None, log.read_text()[-4000:]
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-4000:])
