"""Memory that a thread uses again for every piece."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """Flat tensors by key, one set per thread, as large as the largest that was asked for.

    A merge goes through memory of many times its buffers' size; asking the system for it anew, page by page, costs more
    than the arithmetic.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[object, torch.dtype], Tensor] = {}

    def take(self, key: object, size: int, dtype: torch.dtype) -> Tensor:
        """A tensor ``[size]`` with anything in it; the next call with this key may return the same memory."""
        held = self._held.get((key, dtype))
        if held is None or held.numel() < size:
            held = self._held[key, dtype] = torch.empty(size, dtype=dtype)
        return held[:size]
