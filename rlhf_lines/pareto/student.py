"""Student's t distribution, for any degrees of freedom from 1 on, without a table."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray


NODES = 100


def within(t: float, degrees: float) -> float:
    """`P(|T| <= t)` for T with Student's distribution of `degrees` degrees of freedom v.

    With `t = sqrt(v) tan x` the density is `c cos(x)^(v - 1)` on `|x| < pi/2`; its integral is taken by Gauss and
    Legendre's rule, to 1e-12 for whole v and to 1e-6 for v between 1 and 2.

    >>> round(within(1.0, 1.0), 12), round(within(2.0, 2.0), 12)  # 1/2, and 2/sqrt(6)
    (0.5, 0.816496580928)

    Raises:
        ValueError: `degrees` is below 1.
    """
    if not degrees >= 1:
        raise ValueError(f"got {degrees} degrees of freedom; Student's distribution needs at least 1")
    # Beyond the second angle the density, in units of its value at 0, is below 1e-40.
    ends = math.atan(abs(t) / math.sqrt(degrees)), math.acos(10.0 ** (-40.0 / (degrees - 1.0))) if degrees > 1 else 2.0
    nodes, weights = _rule()
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    integral = min(ends) * float(weights @ np.cos(min(ends) * nodes) ** (degrees - 1.0))
    return min(1.0, 2.0 * math.exp(log) / math.sqrt(math.pi) * integral)


@lru_cache(maxsize=4096)
def critical_value(confidence: float, degrees: float) -> float:
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


@cache
def _rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1.0) / 2.0, weights / 2.0
