"""The weighted sums of residuals: rewarded soups and task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.merge.rules.common import mean_factors, preference_factors, weighted_total
from rlhf_lines.merge.tensors.residuals import Merged, Residuals


def linear(residuals: Residuals, weights: Sequence[float] | None) -> Merged:
    """The weighted sum, with equal weights 1/K if none are given.

        tau_M = sum_k w_k tau_k

    With sum_k w_k = 1 this is the rewarded soup of the policies.

    Source: arXiv 2306.04488, the weight interpolation of rewarded soups.
    """
    return weighted_sum(residuals, mean_factors(residuals.count, weights))


def weighted_sum(residuals: Residuals, factors: Sequence[float]) -> Merged:
    """The sum of f_k tau_k."""
    return Merged(residuals, lambda chunk: weighted_total(chunk.residuals, factors))


def sum_residuals(residuals: Residuals, weights: Sequence[float] | None) -> Merged:
    """The plain sum, or the sum of preference-scaled residuals.

        tau_M = sum_k tau_k                 (no weights)
        tau_M = sum_k K w_k tau_k           (weights; equal weights 1/K give the plain sum)

    The coefficient of task arithmetic comes afterwards, as `alpha` with `beta=0`.

    Source: arXiv 2212.04089, task addition.
    """
    return weighted_sum(residuals, preference_factors(residuals.count, weights))
