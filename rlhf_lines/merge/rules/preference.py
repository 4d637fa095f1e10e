"""How preference weights enter a rule that has none of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def scale_by_preference(
    residuals: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None
) -> list[dict[str, Tensor]]:
    """The residuals K w_k tau_k, so that equal weights 1/K change nothing.

    Args:
        residuals: K residuals.
        weights: K floats, or None for no scaling.
    """
    if weights is None:
        return [dict(residual) for residual in residuals]
    count = len(residuals)
    return [
        {name: tensor * (count * weight) for name, tensor in residual.items()}
        for residual, weight in zip(residuals, weights, strict=True)
    ]
