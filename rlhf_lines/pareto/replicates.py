"""The mean over runs, and how sure we are of it: other runs, and other prompts, would give another one.

A run is one draw of all that training leaves to chance. Its difference of two groups is D_i = d_i + e_i: d_i what its
policies are worth, e_i what the test prompts add, which the runs share as far as they share prompts.

Letters: S runs, R resamples of the prompts, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, bootstrap_counts
from rlhf_lines.pareto.corrected import DRAWN, Corrected
from rlhf_lines.pareto.intervals import Estimate
from rlhf_lines.pareto.student import critical_value


LEAST_P = 1e-9
HALVINGS = 30  # of the logarithm of a p-value: to 2e-8 of it


class Part(NamedTuple):
    """A part of the variance of a mean, with the degrees of freedom that it is estimated by."""

    variance: float
    degrees: float


class RunsMean(NamedTuple):
    """A mean over runs, or the difference of two means, and the parts of its variance.

    Attributes:
        value: of the mean scores as they are.
        corrected: the same without the bias of choosing among noisy points; the interval lies around it.
        runs: of other runs; None where single runs stand for themselves.
        prompts: of other prompts; None where a run has a single one, which says nothing of others.
    """

    value: float
    corrected: float
    runs: Part | None
    prompts: Part | None

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The corrected number with its interval and p-value.

        The ends are `corrected -+ sqrt(sum_j t_j^2 v_j)` over both parts, t_j Student's quantile by the part's degrees.
        The two-sided p-value is one minus the confidence of the interval that ends at 0, at least `LEAST_P`.
        """
        if self.prompts is None:
            return Estimate(self.corrected, None, None, None)
        reach = self._reach(confidence)
        return Estimate(self.corrected, self.corrected - reach, self.corrected + reach, self._p_value())

    def _p_value(self) -> float:
        low, high, size = LEAST_P, 1.0, abs(self.corrected)
        if size >= self._reach(1.0 - low):
            return low if size else 1.0
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._reach(1.0 - middle) > size else (low, middle)
        return high

    def _reach(self, confidence: float) -> float:
        parts = [part for part in (self.runs, self.prompts) if part is not None and part.variance > 0.0]
        return math.sqrt(sum(critical_value(confidence, part.degrees) ** 2 * part.variance for part in parts))


def shared_counts(prompts: Sequence[Sequence[str]], seed: int, resamples: int = DRAWN) -> list[NDArray[np.float64]]:
    """How often each prompt of each run occurs in each resample, `[R, P_i]` for every run, as `correct` takes them.

    They are drawn from the prompts of all runs together, so that a prompt is drawn as often in every run that has it:
    with the same prompts everywhere this is `bootstrap_counts`. A run has P_i of them in the mean only, but
    `resampled_noise` weighs how far scores are from their mean over prompts, for which the covariance of a run, and of
    two runs by the prompts that they share, is exactly that of their means.

    Args:
        prompts: the prompts of each run.
        seed: seed of the resampled prompts.
        resamples: R.
    """
    places = {text: i for i, text in enumerate(dict.fromkeys(text for texts in prompts for text in texts))}
    drawn = bootstrap_counts(len(places), resamples, seed)
    return [drawn[:, [places[text] for text in texts]] for texts in prompts]


def mean_over_runs(runs: Sequence[Corrected], against: Sequence[Corrected] = ()) -> RunsMean:
    """The mean of a measure over runs, and how far it would move with other runs and other prompts of the same kind.

    Runs and prompts are crossed: every run meets the same prompts, so the mean over more and more runs keeps the noise
    of the prompts. Its variance is

        s^2 / S + c

    with s^2 the variance of the runs' corrected numbers, which holds the spread of d and each run's own part of e, and
    c the covariance of e between runs: the squared standard error of their mean (`Corrected.standard_error`) less 1/S
    of the variance of their noise between them, and no less than 0. The first part has S - 1 degrees of freedom, the
    second P - 1, and the interval adds up the squares of what each alone would reach. A bootstrap that also draws runs
    is too narrow for few of them, and Satterthwaite's single number of degrees of freedom too optimistic
    (`benchmarks/runs_coverage.py`).

    With `against` it is the difference of the means of two sets of runs. Their first parts add up, with Welch's degrees
    of freedom. One run on each side has none: the interval is that of other prompts for these very policies.

    Args:
        runs: a measure of each, or a difference of two groups, under `shared_counts`. P is that of the run with the
            fewest prompts.
        against: the runs to subtract.

    Source: Obuchowski and Rockette, Communications in Statistics - Simulation and Computation 24 (1995), 285-308 (the
    variance; readers and cases there, runs and prompts here); Howe, Journal of the American Statistical Association 69
    (1974), 789-794 (the interval of a sum).

    Raises:
        ValueError: `check_sizes` does.
    """
    sides = [side for side in (runs, against) if side]
    check_sizes(*map(len, sides))
    prompts = min(run.prompts for side in sides for run in side)
    means = [_mean(side, prompts) for side in sides]
    mean = means[0] - means[1] if against else means[0]
    several = len(runs) > 1
    of_runs = (
        _welch([Part(_variance([run.corrected for run in side]), len(side) - 1) for side in sides]) if several else None
    )
    if prompts < 2:
        return RunsMean(mean.value, mean.corrected, of_runs, None)
    of_prompts = mean.standard_error**2 - (sum(map(_own_noise, sides)) if several else 0.0)
    return RunsMean(mean.value, mean.corrected, of_runs, Part(max(0.0, of_prompts), prompts - 1))


def _mean(runs: Sequence[Corrected], prompts: int) -> Corrected:
    """The mean of a measure over these very runs, whose error is that of their prompts."""
    value, corrected = (float(np.mean([getattr(run, key) for run in runs])) for key in ("value", "corrected"))
    return Corrected(value, corrected, np.mean([run.resampled for run in runs], axis=0), prompts, is_difference=True)


def _variance(values: Sequence[float]) -> float:
    """Of the mean of values."""
    return float(np.var(values, ddof=1)) / len(values)


def _own_noise(runs: Sequence[Corrected]) -> float:
    """What noise of the prompts that runs do not share adds to the variance of their mean."""
    resampled = np.stack([run.resampled for run in runs])  # [S, R]
    noise = resampled - resampled.mean(axis=1, keepdims=True)
    return float(noise.var(axis=0, ddof=1).sum()) / (noise.shape[1] - 1) / len(runs)


def check_sizes(runs: int, against: int | None = None) -> None:
    """Stop where the spread over runs is not known from so many.

    Raises:
        ValueError: there is a single run and nothing to subtract, or unlike numbers of which one is below three, for
            which Welch's interval is too narrow.
    """
    if against is None and runs < 2:
        raise ValueError("got one run: the spread over runs is not known from a single one; give at least two")
    if against is not None and runs != against and min(runs, against) < 3:
        raise ValueError(
            f"got {runs} runs against {against}: give as many on each side, or at least three; one on each side "
            "compares these very policies"
        )


def _welch(parts: Sequence[Part]) -> Part:
    """The sum of parts, with the degrees of freedom of Welch, Biometrika 34 (1947), 28-35."""
    variance = sum(part.variance for part in parts)
    if variance <= 0.0:
        return Part(0.0, 1.0)
    shares = [(part.variance / variance, part.degrees) for part in parts]  # whose squares are never too small
    return Part(variance, max(1.0, 1.0 / sum(share**2 / degrees for share, degrees in shares)))
