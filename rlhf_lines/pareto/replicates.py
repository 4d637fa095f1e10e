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
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, bootstrap_counts
from rlhf_lines.pareto.student import critical_value


LEAST_P = 1e-9
HALVINGS = 30  # of the logarithm of a p-value: to 2e-8 of it


class Part(NamedTuple):
    """A part of the variance of a mean, with the degrees of freedom that it is estimated by."""

    variance: float
    degrees: float


class RunsMean(NamedTuple):
    """A mean over runs, and the parts of its variance.

    Attributes:
        value: the mean, or the difference of two means.
        runs: of other runs; None where single runs stand for themselves.
        prompts: of other prompts.
    """

    value: float
    runs: Part | None
    prompts: Part

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The ends `value -+ sqrt(sum_j t_j^2 v_j)` over both parts, t_j Student's quantile by the part's degrees."""
        reach = self._reach(confidence)
        return self.value - reach, self.value + reach

    def p_value(self) -> float:
        """The two-sided p-value of 0: one minus the confidence of the interval that ends at 0; at least `LEAST_P`."""
        low, high = LEAST_P, 1.0
        if abs(self.value) >= self._reach(1.0 - low):
            return low if self.value else 1.0
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._reach(1.0 - middle) > abs(self.value) else (low, middle)
        return high

    def _reach(self, confidence: float) -> float:
        parts = [part for part in (self.runs, self.prompts) if part is not None and part.variance > 0.0]
        return math.sqrt(sum(critical_value(confidence, part.degrees) ** 2 * part.variance for part in parts))


def shared_counts(prompts: Sequence[Sequence[str]], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """How often each prompt of each run occurs in each resample, `[R, P_i]` for every run.

    A prompt is drawn as often in every run that has it. Prompts are drawn among those that the same runs have, so that
    the number of prompts of a run stays what it is: with the same prompts everywhere this is `bootstrap_counts`, with
    none shared it is a bootstrap of its own for every run.

    Args:
        prompts: the prompts of each run, each once.
        resamples: R.
        seed: seed of the resampled prompts.
    """
    owners: dict[str, list[int]] = {}
    for run, texts in enumerate(prompts):
        for text in texts:
            owners.setdefault(text, []).append(run)
    strata: dict[tuple[int, ...], list[str]] = {}
    for text, runs in owners.items():
        strata.setdefault(tuple(runs), []).append(text)
    counts = [np.empty((resamples, len(texts))) for texts in prompts]
    places = [{text: i for i, text in enumerate(texts)} for texts in prompts]
    for number, (runs, texts) in enumerate(strata.items()):
        drawn = bootstrap_counts(len(texts), resamples, seed + number)
        for run in runs:
            counts[run][:, [places[run][text] for text in texts]] = drawn
    return counts


def mean_over_runs(
    values: ArrayLike,
    samples: ArrayLike,
    *,
    prompts: int,
    against: tuple[ArrayLike, ArrayLike] | None = None,
) -> RunsMean:
    """The mean of a number over runs, and how far it would move with other runs and other prompts of the same kind.

    Runs and prompts are crossed: every run meets the same prompts, so the mean over more and more runs keeps the noise
    of the prompts. Its variance is

        s^2 / S + c

    with s^2 the variance of the runs' values, which holds the spread of d and each run's own part of e, and c the
    covariance of e between runs, from the resampled prompts: the variance of their mean over runs less 1/S of their
    variance between runs, and no less than 0. The first part has S - 1 degrees of freedom, the second P - 1, and the
    interval adds up the squares of what each alone would reach. A bootstrap that also draws runs is too narrow for few
    of them, and Satterthwaite's single number of degrees of freedom too optimistic (`benchmarks/runs_coverage.py`).

    With `against` it is the difference of the means of two sets of runs. Their first parts add up, with Welch's degrees
    of freedom. One run on each side has none: the interval is that of other prompts for these very policies.

    Args:
        values: `[S]`, the number in each run.
        samples: `[S, R]`, the number under resampled prompts (`shared_counts`).
        prompts: P, of the run with the fewest.
        against: values `[S']` and samples `[S', R]` of the runs to subtract.

    Source: Obuchowski and Rockette, Communications in Statistics - Simulation and Computation 24 (1995), 285-308 (the
    variance; readers and cases there, runs and prompts here); Howe, Journal of the American Statistical Association 69
    (1974), 789-794 (the interval of a sum).

    Raises:
        ValueError: `check_sizes` does.
    """
    sides = [(1.0, values, samples), *([] if against is None else [(-1.0, *against)])]
    sides = [(sign, np.asarray(v, np.float64), np.asarray(s, np.float64)) for sign, v, s in sides]
    sizes = [len(v) for _, v, _ in sides]
    check_sizes(*sizes)
    value = sum(sign * v.mean() for sign, v, _ in sides)
    unbiased = prompts / (prompts - 1) if prompts > 1 else 1.0  # a bootstrap has 1 - 1/P of the variance
    of_prompts = unbiased * np.var(sum(sign * s.mean(axis=0) for sign, _, s in sides))
    of_runs = None
    if max(sizes) > 1:
        for _, v, s in sides:
            noise = s - s.mean(axis=1, keepdims=True)
            of_prompts -= unbiased * noise.var(axis=0, ddof=1).mean() / len(v)
        of_runs = _welch([Part(float(v.var(ddof=1)) / len(v), len(v) - 1) for _, v, _ in sides])
    return RunsMean(float(value), of_runs, Part(max(0.0, float(of_prompts)), max(1, prompts - 1)))


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


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order.

    The smallest times n, the next times n - 1, ..., each at least what came before it and at most 1.

    >>> holm([0.01, 0.5, 0.03])
    [0.03, 0.5, 0.06]

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _welch(parts: Sequence[Part]) -> Part:
    """The sum of parts, with the degrees of freedom of Welch, Biometrika 34 (1947), 28-35."""
    variance = sum(part.variance for part in parts)
    if variance <= 0.0:
        return Part(0.0, 1.0)
    shares = [(part.variance / variance, part.degrees) for part in parts]  # whose squares are never too small
    return Part(variance, max(1.0, 1.0 / sum(share**2 / degrees for share, degrees in shares)))
