"""Measures of a front corrected for the choice of the best of noisy points, with intervals.

A hypervolume or an expected utility is made of maxima over points. A maximum over noisy means is biased upwards, the
more so the more points lie close to each other, and a bootstrap of the means doubles that bias instead of showing it.
Two corrections are mixed here:

- Shrinking. Between points, mean scores spread more than true ones: by the noise. Deviations from the group's mean are
  shrunk until their second moments are those without noise (Louis 1984), and the bias is what the bootstrap finds at
  the shrunk means. Points far apart stay. Points that coincide shrink to one in the mean over data, not in each, so
  that a part of their bias is left.
- Extrapolation. More noise of the same kind is added to the means, and what the measure gains by it is carried on to no
  noise at all (Cook and Stefanski 1994), as if the bias grew in proportion to the noise. It does where points
  coincide; where they are far apart it grows with the square of the noise, and this takes too much.

How fast it grows can be seen: the gains by sqrt(2) and by 2 times the noise give the order p of the growth. The share
of the extrapolation follows from it. All of this is done again in every resample around the shrunk means: the error is
the standard deviation of what comes out. `docs/statistics.md` has the coverage.

Letters: R resamples, n points, P prompts, K objectives, D directions of a utility.

Sources: Louis, JASA 79 (1984), 393-398 (constrained shrinking); Efron and Tibshirani, An Introduction to the Bootstrap
(1993), ch. 10 (bias); Cook and Stefanski, JASA 89 (1994), 1314-1328 (simulation and extrapolation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, bootstrap_counts, bootstrap_hypervolumes
from rlhf_lines.pareto.intervals import Estimate, estimate, is_sparse
from rlhf_lines.pareto.measures import hypervolume
from rlhf_lines.pareto.utility import CHUNK, expected_utility, preferences, utilities


OUTER, INNER = 120, 8  # resamples of the first level, and of the second, each used with both signs
DRAWN = OUTER + INNER
ADDED = 80  # of the first level, with both signs in place of the second level's, for the number itself
MOST_EXTRAPOLATED = 0.8  # share of the extrapolation where the bias grows in proportion to the noise
ROUNDING = 1e-12  # of a measure: smaller differences have no meaning, and neither has their spread
DIRECTIONS = 32  # for each dimension


class Measure(Protocol):
    """A number for a group of points, made of maxima over them."""

    def value(self, means: NDArray[np.float64]) -> float:
        """The measure of mean scores `[n, K]`."""

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """The measure, shape `[R]`, of mean scores `[R, n, K]`; may have an error that is the same in all of them."""


@dataclass(frozen=True)
class Hypervolume:
    """The hypervolume above a fixed reference point, of any K."""

    reference_point: tuple[float, ...]

    def value(self, means: NDArray[np.float64]) -> float:
        """See `Measure`."""
        return hypervolume(means, self.reference_point)

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Measure`."""
        return bootstrap_hypervolumes(means, self.reference_point)


