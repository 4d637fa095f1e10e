"""How often the 95 % intervals hold the truth, in simulated runs.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--runs 300] [--only WORD] [--prompts 20 50]

It takes about 40 minutes on a free core. `docs/statistics.md` has its tables: of groups, at equal KL, of the intervals
of points, of the best of some points against
the best of more, and of a family of comparisons.

A run has two groups of points with known mean scores, and three anchors (the SFT model and the two single policies)
that set the reference and ideal point as in the product: from their measured means. Its scores are

    score = truth[point, objective] + prompt[prompt, objective] + merge[point, prompt, objective] + sample

so that points share what a prompt does to all of them. "Held" is the share of runs whose interval holds the measure of
the true means, for the reference point of that run; of the intervals that are printed. A star is outside 92 to 98 %;
in brackets is the percentage of runs with an interval, where that is not all. "Called better" is the share of runs in
which either of two groups with equal true fronts, or with equal true hypervolumes, is, at p below 5 %.

At equal KL every point has a mean KL, too. Of a prompt it is that times a factor which all points share, plus noise of
the completions.

The last table is of a reward for some prompts only: its score less a bound where a prompt is marked, 0 elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from peer import machine, note  # noqa: E402

from rlhf_lines.pareto import (  # noqa: E402
    Estimate,
    ExpectedUtility,
    Hypervolume,
    correct,
    difference_of_best,
    holm,
    ideal_point,
    may_be_best,
    mean_estimate,
    paired_difference,
    picked_worth,
    reference_point,
)
from rlhf_lines.pareto.bootstrap import bootstrap_counts, bootstrap_means, mean_interval  # noqa: E402
from rlhf_lines.pareto.corrected import DRAWN  # noqa: E402
from rlhf_lines.pareto.equal_kl import EqualKL, common_budgets, correct_at_equal_kl, offers  # noqa: E402
from rlhf_lines.pareto.intervals import paired_share_difference, share_estimate  # noqa: E402
from rlhf_lines.pareto.resampling import Resampling  # noqa: E402


LEVEL = 0.05
GOAL = (0.92, 0.98)


def front(points: int, length: float = 1.0, bulge: float = 0.25) -> NDArray[np.float64]:
    """True means of points on an arc from (0, length) to (length, 0)."""
    w = np.linspace(0.0, 1.0, points)
    lift = bulge * 4.0 * w * (1.0 - w)
    return length * np.stack([w + lift, 1.0 - w + lift], axis=1)


def front_of_three(steps: int, bulge: float = 0.25) -> NDArray[np.float64]:
    """True means of points between (1, 0, 0), (0, 1, 0) and (0, 0, 1), those in the middle higher."""
    w = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
    return w + bulge * (1.0 - (w**2).sum(axis=1, keepdims=True))


def coinciding(points: int) -> NDArray[np.float64]:
    return np.full((points, 2), 0.6)


@dataclass(frozen=True)
class Scene:
    """Two groups, and the standard deviations of what a prompt, a merge on a prompt and a sample add to a score."""

    title: str
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    prompts: tuple[int, ...] = (20, 50, 100, 400)
    samples: int = 1
    spread: tuple[float, float, float] = (1.0, 0.7, 0.7)
    length: float = 1.0
    skewed: bool = False
    alike: float = 0.0  # correlation of neighbouring merges on a prompt
    kl: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None  # of the points of a and of b, in nats

    @property
    def anchors(self) -> NDArray[np.float64]:
        objectives = self.a.shape[1]
        return self.length * np.concatenate([np.zeros((1, objectives)), np.eye(objectives)])

    @property
    def equal_hypervolumes(self) -> bool:
        a, b = (Hypervolume(tuple(reference_point(self.anchors))).value(group) for group in (self.a, self.b))
        return abs(a - b) < 1e-9

    @property
    def is_null(self) -> bool:
        return self.a.shape == self.b.shape and bool((self.a == self.b).all())


def as_high_as(group: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coinciding points with the hypervolume of a group of the same number; the reference point is that of length 1."""
    low, high = 0.0, 5.0
    measure = Hypervolume((-0.1, -0.1))
    for _ in range(60):
        middle = (low + high) / 2.0
        if measure.value(np.full((1, 2), middle)) < measure.value(group):
            low = middle
        else:
            high = middle
    return np.full(group.shape, low)


