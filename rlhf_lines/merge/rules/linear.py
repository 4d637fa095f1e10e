"""Linear interpolation of residuals."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.merge.rules.addition import weighted_total
from rlhf_lines.merge.tensors.residuals import Merged, Residuals


def linear(residuals: Residuals, weights: Sequence[float] | None) -> Merged:
    """The weighted sum, with equal weights 1/K if none are given.

        tau_M = sum_k w_k tau_k

    With sum_k w_k = 1 this is the rewarded soup of the policies.

    Source: arXiv 2306.04488, the weight interpolation of rewarded soups.
    """
    return weighted_sum(residuals, weights or [1 / residuals.count] * residuals.count)


def weighted_sum(residuals: Residuals, factors: Sequence[float]) -> Merged:
    """The sum of f_k tau_k."""

    return Merged(residuals, lambda piece: weighted_total(piece.residuals, factors))
