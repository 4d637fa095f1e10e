"""A front from few evaluations: a quadratic of the weights per reward, after MAP (arXiv 2406.07529).

Letters: n weights, K policies, R rewards. MAP fits each metric of a merged model by a full quadratic of its N merging
coefficients, (N + 1)(N + 2) / 2 numbers per metric, and searches the fit instead of the models. There the coefficients
are free; here weights lie on the simplex, so that the last is one minus the others and a quadratic of all K would not
be determined. The variables are the first K - 1 weights, and K (K + 1) / 2 numbers describe any quadratic on the
simplex. MAP passes the quadratic through a sigmoid, because accuracies are bounded; rewards are not, so the link is the
identity and the fit is ordinary least squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.errors import counted
from rlhf_lines.pareto.measures import nondominated
from rlhf_lines.pareto.schema import SurrogateEntry


T = TypeVar("T")

# Round steps with 1001, 5151, 12341 and 10626 weights; for more policies, the finest grid below LARGEST_GRID.
GRID_STEPS = {2: 1000, 3: 100, 4: 40, 5: 20}
LARGEST_GRID = 12500
ON_THE_SIMPLEX = 1e-6
# Singular values below this share of the largest are rounding: weights on a line, not just badly spread.
SINGULAR = 1e-9
# Distances, of the order of one, that differ by less are equal.
EQUALLY_FAR = 1e-9


@dataclass(frozen=True)
class Surrogate:
    """Predicted mean scores of every weight on the simplex.

    Attributes:
        coefficients: `[K (K + 1) / 2, R]`, one for each of `monomials`, in units of the rewards.
        r2: `[R]`, the share of the variance of the scores that the fit explains, 1 - residual / total sum of squares;
            NaN where all scores are equal. It is 1 by construction if there are as many weights as coefficients.
        num_policies: K.
    """

    coefficients: NDArray[np.float64]
    r2: NDArray[np.float64]
    num_policies: int


def num_coefficients(num_policies: int) -> int:
    """How many numbers a quadratic on the simplex of K policies has, the least number of evaluations.

    >>> [num_coefficients(k) for k in (2, 3, 4, 5)]
    [3, 6, 10, 15]
    """
    return num_policies * (num_policies + 1) // 2


def quadratic_terms(variables: ArrayLike) -> NDArray[np.float64]:
    """All products of at most two of V variables, `[n, V]` to `[n, (V + 1)(V + 2) / 2]`.

    Squares, products of two, the variables, one; the order of MAP's code (luli-git/MAP, `fit_quadratic_from_json`).

    >>> quadratic_terms([[2.0, 3.0]]).tolist()
    [[4.0, 9.0, 6.0, 2.0, 3.0, 1.0]]
    """
    variables = np.asarray(variables, dtype=np.float64)
    products = [variables[:, i] * variables[:, j] for i, j in combinations(range(variables.shape[1]), 2)]
    return np.column_stack([variables**2, *products, variables, np.ones(len(variables))])


def monomials(num_policies: int) -> list[str]:
    """The names of the terms of a quadratic on the simplex; `w1` is the weight of the first policy.

    >>> monomials(3)
    ['w1^2', 'w2^2', 'w1 w2', 'w1', 'w2', '1']
    """
    names = [f"w{k}" for k in range(1, num_policies)]
    return [*(f"{name}^2" for name in names), *(f"{a} {b}" for a, b in combinations(names, 2)), *names, "1"]


def fit_quadratic(variables: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """The coefficients of the quadratics nearest to `values` in the sum of squares, in float64.

    Args:
        variables: `[n, V]`, free of each other: not all weights of a simplex.
        values: `[n]` or `[n, R]`.

    Returns:
        `[(V + 1)(V + 2) / 2]` or `[(V + 1)(V + 2) / 2, R]`, in the order of `quadratic_terms`.

    Raises:
        ValueError: there are fewer points than coefficients, or the points do not determine them.
    """
    terms = quadratic_terms(variables)
    points, coefficients = terms.shape
    if points < coefficients:
        raise ValueError(
            f"got {points} evaluated points for a quadratic with {coefficients} coefficients; "
            f"expected at least {coefficients}: evaluate more, `design` lists which"
        )
    solution, _, rank, _ = np.linalg.lstsq(terms, np.asarray(values, dtype=np.float64), rcond=SINGULAR)
    if rank < coefficients:
        raise ValueError(
            f"the {points} evaluated points determine only {rank} of the {coefficients} coefficients of a quadratic; "
            "expected points that do not lie on a line or another quadratic: evaluate those that `design` lists"
        )
    return solution


def fit_surrogate(weights: ArrayLike, scores: ArrayLike) -> Surrogate:
    """The quadratic of the weights for every reward, by ordinary least squares.

    Args:
        weights: `[n, K]` on the simplex, K at least 2.
        scores: `[n, R]`, mean scores of the policies merged with these weights.

    Raises:
        ValueError: a weight is off the simplex, a score is not finite, shapes do not fit, or the weights are too few
            or too special to determine the quadratic.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] < 2:
        raise ValueError(f"weights have shape {weights.shape}; expected [points, policies] with at least two policies")
    _check_simplex(weights, weights.shape[1])
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or len(scores) != len(weights) or not np.isfinite(scores).all():
        raise ValueError(
            f"scores have shape {scores.shape}; expected finite numbers [{len(weights)}, rewards], one row per weight"
        )
    coefficients = fit_quadratic(weights[:, :-1], scores)
    residual = ((scores - quadratic_terms(weights[:, :-1]) @ coefficients) ** 2).sum(axis=0)
    total = ((scores - scores.mean(axis=0)) ** 2).sum(axis=0)
    varies = np.ptp(scores, axis=0) > 0
    r2 = np.where(varies, 1.0 - residual / np.where(varies, total, 1.0), np.nan)
    return Surrogate(coefficients, r2, weights.shape[1])


