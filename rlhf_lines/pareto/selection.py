"""What is known of a point that was picked because it looked best.

The highest of noisy means is high by luck, too, so what it says of the picked point is too much (the winner's curse).
And several points may be as good.

Letters: R resamples, n points, P prompts.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, RESAMPLES, bootstrap_counts
from rlhf_lines.pareto.corrected import Hypervolume, Shrinking, both_signs, correct, resampled_noise
from rlhf_lines.pareto.intervals import Estimate, estimate, is_sparse
from rlhf_lines.pareto.student import critical_value


OUTER, INNER = 200, 100  # resamples of the first level, and of the second, each used with both signs
ADDED_NOISE = 0.5  # a: little noise chooses almost as well as all prompts do


def picked_worth(worth: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The mean worth of the best-looking of n points, corrected for having been picked, with an interval.

    The point is picked again under added noise and measured under noise that is independent of it, as on held-out
    prompts: the mean over noise e of `m_i - e_i / a` with i the best of `m + a e`. The error is the standard deviation
    of the same in resamples around shrunk means, against what the point that each of them picks is worth there
    (`corrected.py`). `worth.mean(axis=1).max()` is the number that is too high. Where the worth of a point `is_sparse`
    there is no interval.

    Args:
        worth: `[n, P]`, what each point is worth on each prompt, such as `scores @ preference`.
        seed: seed of the resampled prompts.
        confidence: coverage of the interval.

    Raises:
        ValueError: the array does not have two axes, or one of them is empty.
    """
    worth = _as_matrix(worth)
    means, prompts = worth.mean(axis=1), worth.shape[1]
    if prompts < 2:
        return Estimate(float(means.max()), None, None, None)
    noise = resampled_noise(worth[..., None], bootstrap_counts(worth.shape[1], RESAMPLES, seed))
    centres = Shrinking(noise)(means[None, :, None])[..., 0]
    noise = noise[..., 0]
    value = _held_out(means, both_signs(noise))
    if any(np.ptp(row) > 0.0 and is_sparse(row) for row in worth):
        return Estimate(value, None, None, None)
    resampled = centres + noise[:OUTER]
    truth = centres[0, resampled.argmax(axis=1)]
    again = both_signs(noise[OUTER : OUTER + INNER])
    error = np.std(np.array([_held_out(row, again) for row in resampled]) - truth, ddof=1)
    return estimate(value, float(error), prompts, confidence)


def difference_of_best(a: ArrayLike, b: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The worth of the best of points a less that of the best of points b, with an interval and a p-value.

    `max_i mean(a_i) - max_j mean(b_j)`, each corrected for being the highest of noisy means and paired over prompts
    (`corrected.py`): of one objective, the hypervolume above any number is the highest mean less that number. Points
    may be in both.

    Args:
        a: `[n, P]`, what each point is worth on each prompt.
        b: `[m, P]`, the same of other points, on the same prompts.
        seed: seed of the resampled prompts.
        confidence: coverage of the interval.

    Raises:
        ValueError: an array does not have two axes, or one of them is empty, or the prompts are not as many.
    """
    a, b = _as_matrix(a), _as_matrix(b)
    measure = Hypervolume((float(min(a.min(), b.min())),))
    best = [correct(worth[..., None], measure, seed) for worth in (a, b)]
    return (best[0] - best[1]).estimate(confidence)


def may_be_best(worth: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> list[int]:
    """The rows of `worth` `[n, P]` that cannot be told apart from the best, in ascending order.

    In `confidence` of all runs the truly best point is among them. Row j is left out if another is better by more than
    noise explains: `max_i (m_i - m_j) / se_ij` is above its `confidence` quantile under no difference, which the
    bootstrap gives for all i at once (max-t), widened for few prompts as Student's t is wider than the normal
    distribution. `se_ij` is the error of the paired difference; one without error is no noise.

    Source: Gupta, Technometrics 7 (1965), 225-245 (subset selection); Romano and Wolf, JASA 100 (2005), 94-108 (max-t).

    Raises:
        ValueError: the array does not have two axes, or one of them is empty.
    """
    worth = _as_matrix(worth)
    points, prompts = worth.shape
    if prompts < 2:
        return list(range(points))
    means = worth.mean(axis=1)
    noise = resampled_noise(worth[..., None], bootstrap_counts(worth.shape[1], RESAMPLES // 2, seed))[..., 0]
    widened = critical_value(confidence, prompts - 1) / NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    rounding = 1e-12 * np.abs(worth).max()
    kept = []
    for j in range(points):
        ahead = means - means[j]
        errors = (worth - worth[j]).std(axis=1, ddof=1) / math.sqrt(prompts)
        noisy = errors > rounding
        highest = np.max(ahead[noisy] / errors[noisy], initial=0.0)
        by_chance = np.max((noise - noise[:, [j]])[:, noisy] / errors[noisy], axis=1, initial=0.0)
        if highest <= widened * np.quantile(by_chance, confidence) and (ahead[~noisy] <= rounding).all():
            kept.append(j)
    return kept


def _held_out(means: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Picked at `means + a noise`, measured at `means - noise / a`; the mean over `noise` `[R, n]`."""
    picked = (means + ADDED_NOISE * noise).argmax(axis=1)
    return float((means[picked] - noise[np.arange(len(noise)), picked] / ADDED_NOISE).mean())


def _as_matrix(worth: ArrayLike) -> NDArray[np.float64]:
    worth = np.asarray(worth, dtype=np.float64)
    if worth.ndim != 2 or 0 in worth.shape:
        raise ValueError(f"the worth has shape {worth.shape}; expected [points, prompts] with at least one of each")
    return worth
