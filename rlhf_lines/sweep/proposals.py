"""Where a better front may lie: vectors that are proposed by what was measured of others. Pure functions.

Letters: n vectors of d numbers, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.intervals import unit
from rlhf_lines.pareto.measures import hypervolume, nondominated


REACH = 0.25  # beyond both parents, of their distance
POOL = 16  # children from which one is taken, where a fit can tell them apart
RIDGE = 1e-3  # of the fit's squared coefficients, for vectors and means in units of their spread

Array = NDArray[np.float64]


def propose(
    vectors: ArrayLike,
    means: ArrayLike,
    reference_point: Sequence[float],
    count: int,
    *,
    step: float,
    draws: np.random.Generator,
) -> Array:
    """The vectors to be measured next, `[count, d]`.

    Each is a child of two vectors a and b that no other dominates, drawn with equal chances (of a single one, itself):

        a + t (b - a) + step e,   t uniform in [-0.25, 1.25],   e standard normal

    Once there are as many vectors as a quadratic of d numbers has coefficients, 16 times as many children are made, and
    those are taken one by one of which a quadratic, fitted to the means of each objective, says that they add most to
    the hypervolume of what was measured and taken; where it says that none adds anything, the first of them.

    Args:
        vectors: `[n, d]`, what was measured.
        means: `[n, K]`, its mean scores, higher is better.
        reference_point: of the hypervolume, K numbers.
        count: how many are proposed.
        step: the standard deviation of what is added.
        draws: the only source of chance.

    Source: Muehlenbein and Schlierkamp-Voosen, Evolutionary Computation 1 (1993), 25-49 (extended lines); children that
    a fit chooses: Jin, Swarm and Evolutionary Computation 1 (2011), 61-70 (pre-selection).
    """
    vectors, means = np.asarray(vectors, np.float64), np.asarray(means, np.float64)
    numbers = vectors.shape[1]
    fits = len(vectors) >= 1 + numbers + numbers * (numbers + 1) // 2
    parents = vectors[nondominated(means)]
    made = np.stack([_child(parents, step, draws) for _ in range(count * (POOL if fits else 1))])
    if not fits:
        return made
    return made[_most_gained(quadratic_fit(vectors, means, made), means, reference_point, count)]


def quadratic_fit(vectors: ArrayLike, means: ArrayLike, at: ArrayLike) -> Array:
    """What quadratics that are fitted to means `[n, K]` of vectors `[n, d]` say of other vectors `[m, d]`: `[m, K]`.

    Least squares with a ridge, on all products of two numbers, all numbers and a constant, each number in units of its
    spread among the vectors.
    """
    vectors, means, at = (np.asarray(each, np.float64) for each in (vectors, means, at))
    centre, spread = vectors.mean(axis=0), unit(vectors)
    middle, height = means.mean(axis=0), unit(means)
    left, right = _monomials((vectors - centre) / spread), _monomials((at - centre) / spread)
    gram = left.T @ left + RIDGE * len(left) * np.eye(left.shape[1])
    return right @ np.linalg.solve(gram, left.T @ ((means - middle) / height)) * height + middle


def best_subset(means: ArrayLike, reference_point: Sequence[float], count: int) -> list[int]:
    """The indices, ascending, of at most `count` points of much hypervolume: each adds most to those taken before."""
    means = np.asarray(means, np.float64)
    taken: list[int] = []
    for _ in range(count):
        gains = _gains(means, means[taken], reference_point)
        gains[taken] = -np.inf
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        taken.append(best)
    return sorted(taken)


def _child(parents: Array, step: float, draws: np.random.Generator) -> Array:
    first, second = parents[draws.choice(len(parents), size=2, replace=len(parents) < 2)]
    along = draws.uniform(-REACH, 1 + REACH)
    return first + along * (second - first) + step * draws.standard_normal(len(first))


def _most_gained(predicted: Array, means: Array, reference_point: Sequence[float], count: int) -> list[int]:
    taken: list[int] = []
    for _ in range(count):
        gains = _gains(predicted, np.concatenate([means, predicted[taken]]), reference_point)
        gains[taken] = -np.inf
        taken.append(int(gains.argmax()))
    return taken


def _gains(points: Array, beside: Array, reference_point: Sequence[float]) -> Array:
    """What each point adds to the hypervolume of those beside it."""
    before = hypervolume(beside, reference_point) if len(beside) else 0.0
    return np.array([hypervolume(np.vstack([beside, point]), reference_point) - before for point in points])


def _monomials(vectors: Array) -> Array:
    rows, columns = np.triu_indices(vectors.shape[1])
    return np.concatenate([np.ones((len(vectors), 1)), vectors, vectors[:, rows] * vectors[:, columns]], axis=1)
