"""Measures of a front corrected for the choice of the best of noisy points, with intervals.

A hypervolume or an expected utility is made of maxima over points. A maximum over noisy means is biased upwards, the
more so the more points lie close to each other, and a bootstrap of the means doubles that bias instead of showing it.
Two corrections are mixed here, because one leaves a little too much and the other takes a little too much:

- Shrinking. Between points, mean scores spread more than true ones: by the noise. Deviations from the group's mean are
  shrunk until their second moments are those without noise (Louis 1984), and the bias is what the bootstrap finds at
  the shrunk means. Points that coincide shrink to one; points far apart stay.
- Held-out choice. Every direction's best point is chosen under one noise and measured under another that is
  independent of it, as on held-out prompts: `m + a e` and `m - e / a`, for e with the covariance of the means m.
  Nothing can be chosen for its luck, so that the bias is downwards.

The error is the standard deviation of the shrinking estimate over a second level of the bootstrap, and a share of the
correction itself, which is an estimate. The shares in the mix and in the error were chosen by simulation;
`docs/statistics.md` has the coverage.

Letters: R resamples, n points, P prompts, K objectives, D directions.

Sources: Louis, JASA 79 (1984), 393-398 (constrained shrinking); Efron and Tibshirani, An Introduction to the Bootstrap
(1993), ch. 10 (bias); Leiner, Duan, Wasserman and Ramdas, arXiv 2112.11079 (noise added for an independent copy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, bootstrap_counts, bootstrap_hypervolumes
from rlhf_lines.pareto.intervals import Estimate, estimate
from rlhf_lines.pareto.measures import hypervolume
from rlhf_lines.pareto.utility import CHUNK, expected_utility, preferences, utilities


OUTER, INNER = 160, 10  # resamples of the first level, and of the second, each used with both signs
DRAWN = OUTER + INNER
HELD_OUT = 100  # of the first level, for the held-out choice, with both signs
ADDED_NOISE = 0.5  # a: little noise chooses almost as well as all prompts do
MOST_DOUBTED = 1.5  # standard deviations of a correction
WIDENED = 0.1  # times the share of the held-out choice, which varies more than what is resampled
ROUNDING = 1e-12  # of a measure: smaller differences have no meaning, and neither has their spread
DIRECTIONS = 32  # for each dimension


class Measure(Protocol):
    """A number for a group of points, made of maxima over them.

    `held_out_share` is the share of the held-out choice in the mix, `doubt` that of the correction in the error. Both
    are larger for an expected utility: on a smooth front many points are nearly best for a preference, and shrinking
    leaves more of its bias.
    """

    held_out_share: ClassVar[float]
    doubt: ClassVar[float]

    def value(self, means: NDArray[np.float64]) -> float:
        """The measure of mean scores `[n, K]`."""

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """The measure, shape `[R]`, of mean scores `[R, n, K]`; may have an error that is the same in all of them."""

    def held_out(self, means: NDArray[np.float64], noise: NDArray[np.float64], added: float) -> float:
        """Chosen at `means + added noise`, measured at `means - noise / added`, less the measure of `means` itself.

        The mean over `noise` `[R, n, K]`, for means `[n, K]`.
        """


@dataclass(frozen=True)
class Hypervolume:
    """The hypervolume above a fixed reference point, of any K.

    Along a direction u with positive parts, the front reaches as far as `rho(u) = max_i min_k (s_ik - r_k) / u_k`. For
    u on those faces of the unit cube where one part is 1, the hypervolume is the integral of `rho^K / K`.
    """

    reference_point: tuple[float, ...]
    held_out_share: ClassVar[float] = 0.2
    doubt: ClassVar[float] = 0.2

    def value(self, means: NDArray[np.float64]) -> float:
        """See `Measure`."""
        return hypervolume(means, self.reference_point)

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Measure`."""
        return bootstrap_hypervolumes(means, self.reference_point)

    def held_out(self, means: NDArray[np.float64], noise: NDArray[np.float64], added: float) -> float:
        """See `Measure`. Measured to first order in the noise, so that nothing but the choice has a bias."""
        objectives = means.shape[1]
        sides = (means - self.reference_point).max(axis=0)
        if (sides <= 0.0).any():
            return 0.0
        above, noise = (means - self.reference_point) / sides, noise / sides
        directions = _cube_faces(objectives)
        reach = _reach(above, directions)  # [n, D]
        bound_by = (above[:, None] / directions).argmin(axis=2)
        columns = np.arange(len(directions))
        held = np.maximum(reach, 0.0)
        slope = objectives * held ** (objectives - 1) / directions[columns, bound_by]
        best = _reach(above + added * noise, directions).argmax(axis=1)  # [R, D]
        error = noise[np.arange(len(noise))[:, None], best, bound_by[best, columns]]
        measured = held[best, columns] ** objectives - slope[best, columns] * error / added
        excess = measured.mean(axis=0) - held.max(axis=0) ** objectives
        return float(sides.prod() * excess.mean())  # K faces, each a 1 / K


