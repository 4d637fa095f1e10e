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


def mean_shares(rule: str, count: int, weights: Sequence[float] | None) -> list[float]:
    """The shares w_k / sum_j w_j of a weighted mean, 1/K each without weights; zeros if all weights are zero.

    Args:
        rule: named in the error.
        count: K.
        weights: K floats, or None.

    Raises:
        ValueError: a negative weight, which can make the denominator of such a rule vanish.
    """
    weights = [1.0] * count if weights is None else list(weights)
    if min(weights) < 0:
        raise ValueError(
            f"weights are {weights}, but rule {rule!r} is a weighted mean and needs weights of at least 0; "
            "extrapolate with `linear`"
        )
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]
