"""Expected utility: how good the best point of a group is for a user whose preference we do not know.

Letters: n points, K rewards, M preferences, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray


PREFERENCES = 1024  # for three or more rewards
CHUNK = 4_000_000  # numbers held at once
FLAT = 1e-12  # a reward with a smaller range, relative to its values, has none
UTILITY_RULE = (
    "mean over preferences w (at least 0, sum 1, all equally likely) of the highest w . u of any point, with u = "
    "(mean score - reference point) / (ideal point - reference point) per reward, 0 for a reward without range; exact "
    f"for two rewards, over {PREFERENCES} fixed quasi-random preferences for more"
)


def ideal_point(scores: ArrayLike) -> list[float]:
    """The highest of mean scores `[n, K]` per objective, of the points that the reference point is taken from.

    >>> ideal_point([[0.0, 30.0], [1.0, 10.0]])
    [1.0, 30.0]
    """
    return np.asarray(scores, dtype=np.float64).max(axis=0).tolist()


def utilities(scores: ArrayLike, reference_point: Sequence[float], ideal_point: Sequence[float]) -> NDArray[np.float64]:
    """Score `[..., K]` in units of the range of their objective: 0 at the reference point, 1 at the ideal.

    `u = (score - reference) / (ideal - reference)`; a point beyond them has a utility below 0 or above 1. An objective
    without a range, whose ideal is not above its reference, has the utility 0 everywhere.

    >>> utilities([[0.0, 20.0], [1.0, 25.0]], [-1.0, 10.0], [1.0, 30.0]).tolist()
    [[0.5, 0.5], [1.0, 0.75]]
    """
    reference, ideal = np.asarray(reference_point, np.float64), np.asarray(ideal_point, np.float64)
    spread = ideal - reference
    flat = spread <= FLAT * np.maximum(np.abs(ideal), np.abs(reference))
    return np.where(flat, 0.0, (np.asarray(scores, np.float64) - reference) / np.where(flat, 1.0, spread))


def preferences(rewards: int, count: int = PREFERENCES) -> NDArray[np.float64]:
    """Preferences spread evenly over the simplex, shape `[M, K]`: at least 0, every row sums to 1.

    Halton's sequence in K - 1 dimensions, sorted within each row, cuts [0, 1] into K gaps; the gaps of sorted uniform
    numbers are uniform on the simplex (Dirichlet with all parameters 1). The set does not depend on a seed, so that
    expected utilities of different runs can be compared, and its error falls nearly as 1/M instead of 1/sqrt(M).

    Source: Halton, Numerische Mathematik 2 (1960), 84-90; Devroye, Non-Uniform Random Variate Generation (1986), V.2
    (spacings).
    """
    columns = [_radical_inverse(count, base) for base in islice(_primes(), rewards - 1)]
    cuts = np.sort(np.stack(columns, axis=1), axis=1) if columns else np.empty((count, 0))
    return np.diff(cuts, axis=1, prepend=0.0, append=1.0)


def expected_utility(utilities: ArrayLike) -> NDArray[np.float64]:
    """The mean over preferences of the utility of the best point, shape `[R]`.

    `EU = mean_w max_i w . u_i` with w uniform on the simplex: a user who has the preference w takes the point that is
    best under it. For two rewards this is the exact integral of the upper envelope of n lines over [0, 1]; for more it
    is the mean over `preferences`.

    The two corners of the unit square: the integral of max(w, 1 - w) is 3/4.

    >>> expected_utility([[[1.0, 0.0], [0.0, 1.0]]]).tolist()
    [0.75]

    Args:
        utilities: `[R, n, K]`, from `utilities`.

    Source: Zintgraf, Kanters, Roijers, Oliehoek and Beau, Quality assessment of MORL algorithms: a utility-based
    approach, Benelearn 2015 (the expected utility metric).

    Raises:
        ValueError: the array does not have three axes or one of them is empty.
    """
    utilities = np.asarray(utilities, dtype=np.float64)
    if utilities.ndim != 3 or 0 in utilities.shape:
        raise ValueError(f"utilities have shape {utilities.shape}; expected [resamples, points, rewards], none empty")
    resamples, points, rewards = utilities.shape
    if rewards == 2:
        return _integral_of_envelope(utilities[..., 1], utilities[..., 0] - utilities[..., 1])
    weights = preferences(rewards) if rewards > 1 else np.ones((1, 1))
    step = max(1, CHUNK // (points * len(weights)))
    chunks = (utilities[start : start + step] for start in range(0, resamples, step))
    return np.concatenate([(chunk @ weights.T).max(axis=1).mean(axis=1) for chunk in chunks])


def _integral_of_envelope(heights: NDArray[np.float64], slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """`integral_0^1 max_i (heights_i + slopes_i w) dw`, shape `[R]`, for `[R, n]` lines.

    Walks along the envelope from w = 0, in all rows at once: the next line is the one of those steeper than the current
    that crosses it first. Slopes grow with each step, so there are at most n, and the pieces cover [0, 1] without a gap
    whatever the rounding.
    """
    rows = np.arange(len(heights))
    line = heights.argmax(axis=1)
    position, total = np.zeros(len(heights)), np.zeros(len(heights))
    while (position < 1.0).any():
        height, slope = heights[rows, line], slopes[rows, line]
        steeper = slopes > slope[:, None]
        gain = np.where(steeper, slopes - slope[:, None], 1.0)
        crossings = np.where(steeper, (height[:, None] - heights) / gain, np.inf)
        crossings = np.clip(crossings, position[:, None], 1.0)
        end = crossings.min(axis=1)
        total += (end - position) * (height + slope * (position + end) / 2)
        line = np.where(steeper.any(axis=1), np.where(steeper, crossings, np.inf).argmin(axis=1), line)
        position = end
    return total


def _radical_inverse(count: int, base: int) -> NDArray[np.float64]:
    """The numbers 1..count with their digits in a base mirrored at the point: 6 = 110b gives 0.011b = 0.375."""
    rest, unit, mirrored = np.arange(1, count + 1), 1.0, np.zeros(count)
    while rest.any():
        unit /= base
        mirrored += unit * (rest % base)
        rest = rest // base
    return mirrored


def _primes():
    found: list[int] = []
    number = 2
    while True:
        if all(number % prime for prime in found):
            found.append(number)
            yield number
        number += 1
