"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.merge.rules.linear import weighted_sum
from rlhf_lines.merge.rules.preference import preference_factors
from rlhf_lines.merge.tensors.residuals import Merged, Residuals


def sum_residuals(residuals: Residuals, weights: Sequence[float] | None) -> Merged:
    """The plain sum, or the sum of preference-scaled residuals.

        tau_M = sum_k tau_k                 (no weights)
        tau_M = sum_k K w_k tau_k           (weights; equal weights 1/K give the plain sum)

    The coefficient of task arithmetic comes afterwards, as `alpha` with `beta=0`.

    Source: arXiv 2212.04089, task addition.
    """
    return weighted_sum(residuals, preference_factors(residuals.count, weights))
