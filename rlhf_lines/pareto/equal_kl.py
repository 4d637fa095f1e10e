"""Hypervolume at equal KL: how much two groups offer whose policies have moved as far from the SFT model.

Letters: R resamples, n points, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import bootstrap_hypervolumes


STEPS = 8  # from one weight to the next


def equal_kl_hypervolumes(values: ArrayLike, budget: float, reference_point: Sequence[float]) -> NDArray[np.float64]:
    """The mean hypervolume of what points offer within a KL budget, over all budgets up to the given one, `[R]`.

    With HV(k) the hypervolume, above the reference point r, of the points whose KL is at most k::

        (1 / k*) integral_0^k* HV(k) dk

    A point that gives the scores s at the KL c offers them for the budgets from c to k*, so that the integral is the
    hypervolume of the points (s, -c) in K + 1 dimensions above (r, -k*). A mean KL is estimated and may come out below
    0; it counts as 0.

    Two points: one at no cost with a box of 2 x 1, the other at half of the budget with one of 3 x 1.

    >>> equal_kl_hypervolumes([[[2.0, 1.0, 0.0], [3.0, 1.0, 2.0]]], 4.0, [0.0, 0.0]).tolist()
    [2.5]

    Args:
        values: `[R, n, K + 1]`, mean scores and, last, mean KL in nats.
        budget: k*, above 0.
        reference_point: r, K numbers.
    """
    values = np.asarray(values, dtype=np.float64)
    offers = np.concatenate([values[..., :-1], -np.maximum(values[..., -1:], 0.0)], axis=-1)
    return bootstrap_hypervolumes(offers, [*reference_point, -budget]) / budget


def with_neighbours_joined(values: ArrayLike, weights: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Points `[R, n, K + 1]` and, of two policies, what lies between those with neighbouring weights, `[R, m, K + 1]`.

    Between two neighbours scores and KL are interpolated linearly in 8 steps: m = 8 (n - 1) + 1, in the order of the
    first weight. With more policies, or weights that do not all have one sum or occur twice, no point has two
    neighbours, and the points are returned as they are.

    >>> with_neighbours_joined([[[1.0, 2.0], [0.0, 4.0]]], [(1.0, 0.0), (0.0, 1.0)])[0, ::4].tolist()
    [[0.0, 4.0], [0.5, 3.0], [1.0, 2.0]]
    """
    values, weights = np.asarray(values, dtype=np.float64), [tuple(row) for row in weights]
    on_a_line = all(len(row) == 2 for row in weights) and np.ptp([sum(row) for row in weights]) < 1e-9
    if not on_a_line or len(set(weights)) < len(weights):
        return values
    values = values[:, sorted(range(len(weights)), key=weights.__getitem__)]
    share = (np.arange(STEPS) / STEPS)[:, None]
    between = values[:, :-1, None] * (1.0 - share) + values[:, 1:, None] * share  # [R, n - 1, steps, K + 1]
    return np.concatenate([between.reshape(len(values), -1, values.shape[-1]), values[:, -1:]], axis=1)
