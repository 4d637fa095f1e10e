"""Student's t distribution."""

from __future__ import annotations

import math

from scipy.special import betainc, stdtrit


def within(t: float, degrees: float) -> float:
    """`P(|T| <= t)` for T with Student's distribution of `degrees` degrees of freedom.

    The regularized incomplete beta function `I_x(1/2, degrees / 2)` at `x = t^2 / (degrees + t^2)`, which keeps its
    digits where t is near 0.

    >>> round(within(1.0, 1.0), 12), round(within(2.0, 2.0), 12)  # 1/2, and 2/sqrt(6)
    (0.5, 0.816496580928)

    Raises:
        ValueError: `degrees` is below 1.
    """
    _check(degrees)
    square = t * t
    return 1.0 if math.isinf(square) else float(betainc(0.5, degrees / 2.0, square / (degrees + square)))


def critical_value(confidence: float, degrees: float) -> float:
    """The t with `P(|T| <= t) = confidence`.

    >>> round(critical_value(0.95, 10), 3)
    2.228

    Raises:
        ValueError: `confidence` is not inside (0, 1), or `degrees` is below 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1, for example 0.95")
    _check(degrees)
    return float(-stdtrit(degrees, (1.0 - confidence) / 2.0))


def _check(degrees: float) -> None:
    if not degrees >= 1:
        raise ValueError(f"got {degrees} degrees of freedom; Student's distribution needs at least 1")