@dataclass(frozen=True)
class ExpectedUtility:
    """The expected utility between a fixed reference point and a fixed ideal point."""

    reference_point: tuple[float, ...]
    ideal_point: tuple[float, ...]
    held_out_share: ClassVar[float] = 0.4
    doubt: ClassVar[float] = 0.3

    def value(self, means: NDArray[np.float64]) -> float:
        """See `Measure`."""
        return float(expected_utility(utilities(means[None], self.reference_point, self.ideal_point))[0])

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Measure`. Over fewer preferences than `value`."""
        step = max(1, CHUNK // (means.shape[1] * means.shape[2] * DIRECTIONS))
        chunks = (means[start : start + step] for start in range(0, len(means), step))
        return np.concatenate([self._by_preference(chunk).max(axis=1).mean(axis=1) for chunk in chunks])

    def held_out(self, means: NDArray[np.float64], noise: NDArray[np.float64], added: float) -> float:
        """See `Measure`."""
        points = self._by_preference(means)  # [n, D]
        moved = self._by_preference(means + noise) - points  # [R, n, D]
        best = (points + added * moved).argmax(axis=1)[:, None]
        measured = np.take_along_axis(points - moved / added, best, axis=1)
        return float((measured[:, 0] - points.max(axis=0)).mean())

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
        resampled: `[OUTER]`, the estimate in resamples (widened), for the error; paired between groups. Of a
            difference, how far each is from their mean.
        prompts: P.
        doubt: share of the correction in the error.
        is_difference: of two groups; it may be 0 or less.
    """

    value: float
    corrected: float
    resampled: NDArray[np.float64]
    prompts: int
    doubt: float
    is_difference: bool = False

    def __sub__(self, other: Corrected) -> Corrected:
        if self.prompts != other.prompts or self.resampled.shape != other.resampled.shape:
            raise ValueError(
                f"got measures over {self.prompts} and {other.prompts} prompts; a difference needs the same prompts"
            )
        size = max(np.abs(each.resampled).max() for each in (self, other))
        rounding = ROUNDING * max(size, abs(self.value), abs(other.value))

        def apart(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
            """`a - b`, and 0 where the same points in another order would differ as much."""
            difference = np.subtract(a, b)
            return np.where(np.abs(difference) <= rounding, 0.0, difference)

        resampled = self.resampled - other.resampled
        return Corrected(
            float(apart(self.value, other.value)),
            float(apart(self.corrected, other.corrected)),
            apart(resampled, resampled.mean()),
            self.prompts,
            self.doubt,
            is_difference=True,
        )

    @property
    def standard_error(self) -> float:
        """`hypot(sd, doubt min(|value - corrected|, MOST_DOUBTED sd))`, with sd that of `resampled`."""
        if self.prompts < 2:
            return math.nan
        spread = float(self.resampled.std(ddof=1))
        return math.hypot(spread, self.doubt * min(abs(self.value - self.corrected), MOST_DOUBTED * spread))

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The corrected number with interval and p-value: Student's t with P - 1 degrees of freedom.

        No interval is given for one prompt, and none for a group of its own whose corrected measure is not above 0: its
        points are then as near to the reference point as noise is wide. A difference of two such groups has one.
        """
        if not self.is_difference and self.corrected <= 0.0:
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

    Raises:
        ValueError: `scores` does not have three axes.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3:
        raise ValueError(f"scores have shape {scores.shape}; expected [points, prompts, objectives]")
    prompts = scores.shape[1]
    means = scores.mean(axis=1)
    value = measure.value(means)
    if prompts < 2:
        return Corrected(value, value, np.zeros(OUTER), prompts, measure.doubt)
    if noise is None:
        noise = resampled_noise(scores, bootstrap_counts(prompts, DRAWN, seed) if counts is None else counts)
    outer, inner = noise[:OUTER], both_signs(noise[OUTER:])
    shrunk = Shrinking(noise)

    def estimates(resamples: NDArray[np.float64]) -> NDArray[np.float64]:  # [R, n, K] to [R]
        centres = shrunk(resamples)
        moved = (centres[:, None] + inner).reshape(-1, *means.shape)
        bias = measure.values(moved).reshape(len(centres), -1).mean(axis=1) - measure.values(centres)
        return measure.values(resamples) - bias

    share = measure.held_out_share
    resampled = (1.0 + WIDENED * share) * estimates(shrunk(means[None]) + outer)
    left = float((estimates(means[None]) - measure.values(means[None]))[0])
    held_out = measure.held_out(means, both_signs(outer[:HELD_OUT]), ADDED_NOISE)
    return Corrected(value, value + (1.0 - share) * left + share * held_out, resampled, prompts, measure.doubt)


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


def _cube_faces(objectives: int) -> NDArray[np.float64]:
    """Directions `[D, K]`, spread evenly over the K faces of the unit cube on which one part is 1."""
    if objectives == 1:
        return np.ones((1, 1))
    cuts = _spread(objectives - 1)
    return np.concatenate([np.insert(cuts, face, 1.0, axis=1) for face in range(objectives)])


def _spread(dimensions: int) -> NDArray[np.float64]:
    """Points in the open unit cube: midpoints, or the R sequence (Roberts 2018) in more dimensions than one."""
    count = DIRECTIONS * dimensions
    if dimensions == 1:
        return (np.arange(count)[:, None] + 0.5) / count
    root = 2.0  # becomes the solution of x^(dimensions + 1) = x + 1
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = root ** -np.arange(1.0, dimensions + 1)
    return (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0


def _reach(above: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """`min_k above_k / u_k`, shape `[..., n, D]`, for `[..., n, K]`."""
    reach = above[..., 0, None] / directions[:, 0]
    for k in range(1, above.shape[-1]):
        np.minimum(reach, above[..., k, None] / directions[:, k], out=reach)
    return reach
