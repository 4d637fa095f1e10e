"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlhf_lines.merge.rules.preference import scale_by_preference


def sum_residuals(residuals: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None) -> dict[str, Tensor]:
    """The plain sum, or the sum of preference-scaled residuals.

        tau_M = sum_k tau_k                 (no weights)
        tau_M = sum_k K w_k tau_k           (weights; equal weights 1/K give the plain sum)

    The coefficient of task arithmetic comes afterwards, as `alpha` with `beta=0`.

    Source: arXiv 2212.04089, task addition.
    """
    first, *others = scale_by_preference(residuals, weights)
    merged = {name: tensor.clone() for name, tensor in first.items()}
    for residual in others:
        for name, tensor in residual.items():
            merged[name] += tensor
    return merged