@dataclass(frozen=True)
class ExpectedUtility:
    """The expected utility between a fixed reference point and a fixed ideal point."""

    reference_point: tuple[float, ...]
    ideal_point: tuple[float, ...]

    def value(self, means: NDArray[np.float64]) -> float:
        """See `Measure`."""
        return float(expected_utility(utilities(means[None], self.reference_point, self.ideal_point))[0])

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Measure`. Over fewer preferences than `value`."""
        step = max(1, CHUNK // (means.shape[1] * means.shape[2] * DIRECTIONS))
        chunks = (means[start : start + step] for start in range(0, len(means), step))
        return np.concatenate([self._by_preference(chunk).max(axis=1).mean(axis=1) for chunk in chunks])

    def _by_preference(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        objectives = means.shape[-1]
        weights = preferences(objectives, DIRECTIONS * objectives) if objectives > 1 else np.ones((1, 1))
        return utilities(means, self.reference_point, self.ideal_point) @ weights.T


@dataclass(frozen=True)
class Corrected:
    """A measure of one group, or the difference `a - b` of two that were corrected with the same prompts and seed.

    Attributes:
        value: the measure of the mean scores as they are.
        corrected: the same without the bias of choosing among noisy points; the interval lies around it.
        resampled: `[OUTER]`, the same in resamples, for the error; paired between groups. Of a difference, how far each
            is from their mean.
        prompts: P.
        is_difference: of two groups; it may be 0 or less.
        is_sparse: whether a score of some point is one number at nearly all prompts.
    """

    value: float
    corrected: float
    resampled: NDArray[np.float64]
    prompts: int
    is_difference: bool = False
    is_sparse: bool = False

    def __sub__(self, other: Corrected) -> Corrected:
        if self.prompts != other.prompts or self.resampled.shape != other.resampled.shape:
            raise ValueError(
                f"got measures over {self.prompts} and {other.prompts} prompts; a difference needs the same prompts"
            )
        size = max(np.abs(each.resampled).max() for each in (self, other))
        rounding = ROUNDING * max(size, abs(self.value), abs(other.value))

        def less(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
            """`a - b`, and 0 where the same points in another order would differ as much."""
            difference = np.subtract(a, b)
            return np.where(np.abs(difference) <= rounding, 0.0, difference)

        resampled = self.resampled - other.resampled
        return Corrected(
            float(less(self.value, other.value)),
            float(less(self.corrected, other.corrected)),
            less(resampled, resampled.mean()),
            self.prompts,
            is_difference=True,
        )

    @property
    def standard_error(self) -> float:
        """The standard deviation of `resampled`; NaN for one prompt."""
        return math.nan if self.prompts < 2 else float(self.resampled.std(ddof=1))

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The corrected number with interval and p-value: Student's t with P - 1 degrees of freedom.

        No interval is given for one prompt, and none for a group of its own whose corrected measure is not above 0 (its
        points are then as near to the reference point as noise is wide, or below it), or a score of which is the same
        at nearly all prompts: what its resamples do not show may be large. A difference of such groups has one, unless
        nothing in it varies and it is not 0.
        """
        alone = not self.is_difference and (self.corrected <= 0.0 or self.is_sparse)
        if alone or (self.corrected != 0.0 and self.standard_error == 0.0):
            return Estimate(self.corrected, None, None, None)
        return estimate(self.corrected, self.standard_error, self.prompts, confidence)


def correct(
    scores: ArrayLike,
    measure: Measure,
    seed: int = 0,
    *,
    counts: ArrayLike | None = None,
    noise: NDArray[np.float64] | None = None,
) -> Corrected:
    """A measure of a group of points, corrected for the choice of the best of them.

    `scores` may be linear combinations of measured ones, prompt by prompt, such as points between two weights. For a
    difference of two groups, correct each with the same prompts in the same order and the same seed, and subtract.

    Args:
        scores: `[n, P, K]`, one score per point, prompt and objective (averaged over samples of the prompt).
        measure: `Hypervolume` or `ExpectedUtility`.
        seed: seed of the resampled prompts.
        counts: `[DRAWN, P]`, how often each prompt is drawn, in place of the seed's own draws.
        noise: `[DRAWN, n, K]`, draws of the error of the mean scores, in place of those that resampled prompts make.

    Points that have the same scores at every prompt count once.

    Raises:
        ValueError: `scores` does not have three axes, or holds a number that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3:
        raise ValueError(f"scores have shape {scores.shape}; expected [points, prompts, objectives]")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores hold {scores[~np.isfinite(scores)][0]}; expected finite numbers")
    first = np.sort(np.unique(scores.reshape(len(scores), -1), axis=0, return_index=True)[1])
    scores, prompts = scores[first], scores.shape[1]
    means = scores.mean(axis=1)
    value = measure.value(means)
    if prompts < 2:
        return Corrected(value, value, np.zeros(OUTER), prompts)
    if noise is None:
        noise = resampled_noise(scores, bootstrap_counts(prompts, DRAWN, seed) if counts is None else counts)
    else:
        noise = noise[:, first]
    outer, inner = noise[:OUTER], both_signs(noise[OUTER:])
    shrunk = Shrinking(noise)

    def estimates(resamples: NDArray[np.float64], added: NDArray[np.float64]) -> NDArray[np.float64]:
        """`[R]`, for means `[R, n, K]` and noise `[A, n, K]` of both signs."""

        def with_noise(centres: NDArray[np.float64], times: float) -> NDArray[np.float64]:
            moved = (centres[:, None] + times * added).reshape(-1, *means.shape)
            return measure.values(moved).reshape(len(centres), -1).mean(axis=1)

        plain, centres = measure.values(resamples), shrunk(resamples)
        # Noise of variance 1 and 3 on top of that in the means: sqrt(2) and 2 times as much in all.
        by_root_2, by_2 = (with_noise(resamples, math.sqrt(more)) - plain for more in (1.0, 3.0))
        share = extrapolated_share(by_root_2, by_2)
        bias = with_noise(centres, 1.0) - measure.values(centres)
        return plain - (1.0 - share) * bias - share * by_2

    taken = measure.values(means[None]) - estimates(means[None], both_signs(outer[:ADDED]))
    sparse = any(is_sparse(column) for point in scores for column in point.T)
    resampled = estimates(shrunk(means[None]) + outer, inner)
    return Corrected(value, value - float(taken[0]), resampled, prompts, is_sparse=sparse)


def extrapolated_share(by_root_2: NDArray[np.float64], by_2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the extrapolation, by what a measure gains by sqrt(2) and by 2 times its noise, both `[R]`.

    A bias of `b t^p` at the noise t gains `b (2^(p/2) - 1)` and `b (2^p - 1)`, so that p is
    `2 log2(by_2 / by_root_2 - 1)`. The share is `MOST_EXTRAPOLATED (2 - p)^2` for p from 1, where the second gain is
    the bias itself, to 2. It is 0 where the measure does not gain.

    >>> orders = np.array([1.0, 1.5, 2.0])
    >>> extrapolated_share(2 ** (orders / 2) - 1, 2**orders - 1).round(9).tolist()
    [0.8, 0.2, 0.0]
    """
    grows = (by_root_2 > 0.0) & (by_2 > by_root_2)
    order = 2.0 * np.log2(np.divide(by_2, by_root_2, out=np.full_like(by_2, 3.0), where=grows) - 1.0)
    return MOST_EXTRAPOLATED * np.clip(2.0 - order, 0.0, 1.0) ** 2


def resampled_noise(scores: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """Draws of the error of mean scores, shape `[R, n, K]`, for scores `[n, P, K]` and counts `[R, P]` of the prompts.

    `sqrt(P / (P - 1)) (mean under resampled prompts - mean)`: the factor gives it the unbiased covariance of a mean.
    The counts may be those of some of the prompts that were drawn from; their sum over these need not be P.
    """
    scores = np.asarray(scores, dtype=np.float64)
    points, prompts, objectives = scores.shape
    weights = (np.asarray(counts) - 1.0) / math.sqrt(prompts * (prompts - 1))
    columns = scores - scores.mean(axis=1, keepdims=True)
    return (weights @ columns.transpose(1, 0, 2).reshape(prompts, -1)).reshape(-1, points, objectives)


class Shrinking:
    """Means drawn towards the mean of their group until they spread as they would without noise.

    With S the covariance of n means between points and N the part that noise has in it, deviations d (rows) become
    `d T` with `T' S T = S - N` where S exceeds N, and 0 where it does not. Directions without noise stay as they are.
    In directions where S + N is 1 and N is m, T is the root of `(1 - 2 m) / (1 - m)`: nothing is divided by a noise or
    a spread that is next to nothing.
    """

    def __init__(self, noise: NDArray[np.float64]) -> None:
        """Args: noise: `[R, n, K]`, draws of the error of the means."""
        apart = noise - noise.mean(axis=1, keepdims=True)
        self._noise = np.einsum("rnk,rnl->kl", apart, apart) / (len(noise) * max(1, noise.shape[1] - 1))

    def __call__(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """The shrunk means, for `[R, n, K]`."""
        points, objectives = means.shape[1:]
        if points < 2:
            return means
        apart = means - means.mean(axis=1, keepdims=True)
        total = apart.swapaxes(1, 2) @ apart / (points - 1) + self._noise
        unit = np.sqrt(np.diagonal(total, axis1=1, axis2=2))
        unit = np.where(unit > 0.0, unit, 1.0)
        variances, axes = np.linalg.eigh(total / (unit[:, :, None] * unit[:, None]))
        there = variances > 1e-12 * objectives
        roots = np.sqrt(np.where(there, variances, 1.0))
        whiten = axes * (there / roots)[:, None] / unit[:, :, None]
        restore = (axes * (there * roots)[:, None]).swapaxes(1, 2) * unit[:, None]
        shares, axes = np.linalg.eigh(whiten.swapaxes(1, 2) @ self._noise @ whiten)
        kept = np.sqrt(np.maximum(0.0, 1.0 - 2.0 * shares) / np.maximum(0.5, 1.0 - shares))
        change = (axes * (kept - 1.0)[:, None]) @ axes.swapaxes(1, 2)
        return means + apart @ whiten @ change @ restore


def both_signs(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """`noise` `[R, ...]` and its mirror image `[2 R, ...]`, whose mean is exactly 0."""
    return np.concatenate([noise, -noise])
