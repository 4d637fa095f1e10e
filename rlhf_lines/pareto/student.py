"""Student's t distribution for whole degrees of freedom, without a table."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def within(t: float, degrees: int) -> float:
    """`P(|T| <= t)` for T with Student's distribution of `degrees` degrees of freedom.

    With `angle = atan(t / sqrt(degrees))` it is a finite sum of powers of its cosine.

    >>> within(1.0, 1)
    0.5

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.

    Raises:
        ValueError: `degrees` is below 1.
    """
    if degrees < 1:
        raise ValueError(f"got {degrees} degrees of freedom; Student's distribution needs at least 1")
    if math.isinf(t):
        return 1.0
    angle = math.atan2(abs(t), math.sqrt(degrees))
    if degrees == 1:
        return 2.0 / math.pi * angle
    odd = degrees % 2
    j = np.arange(1, (degrees - odd) // 2)
    ratios = 2 * j / (2 * j + 1) if odd else (2 * j - 1) / (2 * j)
    powers = float(np.cumprod(ratios * math.cos(angle) ** 2).sum()) + 1.0
    if odd:
        return 2.0 / math.pi * (angle + math.sin(angle) * math.cos(angle) * powers)
    return min(1.0, math.sin(angle) * powers)


@lru_cache(maxsize=64)
def critical_value(confidence: float, degrees: int) -> float:
    """The t with `P(|T| <= t) = confidence`, by bisection to the last digit.

    >>> round(critical_value(0.95, 10), 3)
    2.228

    Raises:
        ValueError: `confidence` is not inside (0, 1), or `degrees` is below 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1, for example 0.95")
    low, high = 0.0, 1.0
    while within(high, degrees) < confidence:
        high *= 2.0
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if within(middle, degrees) < confidence else (low, middle)
    return high
