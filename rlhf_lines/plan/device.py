"""Which device a plan is for: that of the machine on which it is made, unless the stage could not run there."""

from __future__ import annotations

from collections.abc import Callable

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
