"""How preference weights enter a rule that has none of its own."""

from __future__ import annotations

from collections.abc import Sequence


def preference_factors(count: int, weights: Sequence[float] | None) -> list[float]:
    """The factors K w_k that scale tau_k before a rule, so that equal weights 1/K change nothing; ones without weights.

    Args:
        count: K.
        weights: K floats, or None.
    """
    return [1.0] * count if weights is None else [count * weight for weight in weights]
