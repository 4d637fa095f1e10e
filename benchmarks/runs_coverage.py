"""How often the interval of a mean over runs holds the truth: simulated sweeps over training seeds.

A run draws what its policies are worth; every completion's score is that, plus how hard its prompt is, plus what the
prompt is to a method (in every run) and to this run's policies, plus noise. The truth is the mean difference of
hypervolume, LiNeS - soup, over all runs and prompts. Three intervals are compared: that of `mean_over_runs`; Student's
over the runs' values alone; and a two-level bootstrap, which draws runs, then prompts.

    python benchmarks/runs_coverage.py --simulations 600
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rlhf_lines.pareto.bootstrap import interval
from rlhf_lines.pareto.measures import hypervolume
from rlhf_lines.pareto.replicates import mean_over_runs, shared_counts
from rlhf_lines.pareto.student import critical_value


RUNS = (2, 3, 5, 10)
SIDES = ((2, 2), (3, 3), (5, 5), (3, 5))
POINTS = 5
REFERENCE = (-6.0, -6.0)
RESAMPLES = 300
TRUTHS = 20_000  # runs that the truth is the mean of
GOAL = (0.92, 0.98)


class Case(NamedTuple):
    """What is simulated: standard deviations, in units of a prompt's difficulty.

    Attributes:
        name: of the case.
        prompts: of every run.
        between: of what a run's policies are worth, by method and reward.
        width: how far apart the ends of the front lie.
        shared: whether all runs have the same prompts.
    """

    name: str
    prompts: int
    between: float
    width: float = 2.0
    shared: bool = True


CASES = (
    Case("runs alike", 100, 0.0),
    Case("runs differ as much as prompts", 100, 0.1),
    Case("runs differ much", 100, 0.5),
    Case("runs differ much, 50 prompts", 50, 0.5),
    Case("runs alike, 50 prompts", 50, 0.0),
    Case("points close together", 100, 0.1, width=0.2),
    Case("other prompts in each run", 100, 0.1, shared=False),
)


def true_means(case: Case, runs: int, generator: np.random.Generator) -> np.ndarray:
    """What the points of both methods are worth in every run, `[runs, 2, points, 2]`."""
    share = np.linspace(0.0, 1.0, POINTS)
    front = case.width * np.sqrt(np.stack([share, 1.0 - share], axis=1))
    gain = np.array([0.3, 0.0])[:, None, None]  # LiNeS, soup
    return front + gain + case.between * generator.normal(size=(runs, 2, 1, 2))


def scores(case: Case, means: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Scores of every completion, `[runs, 2, points, prompts, 2]`."""
    runs, places = len(means), 1 if case.shared else len(means)
    shape = (case.prompts, 2)
    difficulty = generator.normal(size=(places, 1, 1, *shape))
    of_method = 0.5 * generator.normal(size=(places, 2, 1, *shape))
    of_run = 0.5 * generator.normal(size=(runs, 2, 1, *shape))
    noise = 0.5 * generator.normal(size=(runs, 2, POINTS, *shape))
    return means[:, :, :, None] + difficulty + of_method + of_run + noise


