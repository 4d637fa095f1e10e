"""Arithmetic precision of a merge, and what the last cast costs.

Residuals are small differences of large numbers: everything is subtracted, merged and scaled in float32 or wider, and
cast once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def wide(tensor: Tensor, name: str) -> Tensor:
    """`tensor` in float32, or in float64 if it is float64 (then the same object).

    Raises:
        ValueError: `tensor` is not a plain floating-point tensor (integers and 8-bit floats carry a scale elsewhere).
    """
    if tensor.dtype not in DTYPES.values():
        raise ValueError(
            f"{name!r} has dtype {str(tensor.dtype).removeprefix('torch.')}, but a residual needs one of "
            f"{', '.join(DTYPES)}; dequantise the checkpoint or drop this tensor"
        )
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


@dataclass(frozen=True)
class LostResidual:
    """The share of a merged residual that the cast to the output dtype lost.

    With `kept = cast(theta_SFT + tau) - cast(theta_SFT)`, the change that a user of the written model sees against the
    SFT model in the same dtype:

        relative_l2 = ||kept - tau||_2 / ||tau||_2
        unchanged   = #(tau != 0 and kept == 0) / #(tau != 0)

    Both are 0 for a zero residual. `unchanged` is None where parameters are not written one by one (adapters).
    """

    relative_l2: float
    unchanged: float | None


class LossMeter:
    """Adds up `LostResidual` over tensors, with float64 accumulators."""

    def __init__(self) -> None:
        self._error = self._total = 0.0
        self._stuck = self._nonzero = 0

    def add(self, residual: Tensor, sft: Tensor, written: Tensor) -> None:
        """Count one tensor: its residual, its SFT value and the value that was written (all of one shape)."""
        base = sft.to(written.dtype).to(torch.float64)
        kept = written.to(torch.float64) - base
        residual = residual.to(torch.float64)
        moved = residual != 0
        self._error += (kept - residual).square().sum().item()
        self._total += residual.square().sum().item()
        self._stuck += int((moved & (kept == 0)).sum())
        self._nonzero += int(moved.sum())

    def result(self) -> LostResidual:
        """The shares over everything that was added."""
        return LostResidual(
            relative_l2=(self._error / self._total) ** 0.5 if self._total else 0.0,
            unchanged=self._stuck / self._nonzero if self._nonzero else 0.0,
        )
