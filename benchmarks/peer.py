"""What the side-by-side benchmarks share: its own environment, a process, words on machine and versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).parents[1]
ENVIRONMENTS = Path(__file__).parent / ".environments"


def peer_python(environment: Path, package: str, version: str, *, needs: Sequence[str]) -> Path:
    """The interpreter of an environment with one version of one package, which is made if it is not there.

    All but that package comes in the versions of `constraints.txt`, so that it is all that differs between the sides.

    Args:
        environment: the folder of the environment.
        package: the peer.
        version: of the peer.
        needs: other packages that the peer's side imports.
    """
    python = environment / "bin" / "python"
    constraints = _lines(ROOT / "constraints.txt")
    pinned = [f"{package}=={version}" if line.startswith(f"{package}==") else line for line in constraints]
    if pinned == constraints:
        pinned.append(f"{package}=={version}")
    installed = environment / "constraints.txt"  # written last: an environment without it is unfinished
    if installed.is_file() and _lines(installed) == pinned:
        return python
    note(f"making {environment} with {package} {version}")
    venv.create(environment, with_pip=True, clear=True)
    wanted = environment / "wanted.txt"
    wanted.write_text("\n".join(pinned) + "\n")
    command = [python, "-m", "pip", "install", "--quiet", "-c", wanted, f"{package}=={version}", *needs]
    subprocess.run(command, check=True)
    wanted.rename(installed)
    return python


def call(*command: object, log: Path, threads: int) -> None:
    """Run a command with the same environment variables for all, its output in a file.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    with log.open("w") as file:
        done = subprocess.run([str(part) for part in command], env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed, see {log}:\n" + "\n".join(log.read_text().splitlines()[-12:]))


def note(text: str) -> None:
    """Print a line on what is being done, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def met(holds: bool) -> str:
    """How a goal ended, in words."""
    return "met" if holds else "NOT met"


def machine() -> str:
    """The processor, its cores, the system and Python's version."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def versions(python: str | Path, names: Sequence[str]) -> str:
    """The installed versions of packages in an interpreter's environment."""
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {list(names)}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