def hypervolumes(case: Case, found: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The hypervolumes of both methods in every run, `[2, runs]`, and under resampled prompts, `[2, runs, R]`."""
    texts = [[f"{0 if case.shared else run} {p}" for p in range(case.prompts)] for run in range(len(found))]
    values, samples = [], []
    for drawn, groups in zip(shared_counts(texts, RESAMPLES, seed), found, strict=True):
        means = [np.tensordot(drawn, group, axes=(1, 1)) / case.prompts for group in groups]
        values.append([hypervolume(group.mean(axis=1), REFERENCE) for group in groups])
        samples.append([areas(each) for each in means])
        assert abs(samples[-1][0][0] - hypervolume(means[0][0], REFERENCE)) < 1e-9
    return np.array(values).T, np.array(samples).transpose(1, 0, 2)


def areas(means: np.ndarray) -> np.ndarray:
    """The hypervolumes of points `[R, points, 2]` above the reference point, strip by strip from the right."""
    ordered = np.take_along_axis(means, np.argsort(-means[..., :1], axis=1), axis=1)
    heights = np.maximum.accumulate(ordered[..., 1], axis=1) - REFERENCE[1]
    rights = ordered[..., 0]
    lefts = np.concatenate([rights[:, 1:], np.full((len(rights), 1), REFERENCE[0])], axis=1)
    return ((rights - lefts) * heights).sum(axis=1)


def intervals(case: Case, values: np.ndarray, samples: np.ndarray, generator: np.random.Generator) -> Iterator[tuple]:
    """The ends of each of the three intervals."""
    yield mean_over_runs(values, samples, prompts=case.prompts).interval()
    runs = len(values)
    reach = critical_value(0.95, runs - 1) * values.std(ddof=1) / runs**0.5
    yield values.mean() - reach, values.mean() + reach
    drawn = generator.integers(runs, size=(RESAMPLES, runs))
    yield interval(samples[drawn, np.arange(RESAMPLES)[:, None]].mean(axis=1))


def true_difference(case: Case, generator: np.random.Generator) -> float:
    """The mean difference of hypervolume over many runs, LiNeS - soup."""
    a, b = true_means(case, TRUTHS, generator).transpose(1, 0, 2, 3)
    return float(np.mean(areas(a) - areas(b)))


def coverage(case: Case, simulations: int, seed: int) -> Iterator[tuple[int, list[float], float]]:
    """Yield the number of runs, the share of intervals of each kind that hold the truth, and the width of the first."""
    generator = np.random.default_rng(seed)
    truth = true_difference(case, generator)
    for runs in RUNS:
        held, width = np.zeros(3), 0.0
        for simulation in range(simulations):
            found = scores(case, true_means(case, runs, generator), generator)
            (a, b), (sample_a, sample_b) = hypervolumes(case, found, simulation)
            ends = list(intervals(case, a - b, sample_a - sample_b, generator))
            held += [low <= truth <= high for low, high in ends]
            width += (ends[0][1] - ends[0][0]) / simulations
        yield runs, (held / simulations).tolist(), width


def coverage_of_sides(case: Case, simulations: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield the numbers of runs of two recipes, and the share of intervals that hold LiNeS of some - soup of others."""
    generator = np.random.default_rng(seed)
    truth = true_difference(case, generator)
    for runs, against in SIDES:
        held = 0
        for simulation in range(simulations):
            found = scores(case, true_means(case, runs + against, generator), generator)
            (a, b), (sample_a, sample_b) = hypervolumes(case, found, simulation)
            other = (b[runs:], sample_b[runs:])
            low, high = mean_over_runs(a[:runs], sample_a[:runs], prompts=case.prompts, against=other).interval()
            held += low <= truth <= high
        yield f"{runs} against {against}", held / simulations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=600, help="of every case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| simulated | runs | ours | t over runs | two-level bootstrap | width of ours |\n|---|---|---|---|---|---|")
    outside = []
    for case in CASES:
        for runs, shares, width in coverage(case, options.simulations, options.seed):
            cells = " | ".join(f"{100 * share:.1f}" for share in shares)
            print(f"| {case.name} | {runs} | {cells} | {width:.2f} |", flush=True)
            if not GOAL[0] <= shares[0] <= GOAL[1]:
                outside.append(f"{case.name}, {runs} runs: {100 * shares[0]:.1f} %")
    print("\n| simulated | runs | ours |\n|---|---|---|")
    for case in CASES:
        for runs, share in coverage_of_sides(case, options.simulations, options.seed):
            print(f"| {case.name} | {runs} | {100 * share:.1f} |", flush=True)
            if not GOAL[0] <= share <= GOAL[1]:
                outside.append(f"{case.name}, {runs}: {100 * share:.1f} %")
    print(f"\n{options.simulations} simulations of each; ours outside 92 to 98 %: {'; '.join(outside) or 'none'}")


if __name__ == "__main__":
    main()