def spent(points: int, low: float, high: float) -> NDArray[np.float64]:
    """True mean KL of points: merges in the middle have moved less than the policies at the ends."""
    w = np.linspace(0.0, 1.0, points)
    return (low + (high - low) * w) * (1.0 - w * (1.0 - w))


CLUSTER = np.concatenate([front(3), np.full((8, 2), 0.7)])
OWN = (0.2, 0.7, 0.7)  # prompts share little; noise is each point's own
SCENES = (
    Scene("separated 11 and 11", 5 * front(11), 5 * front(11, bulge=0.1), length=5.0),
    Scene("close 11 and 11", front(11), front(11, bulge=0.1)),
    Scene("close 11 and 11, equal", front(11), front(11)),
    Scene("close 31 and 3", front(31), front(3)),
    Scene("close 31 and 11", front(31), front(11)),
    Scene("close 31 and 3, own noise", front(31), front(3), spread=OWN),
    Scene("very close 11 and 11, equal", front(11, 0.2), front(11, 0.2), length=0.2),
    Scene("coinciding 31 and 3", coinciding(31), coinciding(3)),
    Scene("coinciding 31 and 3, own noise", coinciding(31), coinciding(3), spread=OWN),
    Scene("coinciding 11 and 11, equal", coinciding(11), coinciding(11)),
    Scene("coinciding 11 and close 11", coinciding(11), front(11)),
    Scene("11, 8 of them coinciding, and 3", CLUSTER, front(3)),
    Scene("close 11 and 11, 4 samples", front(11), front(11, bulge=0.1), samples=4, spread=(1.0, 0.35, 1.2)),
    Scene("close 11 and 11, skewed", front(11), front(11, bulge=0.1), skewed=True),
    Scene("close 31 and 3, neighbours alike", front(31), front(3), spread=(1.0, 0.9, 0.4), alike=0.9),
    Scene("coinciding 11 and spread 11 of one hypervolume", as_high_as(front(11)), front(11)),
    Scene("three objectives, close 15 and 6", front_of_three(4), front_of_three(2), prompts=(50, 100)),
    Scene("three objectives, close 15 and 15, equal", front_of_three(4), front_of_three(4), prompts=(50, 100)),
)
AT_EQUAL_KL = (
    Scene("close 11 and 11, equal", front(11), front(11), kl=(spent(11, 3.0, 4.0), spent(11, 3.0, 4.0))),
    Scene("close 11 and 11, b further", front(11), 1.2 * front(11), kl=(spent(11, 1.0, 4.0), spent(11, 2.0, 7.0))),
    Scene("separated 11 and 11", 5 * front(11), 5 * front(11, bulge=0.1), length=5.0, kl=(spent(11, 3.0, 4.0),) * 2),
)


@dataclass
class Tally:
    """Of one measure: whether the printed intervals held the truth."""

    held: list[bool] = field(default_factory=list)
    runs: int = 0

    def add(self, estimate, truth: float) -> None:
        self.runs += 1
        if estimate.low is not None:
            self.held.append(estimate.low <= truth <= estimate.high)

    def __str__(self) -> str:
        if len(self.held) < self.runs / 10:
            return "-"
        share = np.mean(self.held)
        missed = "" if GOAL[0] <= share <= GOAL[1] else "*"
        printed = len(self.held) / self.runs
        return f"{100 * share:.1f}{missed}" + (f" ({100 * printed:.0f})" if printed < 1 else "")


def draw(scene: Scene, generator: np.random.Generator, prompts: int, truths: NDArray[np.float64]):
    """Scores `[n, P, 2]` of points with these true means."""
    points = len(truths)

    def noise(spread: float, *shape: int) -> NDArray[np.float64]:
        if scene.skewed:
            return generator.exponential(spread, shape) - spread
        return generator.normal(0.0, spread, shape)

    of_prompt, of_merge, of_sample = scene.spread
    objectives = truths.shape[1]
    merge = noise(of_merge, points, prompts, objectives)
    for i in range(1, points):
        merge[i] = scene.alike * merge[i - 1] + np.sqrt(1.0 - scene.alike**2) * merge[i]
    sample = generator.normal(0.0, of_sample / np.sqrt(scene.samples), (points, prompts, objectives))
    return truths[:, None] + noise(of_prompt, 1, prompts, objectives) + merge + sample


