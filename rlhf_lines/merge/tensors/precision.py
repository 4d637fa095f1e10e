"""Arithmetic precision of a merge, and what the last cast costs.

Residuals are small differences of large numbers: everything is subtracted, merged and scaled in float32 or wider, and
cast once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_lines.merge.tensors.spans import Scratch


DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype in which inputs of these dtypes are merged: float64 where any of them is, else float32."""
    return torch.float64 if torch.float64 in set(dtypes) else torch.float32


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


def add_residual(sft: Tensor, residual: Tensor, dtype: torch.dtype, scratch: Scratch | None = None) -> Tensor:
    """theta_SFT + tau: added in the wider of their dtypes, float32 at least, and cast once.

    Every merged weight comes from here: those in files, those that a sweep lends to its model, and those of the
    policies whose statistics are taken.

    Args:
        sft: theta_SFT, in float32 or wider, or as it is stored.
        residual: tau, float32 or wider.
        dtype: of the result.
        scratch: memory for the result, which the thread's next call overwrites (flat tensors of one dtype on a CPU);
            None gives a new tensor.
    """
    if scratch is None:
        return (sft + residual).to(dtype)
    total = torch.add(sft, residual, out=scratch.take("sum", residual.numel(), residual.dtype))
    return total if dtype == total.dtype else scratch.take("written", total.numel(), dtype).copy_(total)


@dataclass(frozen=True)
class LostResidual:
    """The share of a merged residual that the cast to the output dtype lost.

    With `kept = cast(theta_SFT + tau) - cast(theta_SFT)`, the change that a user of the written model sees against the
    SFT model in the same dtype:

        relative_l2 = ||kept - tau||_2 / ||tau||_2
        unchanged   = #(tau != 0 and kept == 0) / #(tau != 0)

    Both are 0 for a zero residual. `unchanged` is None where parameters are not written one by one (adapters).

    Attributes:
        relative_l2: from 0 to 1, or more.
        unchanged: from 0 to 1, or None.
    """

    relative_l2: float
    unchanged: float | None


@dataclass(frozen=True)
class Loss:
    """What the cast of some parameters lost, as sums that add up over parameters.

    Attributes:
        error: ||kept - tau||_2^2.
        total: ||tau||_2^2.
        unchanged: #(tau != 0 and kept == 0).
        changed: #(tau != 0).
    """

    error: float = 0.0
    total: float = 0.0
    unchanged: int = 0
    changed: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.error + other.error,
            self.total + other.total,
            self.unchanged + other.unchanged,
            self.changed + other.changed,
        )

    def shares(self) -> LostResidual:
        """The sums as shares."""
        return LostResidual(
            relative_l2=(self.error / self.total) ** 0.5 if self.total else 0.0,
            unchanged=self.unchanged / self.changed if self.changed else 0.0,
        )


def cast_loss(residual: Tensor, sft: Tensor, written: Tensor, stored: torch.dtype) -> Loss:
    """What `written`, a cast of `sft + residual`, lost of the residual; all flat, of one size.

    `error` and `total` are not finite if an input or the result is not.

    Args:
        residual: tau, float32 or wider.
        sft: theta_SFT in the residual's dtype.
        written: what was written.
        stored: the dtype that theta_SFT has in its file.
    """
    kept = written.to(residual.dtype, copy=True)
    holds_sft = torch.promote_types(stored, written.dtype) == written.dtype
    kept -= sft if holds_sft else sft.to(written.dtype).to(residual.dtype)
    changed = _count_nonzero(residual)
    # Where the residual is zero, the value written is the SFT model's.
    unchanged = changed - _count_nonzero(kept)
    kept -= residual
    return Loss(torch.dot(kept, kept).item(), torch.dot(residual, residual).item(), unchanged, changed)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a flat floating-point tensor are finite."""
    # One product is cheap, and finite unless a value is not, or squares overflow.
    values = tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    return math.isfinite(torch.dot(values, values).item()) or bool(torch.isfinite(values).all())


def _count_nonzero(tensor: Tensor) -> int:
    if tensor.device.type != "cpu":
        return int(torch.count_nonzero(tensor))
    return int(np.count_nonzero(tensor.numpy() != 0))  # three times as fast as torch's on a CPU
