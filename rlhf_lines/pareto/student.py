"""Student's t distribution, of any degrees of freedom from 1 on."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray


NODES = 100


def t_tail(t: float, degrees: float) -> float:
    """The probability `P(T > t)`.

    With `t = sqrt(v) tan x` the density is `c cos(x)^(v - 1)` on `|x| < pi/2`, smooth for v >= 1; its integral is taken
    by Gauss and Legendre's rule.

    >>> round(t_tail(1.0, 1.0), 12), round(t_tail(2.0, 2.0), 12)  # 1/4, and (1 - 2/sqrt(6))/2
    (0.25, 0.091751709536)

    Raises:
        ValueError: `degrees` is below 1.
    """
    if not degrees >= 1.0:
        raise ValueError(f"got {degrees} degrees of freedom; expected at least 1")
    if t < 0:
        return 1.0 - t_tail(-t, degrees)
    nodes, weights = _rule()
    # Above this angle the density, in units of its value at 0, is below 1e-40.
    start = math.atan(t / math.sqrt(degrees))
    end = math.acos(10.0 ** (-40.0 / (degrees - 1.0))) if degrees > 1.0 else math.pi / 2
    if start >= end:
        return 0.0
    angles = start + (end - start) * nodes
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return float(constant * (end - start) * (weights @ np.cos(angles) ** (degrees - 1.0)))


@cache
def t_quantile(tail: float, degrees: float) -> float:
    """The t for which `P(T > t)` is `tail`, at most 1/2.

    >>> round(t_quantile(0.025, 4.0), 6), round(t_quantile(0.025, 1e6), 6)
    (2.776445, 1.959966)
    """
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > tail:
        high *= 2.0
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if t_tail(middle, degrees) > tail else (low, middle)
    return high


@cache
def _rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1.0) / 2.0, weights / 2.0