def simulate(scene: Scene, prompts: int, runs: int) -> str:
    """One row of the table."""
    generator = np.random.default_rng([prompts, *scene.title.encode()])
    count, objectives = scene.a.shape
    sft = -1 - objectives
    truths = np.concatenate([scene.a, scene.b, scene.anchors])
    names = ("mean", "difference", "hv a", "hv b", "hv a - b", "eu a", "eu b", "eu a - b", "picked")
    tallies = {name: Tally() for name in names}
    better = {"hv a - b": [], "eu a - b": []}
    best_kept = []
    for _ in range(runs):
        scores = draw(scene, generator, prompts, truths)
        means = scores[sft:].mean(axis=1)
        reference = tuple(reference_point(means))
        i, k = generator.integers(count), generator.integers(objectives)
        last = sft - 1  # of b
        tallies["mean"].add(mean_estimate(scores[i, :, k]), truths[i, k])
        tallies["difference"].add(
            paired_difference(scores[i, :, k], scores[last, :, k]), truths[i, k] - truths[last, k]
        )
        for name, measure in (
            ("hv", Hypervolume(reference)),
            ("eu", ExpectedUtility(reference, tuple(ideal_point(means)))),
        ):
            a, b = correct(scores[:count], measure), correct(scores[count:sft], measure)
            true_a, true_b = measure.value(scene.a), measure.value(scene.b)
            tallies[f"{name} a"].add(a.estimate(), true_a)
            tallies[f"{name} b"].add(b.estimate(), true_b)
            difference = (a - b).estimate()
            tallies[f"{name} a - b"].add(difference, true_a - true_b)
            better[f"{name} a - b"].append(difference.p_value < LEVEL)
        preference = generator.dirichlet([1.0] * objectives)
        worth, true_worth = scores[:count] @ preference, scene.a @ preference
        tallies["picked"].add(picked_worth(worth), true_worth[worth.mean(axis=1).argmax()])
        highest = np.flatnonzero(true_worth >= true_worth.max() - 1e-12)
        best_kept.append(bool(set(highest.tolist()) & set(may_be_best(worth))))
    called = ", ".join(f"{100 * np.mean(x):.1f}" for x in better.values()) if scene.is_null else ""
    if scene.equal_hypervolumes and not scene.is_null:
        called = f"{100 * np.mean(better['hv a - b']):.1f}, -"
    cells = [scene.title, prompts, *tallies.values(), f"{100 * np.mean(best_kept):.1f}", called]
    return "| " + " | ".join(map(str, cells)) + " |"


def at_equal_kl(scene: Scene, prompts: int, runs: int) -> str:
    """One row: the hypervolume of a minus that of b at equal KL, in truth over the budgets of the true KL."""
    generator = np.random.default_rng([prompts, *scene.title.encode()])
    count = len(scene.a)
    truths, true_kl = np.concatenate([scene.a, scene.b, scene.anchors]), np.concatenate(scene.kl)
    groups = (slice(0, count), slice(count, len(true_kl)))
    true_budgets, counts = (
        common_budgets(*(true_kl[group, None] for group in groups)),
        bootstrap_counts(prompts, DRAWN, 0),
    )
    held, better, none = Tally(), [], 0
    for _ in range(runs):
        scores = draw(scene, generator, prompts, truths)
        kl = true_kl[:, None] * generator.gamma(4.0, 0.25, (1, prompts))
        kl = kl + generator.normal(0.0, 0.7 * np.sqrt(true_kl)[:, None], (len(true_kl), prompts))
        spent = [list(kl[group]) for group in groups]
        if common_budgets(*spent) is None:
            none += 1
            continue
        reference = reference_point(scores[-3:].mean(axis=1))

        def offered(group: slice, scores=scores, kl=kl):
            weights = [(1.0 - w, w) for w in np.linspace(0.0, 1.0, group.stop - group.start)]
            return offers(scores[group], list(kl[group]), weights, scores[-3:-2])

        a, b = correct_at_equal_kl([*map(offered, groups)], spent, reference, [counts, counts])
        measure = EqualKL.between(*true_budgets, reference)
        true_a, true_b = (
            measure.value(offered(group, truths[:, None], true_kl[:, None]).mean(axis=1)) for group in groups
        )
        difference = (a - b).estimate()
        held.add(difference, true_a - true_b)
        better.append(difference.p_value < LEVEL)
    called = f"{100 * np.mean(better):.1f}" if scene.is_null and better else ""
    return f"| {scene.title} | {prompts} | {held if better else '-'} | {called} | {100 * none / runs:.0f} |"


