"""How often the interval of a mean over runs holds the truth: simulated sweeps over training seeds.

A run draws what its policies are worth; every completion's score is that, plus how hard its prompt is, plus what the
prompt is to a method (in every run) and to this run's policies, plus noise. The truth is the mean difference of
hypervolume, LiNeS - soup, over all runs and prompts. Three intervals are compared: that of `mean_over_runs`; Student's
over the runs' plain values alone; and a bootstrap that draws runs, then prompts, of plain values.

    OMP_NUM_THREADS=1 python benchmarks/runs_coverage.py [--simulations 400] [--only WORD]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from peer import machine, note  # noqa: E402

from rlhf_lines.pareto.bootstrap import bootstrap_hypervolumes, interval  # noqa: E402
from rlhf_lines.pareto.corrected import DRAWN, Corrected, Hypervolume, correct  # noqa: E402
from rlhf_lines.pareto.replicates import mean_over_runs, shared_counts  # noqa: E402
from rlhf_lines.pareto.student import critical_value  # noqa: E402


RUNS = (2, 3, 5, 10)
SIDES = ((2, 2), (3, 3), (5, 5), (3, 5))
MEASURE = Hypervolume((-6.0, -6.0))
TRUTHS = 20_000  # runs that the truth is the mean of
GOAL = (0.92, 0.98)


class Case(NamedTuple):
    """What is simulated: standard deviations, in units of a prompt's difficulty.

    Attributes:
        name: of the case.
        prompts: of every run.
        between: of what a run's policies are worth, by method and objective.
        widths: how far apart the ends of the front of LiNeS and of the soup lie.
        points: how many points each has.
        shared: whether all runs have the same prompts.
        noise: of a completion.
    """

    name: str
    prompts: int
    between: float
    widths: tuple[float, float] = (2.0, 2.0)
    points: tuple[int, int] = (5, 5)
    shared: bool = True
    noise: float = 0.5


CASES = (
    Case("runs alike", 100, 0.0),
    Case("runs differ as much as prompts", 100, 0.1),
    Case("runs differ much", 100, 0.5),
    Case("runs differ much, 50 prompts", 50, 0.5),
    Case("runs alike, 50 prompts", 50, 0.0),
    Case("points close together", 100, 0.1, (0.2, 0.2)),
    Case("unlike spread: 11 close points and 11 far apart", 100, 0.0, (0.2, 2.0), (11, 11), noise=1.0),
    Case("unlike number: 31 close points and 3", 100, 0.0, (0.2, 0.2), (31, 3), noise=1.0),
    Case("unlike number, runs differ", 100, 0.1, (0.2, 0.2), (31, 3), noise=1.0),
    Case("other prompts in each run", 100, 0.1, shared=False),
)


def true_means(case: Case, runs: int, generator: np.random.Generator) -> list[np.ndarray]:
    """What the points of LiNeS and of the soup are worth in every run, each `[runs, points, 2]`."""
    found = []
    for width, points, gain in zip(case.widths, case.points, (0.3, 0.0), strict=True):
        share = np.linspace(0.0, 1.0, points)
        front = width * np.sqrt(np.stack([share, 1.0 - share], axis=1))
        found.append(front + gain + case.between * generator.normal(size=(runs, 1, 2)))
    return found


def measured(
    case: Case, means: list[np.ndarray], seed: int, generator: np.random.Generator
) -> tuple[list[list[Corrected]], np.ndarray]:
    """Both groups of every run, corrected, `[2][runs]`, and their plain hypervolumes under resamples `[2, runs, R]`."""
    runs, places = len(means[0]), 1 if case.shared else len(means[0])
    shape = (case.prompts, 2)
    difficulty = generator.normal(size=(places, 1, *shape))
    texts = [[f"{0 if case.shared else run} {p}" for p in range(case.prompts)] for run in range(runs)]
    counts, corrected, samples = shared_counts(texts, seed), [], []
    for of_group in means:
        of_method = 0.5 * generator.normal(size=(places, 1, *shape))
        of_run = 0.5 * generator.normal(size=(runs, 1, *shape))
        noise = case.noise * generator.normal(size=(runs, of_group.shape[1], *shape))
        scores = of_group[:, :, None] + difficulty + of_method + of_run + noise
        pairs = list(zip(scores, counts, strict=True))
        corrected.append([correct(group, MEASURE, counts=drawn) for group, drawn in pairs])
        resampled = (np.tensordot(drawn, group, axes=(1, 1)) / case.prompts for group, drawn in pairs)
        samples.append([bootstrap_hypervolumes(each, MEASURE.reference_point) for each in resampled])
    return corrected, np.array(samples)


def intervals(
    found: list[list[Corrected]], samples: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[float, float]]:
    """The ends of each of the three intervals."""
    differences = [a - b for a, b in zip(*found, strict=True)]
    yield mean_over_runs(differences).estimate()[1:3]
    values, runs = np.array([each.value for each in differences]), len(differences)
    reach = critical_value(0.95, runs - 1) * values.std(ddof=1) / runs**0.5
    yield values.mean() - reach, values.mean() + reach
    drawn = generator.integers(runs, size=(DRAWN, runs))
    yield interval((samples[0] - samples[1])[drawn, np.arange(DRAWN)[:, None]].mean(axis=1))


def true_difference(case: Case, generator: np.random.Generator) -> float:
    """The mean difference of hypervolume over many runs, LiNeS - soup."""
    a, b = (bootstrap_hypervolumes(means, MEASURE.reference_point) for means in true_means(case, TRUTHS, generator))
    return float(np.mean(a - b))


def coverage(case: Case, simulations: int, seed: int) -> Iterator[tuple[int, list[float]]]:
    """Yield the number of runs and the share of intervals of each kind that hold the truth."""
    generator = np.random.default_rng(seed)
    truth = true_difference(case, generator)
    for runs in RUNS:
        held = np.zeros(3)
        for simulation in range(simulations):
            found, samples = measured(case, true_means(case, runs, generator), simulation, generator)
            held += [low <= truth <= high for low, high in intervals(found, samples, generator)]
        yield runs, (held / simulations).tolist()


def coverage_of_sides(case: Case, simulations: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield the numbers of runs of two recipes, and the share of intervals that hold LiNeS of some - soup of others."""
    generator = np.random.default_rng(seed)
    truth = true_difference(case, generator)
    for runs, against in SIDES:
        held = 0
        for simulation in range(simulations):
            (a, b), _ = measured(case, true_means(case, runs + against, generator), simulation, generator)
            _, low, high, _ = mean_over_runs(a[:runs], b[runs:]).estimate()
            held += low <= truth <= high
        yield f"{runs} against {against}", held / simulations


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=400, help="of every case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = parser.parse_args()
    start, cases, outside = time.perf_counter(), [case for case in CASES if options.only in case.name], []

    def share_text(name: str, share: float) -> str:
        if not GOAL[0] <= share <= GOAL[1]:
            outside.append(f"{name}: {100 * share:.1f} %")
        return f"{100 * share:.1f}"

    print(f"| simulated | {' | '.join(f'{runs} runs' for runs in RUNS)} |\n" + "|---" * (len(RUNS) + 1) + "|")
    for case in cases:
        cells = [
            " / ".join([share_text(f"{case.name}, {runs} runs", ours), *(f"{100 * other:.1f}" for other in others)])
            for runs, (ours, *others) in coverage(case, options.simulations, options.seed)
        ]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    print(f"\n| simulated | {' | '.join(f'{a} against {b}' for a, b in SIDES)} |\n" + "|---" * (len(SIDES) + 1) + "|")
    for case in cases:
        found = coverage_of_sides(case, options.simulations, options.seed)
        cells = [share_text(f"{case.name}, {sides}", share) for sides, share in found]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    print(f"\nours outside 92 to 98 %: {'; '.join(outside) or 'none'}")
    note(f"{options.simulations} simulations of each, {time.perf_counter() - start:.0f} s on one thread of {machine()}")


if __name__ == "__main__":
    main()