def predict(surrogate: Surrogate, weights: ArrayLike) -> NDArray[np.float64]:
    """The predicted mean scores `[m, R]` of weights `[m, K]`.

    Raises:
        ValueError: weights are off the simplex, where a quadratic through points inside says nothing.
    """
    weights = np.asarray(weights, dtype=np.float64)
    _check_simplex(weights, surrogate.num_policies)
    return quadratic_terms(weights[:, :-1]) @ surrogate.coefficients


def predicted_front(surrogate: Surrogate, count: int, sampled: ArrayLike) -> list[list[float]]:
    """Up to `count` weights, spread over the predicted front, that are worth an evaluation.

    The predicted front is the nondominated set of the predictions on `simplex_grid`. First come its ends, the weights
    with the highest prediction of each reward; then, one after the other, the weight whose predicted scores are
    farthest from those of the chosen and sampled ones (Gonzalez, 1985), each reward in units of its range over the
    predicted front. Weights within half a grid step of a sampled one count as sampled: they are never returned.
    Deterministic; of equally far weights the first in the grid's order is taken.

    Args:
        surrogate: what `fit_surrogate` returned.
        count: largest number of weights to return; there are fewer if the predicted front has no more.
        sampled: `[n, K]`, weights that were evaluated.

    Raises:
        ValueError: `count` is below 1 or a sampled weight is off the simplex.
    """
    if count < 1:
        raise ValueError(f"got a count of {count} predicted weights; expected at least 1")
    sampled = np.asarray(sampled, dtype=np.float64)
    measured = predict(surrogate, sampled)
    grid, steps = simplex_grid(surrogate.num_policies), grid_steps(surrogate.num_policies)
    scores = predict(surrogate, grid)
    rows = nondominated(scores)
    grid, scores = grid[rows], scores[rows]
    span = np.ptp(scores, axis=0)
    unit = np.where(span > 0, span, 1.0)
    scores, measured = scores / unit, measured / unit

    new = np.ones(len(grid), dtype=bool)
    for weight in sampled:
        new &= np.abs(grid - weight).max(axis=1) > 0.5 / steps
    far = np.where(new, _distances(scores, measured), 0.0)
    ends = dict.fromkeys(int(i) for i in scores.argmax(axis=0) if new[i])
    return [grid[i].tolist() for i in islice(_farthest(scores, far, first=ends), count)]


