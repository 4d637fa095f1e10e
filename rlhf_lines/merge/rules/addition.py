"""Sums of the K residuals of one piece."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def total(taus: Sequence[Tensor]) -> Tensor:
    """sum_k tau_k, a new tensor."""
    summed = taus[0].clone()
    for tau in taus[1:]:
        summed += tau
    return summed


def weighted_total(taus: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """sum_k f_k tau_k, a new tensor."""
    summed = taus[0] * factors[0]
    for tau, factor in zip(taus[1:], factors[1:], strict=True):
        summed.add_(tau, alpha=factor)
    return summed
