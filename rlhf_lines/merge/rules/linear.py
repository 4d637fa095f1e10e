"""Linear interpolation of residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def linear(residuals: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None) -> dict[str, Tensor]:
    """The weighted sum, with equal weights 1/K if none are given.

        tau_M = sum_k w_k tau_k

    With sum_k w_k = 1 this is the rewarded soup of the policies.

    Source: arXiv 2306.04488, the weight interpolation of rewarded soups.
    """
    if weights is None:
        weights = [1 / len(residuals)] * len(residuals)
    merged = {name: tensor * weights[0] for name, tensor in residuals[0].items()}
    for residual, weight in zip(residuals[1:], weights[1:], strict=True):
        for name, tensor in residual.items():
            merged[name] += tensor * weight
    return merged