def design(num_policies: int, count: int) -> list[list[float]]:
    """`count` weights to evaluate first, each `[K]`.

    The K policies themselves and the midpoints of all pairs: together the {K, 2} simplex lattice of Scheffé (1958),
    which determines every quadratic on the simplex. Then the centroid, and then the weights of `simplex_grid` that are
    farthest from those listed before. A longer design begins with every shorter one.

    >>> design(2, 5)
    [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]

    Raises:
        ValueError: there are fewer than two policies, or `count` is less than the K (K + 1) / 2 coefficients of a
            quadratic or more than the weights of the grid.
    """
    if num_policies < 2:
        raise ValueError(
            f"got {counted(num_policies, 'policy', 'policies')}; expected two or more, with one there are no weights "
            "to choose"
        )
    grid, least = simplex_grid(num_policies), num_coefficients(num_policies)
    if not least <= count <= len(grid):
        raise ValueError(
            f"got a count of {count} weights for {num_policies} policies; "
            f"expected {least}, the coefficients of a quadratic, to {len(grid)}"
        )
    vertices = np.eye(num_policies)
    midpoints = [(vertices[i] + vertices[j]) / 2 for i, j in combinations(range(num_policies), 2)]
    # With two policies the centroid is the midpoint.
    centroid = [np.full(num_policies, 1.0 / num_policies)] if num_policies > 2 else []
    first = [*vertices, *midpoints, *centroid]
    rest = (grid[i] for i in _farthest(grid, _distances(grid, first)))
    return [weight.tolist() for weight in islice(chain(first, rest), count)]


def simplex_grid(num_policies: int) -> NDArray[np.float64]:
    """All weights on the simplex that are multiples of 1 / `grid_steps`, `[m, K]`, the first falling.

    m is 1001, 5151, 12341 and 10626 for 2, 3, 4 and 5 policies.
    """
    steps = grid_steps(num_policies)
    # Stars and bars: the K - 1 bars among steps + K - 1 places leave K gaps.
    bars = np.array(list(combinations(range(steps + num_policies - 1), num_policies - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), steps + num_policies - 1)])
    return (np.diff(edges, axis=1) - 1)[::-1] / steps


def grid_steps(num_policies: int) -> int:
    """How many steps the grid takes from one policy to another."""
    if num_policies in GRID_STEPS:
        return GRID_STEPS[num_policies]
    steps = 1
    while math.comb(steps + num_policies, num_policies - 1) <= LARGEST_GRID:
        steps += 1
    return steps


def surrogate_report(
    surrogate: Surrogate,
    rewards: Sequence[str],
    *,
    sampled: Sequence[int],
    weights: Mapping[int, Sequence[float]],
    measured: Mapping[int, Sequence[float]],
) -> SurrogateEntry:
    """The value of `surrogate` in `front.json`.

    Args:
        surrogate: what `fit_surrogate` returned.
        rewards: R names.
        sampled: ids of the points that were fitted.
        weights: id of each point that was evaluated because of the prediction, and its weights.
        measured: id of each such point, and its R mean scores.
    """
    predicted = predict(surrogate, list(weights.values())) if weights else []

    def by_reward(values: Iterable[T]) -> dict[str, T]:
        return dict(zip(rewards, values, strict=True))

    return {
        "sampled": list(sampled),
        "predicted": [
            {"id": i, "predicted": by_reward(row.tolist()), "measured": by_reward(map(float, measured[i]))}
            for i, row in zip(weights, predicted, strict=True)
        ],
        "monomials": monomials(surrogate.num_policies),
        "coefficients": by_reward(surrogate.coefficients.T.tolist()),
        "r2": by_reward(None if math.isnan(value) else value for value in surrogate.r2.tolist()),
    }


def _distances(places: NDArray[np.float64], others: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """How far each row of `places` is from the nearest of the others, infinitely where there are none."""
    far = np.full(len(places), np.inf)
    for other in others:
        far = np.minimum(far, np.linalg.norm(places - other, axis=1))
    return far


def _farthest(places: NDArray[np.float64], far: NDArray[np.float64], first: Iterable[int] = ()) -> Iterator[int]:
    """Yield rows of `places`: those of `first`, then again and again the one farthest from all before.

    `far` is the distance of each row to what is already there; a row at distance 0 is never yielded after `first`.
    """
    for i in first:
        far = np.minimum(far, _distances(places, [places[i]]))
        yield i
    while far.max() > EQUALLY_FAR:
        i = int(np.argmax(far > far.max() - EQUALLY_FAR))
        far = np.minimum(far, _distances(places, [places[i]]))
        yield i


def _check_simplex(weights: NDArray[np.float64], num_policies: int) -> None:
    if weights.ndim != 2 or weights.shape[1] != num_policies:
        raise ValueError(f"weights have shape {weights.shape}; expected [points, {num_policies}], one per policy")
    outside = (weights < -ON_THE_SIMPLEX).any(axis=1) | ~(np.abs(weights.sum(axis=1) - 1.0) <= ON_THE_SIMPLEX)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"weights {weights[row].tolist()} (row {row}) are outside the simplex; "
            "expected numbers of at least 0 that sum to 1, because the fit holds only between the policies"
        )
