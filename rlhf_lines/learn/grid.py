"""LiNeS on a grid: what a search is compared with, at as many candidates."""

from __future__ import annotations

import itertools
import math

import numpy as np

from rlhf_lines.merge.rules.profile import Profile
from rlhf_lines.merge.space import depth_factors, from_factors
from rlhf_lines.sweep.groups import simplex


ALPHAS, BETAS = (0.25, 1.5), (-0.5, 1.5)  # from and to
Point = tuple[float, ...]  # weights of the policies, alpha, beta


def lines_grid(num_policies: int, count: int, *, with_weights: bool) -> list[Point]:
    """At most `count` points of a grid of LiNeS' alpha and beta, and of weights where these are chosen, too.

    Weights come in equal steps on the simplex, as many along each axis as alpha and beta have values, or about as many;
    equal ones are always among them, and alone where more would be too many. One value of alpha, or beta, is the
    middle.

    >>> lines_grid(2, 4, with_weights=False)
    [(0.5, 0.5, 0.25, -0.5), (0.5, 0.5, 0.25, 1.5), (0.5, 0.5, 1.5, -0.5), (0.5, 0.5, 1.5, 1.5)]
    """
    weights = [(1 / num_policies,) * num_policies]
    if with_weights and num_policies > 1:
        steps = 2
        while math.comb(steps + num_policies - 1, steps) * (steps + 1) ** 2 <= count:
            steps += 1
        if steps > 2:  # else they are the policies alone, which are measured anyway
            weights += [row for row in simplex(num_policies, steps) if not np.allclose(row, weights[0])]
    rest = max(count // len(weights), 1)
    rows = math.isqrt(rest)
    points = itertools.product(weights, _axis(ALPHAS, rows), _axis(BETAS, rest // rows))
    return [(*row, alpha, beta) for row, alpha, beta in points][:count]


def _axis(ends: tuple[float, float], count: int) -> list[float]:
    return np.linspace(*ends, count).tolist() if count > 1 else [sum(ends) / 2]


def point_names(num_policies: int) -> list[str]:
    """What the numbers of a point are."""
    return [*(f"weight {k}" for k in range(1, num_policies + 1)), "alpha", "beta"]


def lines_profile(point: Point, num_layers: int) -> Profile:
    """The factors of a point: K w_k lambda(l) in units of a soup's 1/K."""
    *weights, alpha, beta = point
    outside, factors = depth_factors(alpha, beta, 0.0, num_layers)
    count = len(weights)
    return from_factors([(count * weight * outside, count * weight * factors) for weight in weights])
