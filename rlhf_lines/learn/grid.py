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

    Every axis has about as many values as the others; weights come in equal steps on the simplex.

    >>> lines_grid(2, 4, with_weights=False)
    [(0.5, 0.5, 0.25, -0.5), (0.5, 0.5, 0.25, 1.5), (0.5, 0.5, 1.5, -0.5), (0.5, 0.5, 1.5, 1.5)]
    """
    weights = [(1 / num_policies,) * num_policies]
    if with_weights and num_policies > 1:
        steps = 2
        while len(simplex(num_policies, steps + 1)) ** 3 <= count:
            steps += 1
        weights = simplex(num_policies, steps)
    rest = max(count // len(weights), 1)
    rows = math.isqrt(rest)
    alphas, betas = np.linspace(*ALPHAS, rows).tolist(), np.linspace(*BETAS, rest // rows).tolist()
    points = itertools.product(weights, alphas, betas)
    return [(*row, alpha, beta) for row, alpha, beta in points][:count]


def point_names(num_policies: int) -> list[str]:
    """What the numbers of a point are."""
    return [*(f"weight {k}" for k in range(1, num_policies + 1)), "alpha", "beta"]


def lines_profile(point: Point, num_layers: int) -> Profile:
    """The factors of a point: K w_k lambda(l) in units of a soup's 1/K."""
    *weights, alpha, beta = point
    outside, factors = depth_factors(alpha, beta, 0.0, num_layers)
    count = len(weights)
    return from_factors([(count * weight * outside, count * weight * factors) for weight in weights])
