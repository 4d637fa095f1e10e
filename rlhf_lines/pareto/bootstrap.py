"""Bootstrap over prompts: how far scores and hypervolumes would move with other prompts of the same kind.

Letters: R resamples, n points, P prompts, K rewards. Every function is a pure function of its arguments. The resampled
prompts depend only on (P, resamples, seed), so all points see the same resamples (paired) in whatever order they come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.student import critical_value


CONFIDENCE = 0.95
MANY_PROMPTS = 50  # from which on percentile intervals of means hold what they say
RESAMPLES = 2000


@lru_cache(maxsize=2)  # of a run's prompts and of its texts outside the task: every point asks for the same
def bootstrap_counts(prompts: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each prompt occurs in each resample, shape `[R, P]`; every row sums to P.

    Row r counts the r-th draw of P indices with replacement from `Generator(PCG64(seed))`. The array is shared by
    equal calls and cannot be written to.

    Raises:
        ValueError: `prompts` or `resamples` is below 1.
    """
    if prompts < 1 or resamples < 1:
        raise ValueError(f"got {prompts} prompts and {resamples} resamples; the bootstrap needs at least one of each")
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = np.empty((resamples, prompts))
    for row in counts:
        row[:] = np.bincount(generator.integers(prompts, size=prompts), minlength=prompts)
    counts.flags.writeable = False
    return counts


def bootstrap_means(scores: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Mean scores under resampled prompts, shape `[R, n, K]`, in float64.

    `means[r, i, k] = (1/P) sum_p counts[r, p] scores[i, p, k]`: one matrix product, the same counts for all points.

    Args:
        scores: `[n, P, K]`, one score per point, prompt and reward (averaged over samples of the prompt).
        resamples: R.
        seed: seed of the resampled prompts.

    Raises:
        ValueError: `scores` does not have three axes.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3:
        raise ValueError(f"scores have shape {scores.shape}; expected [points, prompts, rewards]")
    points, prompts, rewards = scores.shape
    counts = bootstrap_counts(prompts, resamples, seed)
    columns = scores.transpose(1, 0, 2).reshape(prompts, points * rewards)
    return (counts @ columns).reshape(resamples, points, rewards) / prompts


def bootstrap_hypervolumes(means: ArrayLike, reference_point: Sequence[float]) -> NDArray[np.float64]:
    """The hypervolume of each resample, shape `[R]`, for mean scores `[R, n, K]` of one group of points.

    The reference point stays fixed, so that differences between resamples come from the scores alone. A maximum over
    noisy points is biased upwards, and the bootstrap repeats that bias: compare hypervolumes of two groups by their
    paired difference rather than each with zero.
    """
    means, reference = np.asarray(means, dtype=np.float64), np.asarray(reference_point, dtype=np.float64)
    if means.shape[-1] <= 2:  # without a loop
        sides = np.maximum(means - reference, 0.0)
        return sides[..., 0].max(axis=1) if means.shape[-1] == 1 else _areas(sides)
    # Turned round at once: to maximise, moocore copies and turns each resample, which takes as long as all the rest.
    indicator = moocore.Hypervolume(ref=-reference)
    return np.array([indicator(resample) for resample in -means])


def _areas(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """The areas of unions of n rectangles with one corner at the origin, shape `[R]`, for sides `[R, n, 2]`.

    From the widest rectangle to the narrowest, each adds its width times what it rises above all before it.
    """
    order = np.argsort(-sides[..., 0], axis=-1)
    widths, heights = (np.take_along_axis(sides[..., k], order, axis=-1) for k in range(2))
    tops = np.maximum.accumulate(heights, axis=-1)
    return (widths * np.diff(tops, axis=-1, prepend=0.0)).sum(axis=-1)


def interval(samples: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval `(low, high)` of `samples` `[R]`.

    Cuts `(1 - confidence) / 2` from each end, with linear interpolation between order statistics.

    >>> interval([0.0, 1.0, 2.0, 3.0, 4.0], confidence=0.5)
    (1.0, 3.0)

    Raises:
        ValueError: `confidence` is not inside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1, for example 0.95")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.asarray(samples, dtype=np.float64), [tail, 1.0 - tail])
    return float(low), float(high)


def mean_interval(
    samples: ArrayLike, mean: float, prompts: int, confidence: float = CONFIDENCE
) -> tuple[float, float] | tuple[None, None]:
    """The interval of a mean over P prompts from its resamples `[R]`; `(None, None)` for one prompt.

    The percentile interval; below 50 prompts, where it is too narrow, its ends are moved away from the mean by

        t(P - 1) / z * sqrt(P / (P - 1))

    with the quantiles of Student's and the normal distribution. From 50 prompts on that factor is below 1.04.
    `docs/statistics.md` has the simulated coverage.
    """
    if prompts < 2:
        return None, None
    low, high = interval(samples, confidence)
    if prompts < MANY_PROMPTS:
        z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
        factor = critical_value(confidence, prompts - 1) / z * math.sqrt(prompts / (prompts - 1))
        low, high = (mean + factor * (end - mean) for end in (low, high))
    return float(low), float(high)


def probability_positive(samples: ArrayLike) -> float:
    """The share of `samples` above zero; a sample of exactly zero counts half.

    >>> probability_positive([-1.0, 0.0, 1.0, 2.0])
    0.625
    """
    samples = np.asarray(samples, dtype=np.float64)
    return float(np.mean(samples > 0) + 0.5 * np.mean(samples == 0))