def of_points(prompts: int, runs: int) -> str:
    """One row: the intervals of means of a point, by what is drawn."""
    generator = np.random.default_rng([prompts, 1])
    resampling = Resampling(500)

    def some(chance: float, parts: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        return (generator.random(prompts) < chance) * parts

    def changed(low: float, high: float, size: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two shares of the same prompts, half of which meet the same noise."""
        u = generator.random(prompts)
        v = np.where(generator.random(prompts) < 0.5, u, generator.random(prompts))
        parts = generator.beta(1.0, 3.0, (2, prompts)) if size else np.ones((2, prompts))
        return (u < high) * parts[0], (v < low) * parts[1]

    def mean(values: NDArray[np.float64]):
        found = resampling.scores({"": values})[""]
        return Estimate(found["mean"], found["low"], found["high"], None)

    cells = []
    for make, truth in (
        (lambda: mean(generator.normal(size=prompts)), 0.0),
        (lambda: mean(generator.exponential(size=prompts)), 1.0),
        *((lambda share=share: mean(some(share)), share) for share in (0.01, 0.03, 0.1, 0.5)),
        (lambda: share_estimate(generator.binomial(4, generator.beta(0.5, 4.5, prompts)) / 4), 0.1),
        *(
            (lambda share=share: mean(some(share, generator.beta(1.0, 3.0, prompts))), share / 4.0)
            for share in (0.005, 0.02, 0.05, 0.2)
        ),
        *(
            (lambda a=a, b=b: paired_share_difference(*changed(a, b, False)), b - a)
            for a, b in ((0.005, 0.02), (0.02, 0.1), (0.1, 0.3))
        ),
        *(
            (lambda a=a, b=b: paired_share_difference(*changed(a, b, True), answers=False), (b - a) / 4.0)
            for a, b in ((0.02, 0.1), (0.1, 0.3))
        ),
    ):
        tally = Tally()
        for _ in range(runs):
            tally.add(make(), truth)
        cells.append(str(tally))
    return f"| {prompts} | " + " | ".join(cells) + " |"


def of_best(prompts: int, runs: int) -> str:
    """One row: the best of 11 points less the best of 5 of them; the other 6 are as good, or better by 0.2."""
    generator = np.random.default_rng([prompts, 2])
    cells = []
    for better in (0.0, 0.2):
        held, above = [], []
        for _ in range(runs):
            worth = generator.normal(0.0, 1.0, (1, prompts)) + generator.normal(0.0, 1.0, (11, prompts))
            worth[5:] += better
            found = difference_of_best(worth, worth[:5])
            held.append(found.low <= better <= found.high)
            above.append(found.low > 0.0)
        cells += [f"{100 * np.mean(held):.1f}", f"{100 * np.mean(above):.1f}"]
    return f"| {prompts} | " + " | ".join(cells) + " |"


def family(runs: int, prompts: int, spread: tuple[float, float, float]) -> str:
    """Four groups with one truth, six comparisons: how often is any of them called better."""
    scene = Scene("four equal groups", front(11, 2.0), front(11, 2.0), spread=spread)
    generator = np.random.default_rng(prompts)
    anchors = 2.0 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    truths = np.concatenate([scene.a] * 4 + [anchors])
    found = []
    for _ in range(runs):
        scores = draw(scene, generator, prompts, truths)
        means = scores[-3:].mean(axis=1)
        reference, ideal = tuple(reference_point(means)), tuple(ideal_point(means))
        row = []
        for measure in (Hypervolume(reference), ExpectedUtility(reference, ideal)):
            groups = [correct(scores[11 * g : 11 * g + 11], measure) for g in range(4)]
            p_values = [(a - b).estimate().p_value for a, b in combinations(groups, 2)]
            row += [np.mean(np.array(p_values) < LEVEL), min(p_values) < LEVEL, min(holm(p_values)) < LEVEL]
        found.append(row)
    cells = [f"{100 * x:.1f}" for x in np.mean(found, axis=0)]
    return f"| {prompts} | " + " | ".join(cells) + " |"


def marked(runs: int, prompts: int, share: float) -> str:
    """A row on the mean of (score - bound) over all prompts, of which a share is marked and the others are 0.

    Normal scores lie 0, 1 and 3 standard deviations above the bound; refusals are 90 %, with the bound there and at 0.
    Beside what was held stands the width over that of the marked prompts' mean alone, times their share.
    """
    cells = []
    for mean, spread, bound in ((0.0, None, 0.0), (1.0, None, 0.0), (3.0, None, 0.0), (0.9, 0.3, 0.9), (0.9, 0.3, 0.0)):
        generator, truth = np.random.default_rng(prompts), share * (mean - bound)
        marks = generator.random((prompts, runs)) < share
        refused = generator.random((prompts, runs)) < mean
        scores = generator.normal(mean, 1.0, (prompts, runs)) if spread is None else refused
        values = (marks * (scores - bound)).T[:, :, None]  # [runs, P, 1]
        samples, means = bootstrap_means(values)[:, :, 0], values.mean(axis=(1, 2))
        ends = np.array([mean_interval(samples[:, run], means[run], prompts) for run in range(runs)])
        held = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
        alone = 2 * 1.96 * (spread or 1.0) * np.sqrt(share / prompts)
        cells.append(f"{100 * held:.1f} ({np.mean(ends[:, 1] - ends[:, 0]) / alone:.2f})")
    return f"| {prompts} | {share * prompts:.0f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument(
        "--only", default="", help="rows whose title has this text; 'equal KL', 'points', 'best', 'family', 'marked'"
    )
    parser.add_argument("--prompts", type=int, nargs="*", help="rows of these numbers of prompts; all by default")
    options = parser.parse_args()
    start = time.perf_counter()
    print(
        "| a and b | prompts | mean | paired difference | HV a | HV b | HV a - b | EU a | EU b | EU a - b | picked "
        "| best kept | called better, HV, EU |\n" + "|---" * 13 + "|"
    )

    def rows(scene: Scene) -> list[int]:
        return [prompts for prompts in scene.prompts if not options.prompts or prompts in options.prompts]

    for scene in SCENES:
        for prompts in rows(scene) if options.only in scene.title else ():
            print(simulate(scene, prompts, options.runs), flush=True)
    if options.only in "equal KL":
        print("\n| a and b | prompts | HV a - b at equal KL | called better | no common KL |\n" + "|---" * 5 + "|")
        for scene in AT_EQUAL_KL:
            for prompts in rows(scene):
                print(at_equal_kl(scene, prompts, options.runs), flush=True)
    if options.only in "points":
        print(
            "\n| prompts | normal | exponential | 0 or 1, 0.01 | 0.03 | 0.1 | 0.5 | 0.1 of 4 samples "
            "| repetition in 0.5 % | 2 % | 5 % | 20 % | change 0.005 to 0.02 | 0.02 to 0.1 | 0.1 to 0.3 "
            "| of repetition, 2 to 10 % | 10 to 30 % |\n" + "|---" * 17 + "|"
        )
        for prompts in (10, 20, 50, 100, 400):
            print(of_points(prompts, max(400, options.runs)), flush=True)
    if options.only in "best":
        print("\n| prompts | as good: held | above 0 | better by 0.2: held | above 0 |\n" + "|---" * 5 + "|")
        for prompts in (60, 200):
            print(of_best(prompts, options.runs), flush=True)
    if options.only in "family":
        print("\n| prompts | HV each | HV any | HV any, Holm | EU each | EU any | EU any, Holm |\n" + "|---" * 7 + "|")
        for prompts, spread in ((100, (1.0, 0.7, 0.0)), (400, (1.0, 0.3, 0.0))):
            print(family(options.runs, prompts, spread), flush=True)
    if options.only in "marked":
        print("\n| prompts | marked | normal, 0 | 1 | 3 | refusals, bound 0.9 | bound 0 |\n" + "|---" * 7 + "|")
        for prompts in (100, 200, 400):
            for share in (0.1, 0.25, 0.5):
                print(marked(options.runs, prompts, share), flush=True)
    note(f"{options.runs} runs a row, {time.perf_counter() - start:.0f} s on one thread of {machine()}")


if __name__ == "__main__":
    main()
