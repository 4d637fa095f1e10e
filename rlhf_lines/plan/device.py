"""Which device a plan is for, that of the machine on which it is made where the stage can run there; and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def planned_device(
    asked: str | None, check_cpu: Callable[[], object], *, use_cpu: bool = False, needs_gpu: bool = False
) -> str:
    """`cuda` or `cpu`: as asked, or else where the stage would run here.

    Args:
        asked: by who plans, or None.
        check_cpu: raises a ValueError where the model cannot be computed on a CPU.
        use_cpu: the config keeps the stage off a GPU that there is.
        needs_gpu: the stage has no way to run on a CPU.
    """
    if asked is not None or use_cpu:
        return asked or "cpu"
    if torch.cuda.is_available() or needs_gpu:
        return "cuda"
    try:
        check_cpu()
    except ValueError:
        return "cuda"
    return "cpu"


def machine(device: str) -> str:
    """What a plan calls this machine."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "this CPU")
