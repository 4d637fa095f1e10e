"""From finished sweeps to the content of `comparison.json`. Higher scores are better everywhere.

Letters: S runs, n points, P prompts, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.bootstrap import CONFIDENCE
from rlhf_lines.pareto.comparison import FORMAT, Attainment, RunEntry, RunsComparison, RunsDifference, RunsFile
from rlhf_lines.pareto.corrected import Corrected, ExpectedUtility, Hypervolume, Measure, correct
from rlhf_lines.pareto.equal_kl import common_budgets, correct_at_equal_kl, offers, why_no_budgets
from rlhf_lines.pareto.fixed_points import Anchor, fixed_points, without_spread
from rlhf_lines.pareto.origin import anchors
from rlhf_lines.pareto.replicates import mean_over_runs, shared_counts
from rlhf_lines.pareto.schema import PointEntry, label
from rlhf_lines.pareto.utility import UTILITY_RULE


SIDES = ("a", "b")
Member = tuple[int, str]  # a run, and a group of it


@dataclass(frozen=True)
class RunScores:
    """A finished sweep with its scores.

    Attributes:
        name: what people read.
        folder: where it is.
        prompts: texts of the P prompts, in the order of the scores.
        points: entries of `front.json`.
        scores: `[P, K]` by the id of the point.
        sft_model: what the policies were trained from.
        policies: what was merged, then the MORLHF runs.
        side: `a`, or `b` for a run that the others are compared against.
        kl: `[P]` by the id of the point, of those points where it was measured.
    """

    name: str
    folder: str
    prompts: Sequence[str]
    points: Sequence[PointEntry]
    scores: Mapping[int, ArrayLike]
    sft_model: str | None = None
    policies: Sequence[str] = ()
    side: str = "a"
    kl: Mapping[int, ArrayLike] = field(default_factory=dict)

    def group(self, name: str) -> NDArray[np.float64]:
        """The scores of a group, `[n, P, K]`, by id."""
        return self._scores(self._of(name))

    def group_kl(self, name: str) -> list[ArrayLike | None]:
        """The KL of each point of a group, `[P]` or None, by id."""
        return [self.kl.get(point["id"]) for point in self._of(name)]

    def has_ratios(self, name: str) -> bool:
        """Whether the log-ratios of a group are no KL."""
        return any(point["metrics"].get("log_ratio") for point in self._of(name))

    def groups(self) -> list[str]:
        """The groups of two points or more, in the order in which they are compared."""
        names = [point["group"] for point in self.points]
        return comparisons.ordered({name for name in names if names.count(name) > 1})

    def offers(self, name: str) -> NDArray[np.float64]:
        """What a group offers at which KL, see `equal_kl.offers`."""
        weights = [point["spec"]["weights"] for point in self._of(name)]
        sft = [point for point in self.points if not any(point["spec"]["weights"])][:1]
        unmoved = self._scores(sft) if sft else np.empty((0, *self.group(name).shape[1:]))
        return offers(self.group(name), self.group_kl(name), weights, unmoved)

    def anchored_means(self) -> tuple[list[Anchor], NDArray[np.float64]]:
        """Which anchor every point is, and the mean scores of every point, `[points, K]`."""
        return anchors((point["spec"], point["group"]) for point in self.points), self._scores(self.points).mean(axis=1)

    def _of(self, group: str) -> list[PointEntry]:
        return sorted((point for point in self.points if point["group"] == group), key=lambda point: point["id"])

    def _scores(self, points: Sequence[PointEntry]) -> NDArray[np.float64]:
        return np.stack([np.asarray(self.scores[point["id"]], np.float64) for point in points])


def compare_runs(
    runs: Sequence[RunScores],
    *,
    objectives: Sequence[str],
    split: str,
    seed: int,
    given_reference: Sequence[float] | None = None,
    notes: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> RunsFile:
    """The content of `comparison.json`: runs beside each other, all by one reference point and one ideal point.

    Runs of one side are replicates: every two groups that all runs have are compared in every run, and over runs. With
    runs on side b, every group that all runs have is compared between the sides.

    Args:
        runs: at least two, of one side, or one or several of each.
        objectives: K names, in the order of the columns of scores.
        split: the prompts that were scored.
        seed: seed of the resampled prompts.
        given_reference: K numbers, or None for the rule of the anchors, of all runs.
        notes: what else is to be said of the runs.
        confidence: coverage of all intervals.

    Raises:
        ValueError: the runs have nothing in common that can be compared, or their number does not fit.
    """
    groups = [name for name in runs[0].groups() if all(name in run.groups() for run in runs)]
    two_sided = any(run.side == "b" for run in runs)
    if not groups or (len(groups) < 2 and not two_sided):
        raise ValueError(
            f"the runs share {' and '.join(map(repr, groups)) or 'no group'} of several points; expected "
            f"{'a group' if two_sided else 'two groups'} that every run has"
        )
    reference, ideal, rule = fixed_points([run.anchored_means() for run in runs], objectives, given_reference)
    counts = shared_counts([run.prompts for run in runs], seed)
    measures: dict[str, Measure] = {
        "hypervolume": Hypervolume(tuple(reference)),
        "expected_utility": ExpectedUtility(tuple(reference), tuple(ideal)),
    }
    measured = [
        {
            group: {m: correct(run.group(group), measure, counts=drawn) for m, measure in measures.items()}
            for group in groups
        }
        for run, drawn in zip(runs, counts, strict=True)
    ]
    alike = _Alike(runs, counts, measured, reference, confidence)
    of_groups = [(group, group) for group in groups] if two_sided else comparisons.pairs(groups)
    found = [alike.compared(a, b) for a, b in of_groups]
    comparisons.conclude(found, confidence)
    left_out = sorted({name for run in runs for name in run.groups()} - set(groups))
    if left_out:
        notes = [*notes, f"left out, because not every run has them: {', '.join(left_out)}"]
    content: RunsFile = {
        "format": FORMAT,
        "objectives": list(objectives),
        "split": split,
        "reference_point": reference,
        "reference_point_rule": rule,
        "ideal_point": ideal,
        "utility_rule": UTILITY_RULE,
        "seed": seed,
        "confidence": confidence,
        "shared_prompts": len(set.intersection(*(set(run.prompts) for run in runs))),
        "runs": [_run_entry(run, each, confidence) for run, each in zip(runs, measured, strict=True)],
        "comparisons": found,
        "attainment": alike.attainment(groups) if len(objectives) == 2 else None,
        "notes": list(notes),
    }
    content["notes"] += filter(None, [without_spread(content)])
    return content


@dataclass(frozen=True)
class _Alike:
    """Runs that were measured alike, to be compared.

    Attributes:
        runs: S runs.
        counts: how often each prompt is drawn, by run.
        measured: each group by each measure, by run.
        reference: from where hypervolumes are measured, K numbers.
        confidence: coverage of all intervals.
    """

    runs: Sequence[RunScores]
    counts: Sequence[NDArray]
    measured: Sequence[Mapping[str, Mapping[str, Corrected]]]
    reference: Sequence[float]
    confidence: float

    @cached_property
    def sides(self) -> dict[str, list[int]]:
        """The runs of each side; none on side b where all are replicates."""
        return {side: [i for i, run in enumerate(self.runs) if run.side == side] for side in SIDES}

    def compared(self, a: str, b: str) -> RunsComparison:
        """Two groups in every run and over runs; or, of two sides, group `a` of the one and `b` of the other."""
        if self.sides["b"]:
            # By side, its runs with their group. Budgets are common to all runs of both.
            members = [[(i, group) for i in self.sides[side]] for side, group in zip(SIDES, (a, b), strict=True)]
            together = [[pair for some in members for pair in some]]
        else:
            # By run, its two groups, to which budgets are common.
            members = together = [[(i, a), (i, b)] for i in self.sides["a"]]
        budgets = [common_budgets(*self._spent(some)) for some in together]
        at_equal = None
        if None not in budgets:
            corrected = {
                pair: each for some in together for pair, each in zip(some, self._at_equal_kl(some), strict=True)
            }
            at_equal = [[corrected[pair] for pair in some] for some in members]
        differences = {
            f"{m}_difference": self._over_runs([[self.measured[i][group][m] for i, group in some] for some in members])
            for m in self.measured[0][a]
        }
        fronts = [
            self._means(self.sides[side] or self.sides["a"], group) for side, group in zip(SIDES, (a, b), strict=True)
        ]
        drawn = len(self.reference) == 2 and len(fronts[0]) == len(fronts[1])
        return {
            "a": a,
            "b": b,
            **differences,
            "equal_kl_difference": at_equal and self._over_runs(at_equal),
            "equal_kl_hypervolumes": at_equal and [[each.corrected for each in some] for some in at_equal],
            "kl_budgets": at_equal and [list(pair) for pair in budgets] * (len(self.runs) // len(budgets)),
            "no_equal_kl": None if at_equal else self._without_kl(together[budgets.index(None)]),
            "verdict": "undecided",
            "attainment_difference": attainment_difference(*fronts, self.reference) if drawn else None,
        }

    def attainment(self, groups: Sequence[str]) -> dict[str, dict[str, Attainment]]:
        """What the runs of each side attain, by group."""
        return {
            side: {group: attainment_over_runs(self._means(members, group)) for group in groups}
            for side, members in self.sides.items()
            if members
        }

    def _over_runs(self, found: Sequence[Sequence[Corrected]]) -> RunsDifference:
        """Of a measure: by run, of both groups; or by side, of every run."""
        if self.sides["b"]:
            return _difference([], *found, confidence=self.confidence)
        return _difference([a - b for a, b in found], confidence=self.confidence)

    def _at_equal_kl(self, members: Sequence[Member]) -> list[Corrected]:
        offered = [self.runs[i].offers(group) for i, group in members]
        counts = [self.counts[i] for i, _ in members]
        return correct_at_equal_kl(offered, self._spent(members), self.reference, counts)

    def _without_kl(self, members: Sequence[Member]) -> str:
        names = [f"{label(group)} of {self.runs[i].name}" for i, group in members]
        is_ratio = any(self.runs[i].has_ratios(group) for i, group in members)
        return why_no_budgets(dict(zip(names, self._spent(members), strict=True)), is_ratio=is_ratio)

    def _spent(self, members: Sequence[Member]) -> list[list[ArrayLike | None]]:
        return [self.runs[i].group_kl(group) for i, group in members]

    def _means(self, members: Sequence[int], group: str) -> list[NDArray[np.float64]]:
        return [self.runs[i].group(group).mean(axis=1) for i in members]


def _run_entry(run: RunScores, measured: Mapping[str, Mapping[str, Corrected]], confidence: float) -> RunEntry:
    return {
        "name": run.name,
        "folder": run.folder,
        "side": run.side,
        "prompts": len(run.prompts),
        "samples_per_prompt": run.points[0]["samples_per_prompt"],
        "sft_model": run.sft_model,
        "policies": list(run.policies),
        "groups": {
            group: {
                "points": len(run.group(group)),
                **{m: comparisons.group_measure(each, confidence) for m, each in of_group.items()},
            }
            for group, of_group in measured.items()
        },
    }


def attainment_over_runs(fronts: Sequence[ArrayLike]) -> Attainment:
    """The corners of what the fronts of one, of half and of all runs attain, for mean scores `[n_i, 2]` of each run.

    A front attains a pair of scores if one of its points is at least as high in both.

    Source: Grunert da Fonseca, Fonseca and Hall, EMO 2001 (the empirical attainment function); computed by moocore.
    """
    runs = len(fronts)
    shares = {"best": 1, "median": (runs + 1) // 2, "worst": runs}
    surfaces = {}
    for name, share in shares.items():
        surface = moocore.eaf(-np.concatenate(fronts), _owners(fronts), percentiles=[100.0 * share / runs])
        corners = -surface[:, :2] + 0.0
        surfaces[name] = corners[np.argsort(corners[:, 0])].tolist()
    return surfaces


def attainment_difference(a: Sequence[ArrayLike], b: Sequence[ArrayLike], floor: Sequence[float]) -> list[list[float]]:
    """Where more runs of one side attain a pair of scores than of the other: rectangles `[x0, y0, x1, y1, share]`.

    `share` is the share of the runs of a that attain the place minus that of b, and not 0; what reaches below `floor`
    is cut there. The rectangles do not overlap.

    Args:
        a: mean scores `[n_i, 2]` of each run.
        b: the same of the runs to subtract; as many runs.
        floor: the lowest scores to look at.

    Source: Lopez-Ibanez, Paquete and Stutzle, Exploratory analysis of stochastic local search algorithms in
    biobjective optimization, 2010 (differences of empirical attainment functions); computed by moocore.
    """
    low = np.asarray(floor, np.float64)
    sets = [np.column_stack([-np.concatenate(side), _owners(side)]) for side in (a, b)]
    if np.array_equal(*(moocore.eaf(each[:, :2], each[:, 2]) for each in sets)):
        return []  # moocore stops where there is no rectangle
    found = moocore.eafdiff(*sets, intervals=len(a), rectangles=True)
    rectangles = []
    for *corners, more in found.tolist():
        (x1, y1), (x0, y0) = (-np.array(corners[:2]), np.maximum(-np.array(corners[2:]), low))
        if more and x0 < x1 and y0 < y1:
            rectangles.append([float(x0), float(y0), float(x1), float(y1), more / len(a)])
    return rectangles


def _difference(each: Sequence[Corrected], *sides: Sequence[Corrected], confidence: float) -> RunsDifference:
    """The mean of the differences in each run, or the difference of the means of two sides; not adjusted yet."""
    mean = mean_over_runs(*(sides or [each]))
    found = mean.estimate(confidence)
    errors = [None if part is None else part.variance**0.5 for part in (mean.runs, mean.prompts)]
    return {
        "value": mean.value,
        "corrected": mean.corrected,
        "low": found.low,
        "high": found.high,
        "error_of_runs": errors[0],
        "error_of_prompts": errors[1],
        "p_value": found.p_value,
        "adjusted_p_value": found.p_value,
        "runs": [comparisons.group_measure(difference, confidence) for difference in each],
        "positive_runs": None if sides else sum(difference.corrected > 0 for difference in each),
    }


def _owners(fronts: Sequence[ArrayLike]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
