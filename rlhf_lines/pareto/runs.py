"""From finished sweeps to the content of `comparison.json`. Higher scores are better everywhere.

Letters: S runs, n points, P prompts, K rewards, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, RESAMPLES, bootstrap_hypervolumes, interval
from rlhf_lines.pareto.comparison import (
    FORMAT,
    MEASURES,
    Attainment,
    OverRuns,
    RunsComparison,
    RunsDifference,
    RunsFile,
)
from rlhf_lines.pareto.measures import hypervolume, reference_point
from rlhf_lines.pareto.replicates import RunsMean, holm, mean_over_runs, shared_counts
from rlhf_lines.pareto.schema import LINES, MORLHF, SFT, SOUP, PointEntry, Value
from rlhf_lines.pareto.utility import UTILITY_RULE, expected_utility, ideal_point, utilities


ANCHORS_RULE = (
    "per reward: the lowest mean score of the SFT model and the single policies of all runs, minus 10 % of the range "
    "of these mean scores"
)
ALL_RULE = "per reward: the lowest mean score of any point of any run, minus 10 % of the range of mean scores"
GIVEN_RULE = "as given"
SIDES = ("a", "b")


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
    """

    name: str
    folder: str
    prompts: Sequence[str]
    points: Sequence[PointEntry]
    scores: Mapping[int, ArrayLike]
    sft_model: str | None = None
    policies: Sequence[str] = ()
    side: str = "a"

    def group(self, name: str) -> NDArray[np.float64]:
        """The scores of a group, `[n, P, K]`, by id."""
        ids = sorted(point["id"] for point in self.points if point["group"] == name)
        return np.stack([np.asarray(self.scores[i], np.float64) for i in ids])

    def groups(self) -> list[str]:
        """The groups of two points or more, `lines` and the soup first, then by name."""
        names = [point["group"] for point in self.points]
        first = {LINES: 0, SOUP: 1}
        return sorted({n for n in names if names.count(n) > 1}, key=lambda n: (first.get(n, 2), n))

    def anchors(self) -> list[int]:
        """The ids of the SFT model and of the single policies as they were trained."""
        return [
            point["id"]
            for point in self.points
            if point["group"] == SFT or (point["single_policy"] is not None and point["group"] != MORLHF)
        ]


class Measured(NamedTuple):
    """A measure of a group: of the mean scores, and of those under resampled prompts `[R]`."""

    value: float
    samples: NDArray[np.float64]


def compare_runs(
    runs: Sequence[RunScores],
    *,
    rewards: Sequence[str],
    split: str,
    seed: int,
    given_reference: Sequence[float] | None = None,
    notes: Sequence[str] = (),
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> RunsFile:
    """The content of `comparison.json`: runs beside each other, all by one reference point and one ideal point.

    Runs of one side are replicates: every two groups that all runs have are compared in every run, and over runs. With
    runs on side b, every group that all runs have is compared between the sides.

    Args:
        runs: at least two, of one side, or one or several of each.
        rewards: K names, in the order of the columns of scores.
        split: the prompts that were scored.
        seed: seed of the resampled prompts.
        given_reference: K numbers, or None for the rule of the anchors.
        notes: what else is to be said of the runs.
        resamples: R.
        confidence: coverage of all intervals.

    Raises:
        ValueError: the runs have nothing in common that can be compared, or their number does not fit.
    """
    groups = [name for name in runs[0].groups() if all(name in run.groups() for run in runs)]
    sides = {side: [i for i, run in enumerate(runs) if run.side == side] for side in SIDES}
    if not groups or (len(groups) < 2 and not sides["b"]):
        raise ValueError(
            f"the runs share {' and '.join(map(repr, groups)) or 'no group'} of several points; expected "
            f"{'a group' if sides['b'] else 'two groups'} that every run has"
        )
    reference, rule, ideal = _common_points(runs, given_reference)
    counts = shared_counts([run.prompts for run in runs], resamples, seed)
    measured = [
        {group: measure_group(run.group(group), drawn, reference, ideal) for group in groups}
        for run, drawn in zip(runs, counts, strict=True)
    ]
    fewest = min(len(run.prompts) for run in runs)
    if sides["b"]:
        names = [(group, group) for group in groups]
        found = [
            {m: _between(*([measured[i][group][m] for i in sides[side]] for side in SIDES), fewest) for m in MEASURES}
            for group in groups
        ]
    else:
        names = list(combinations(groups, 2))
        found = [{m: _within([(run[a][m], run[b][m]) for run in measured], fewest) for m in MEASURES} for a, b in names]
    fronts = {group: [run.group(group).mean(axis=1) for run in runs] for group in groups}
    left_out = sorted({name for run in runs for name in run.groups()} - set(groups))
    if left_out:
        notes = [*notes, f"left out, because not every run has them: {', '.join(left_out)}"]
    return {
        "format": FORMAT,
        "rewards": list(rewards),
        "split": split,
        "reference_point": reference,
        "reference_point_rule": rule,
        "ideal_point": ideal,
        "utility_rule": UTILITY_RULE,
        "seed": seed,
        "resamples": resamples,
        "confidence": confidence,
        "shared_prompts": len(set.intersection(*(set(run.prompts) for run in runs))),
        "runs": [
            {
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
                        **{m: _value(measured[i][group][m], confidence) for m in MEASURES},
                    }
                    for group in groups
                },
            }
            for i, run in enumerate(runs)
        ],
        "comparisons": _comparisons(names, found, fronts, sides, reference, confidence),
        "attainment": {
            side: {group: attainment_over_runs([fronts[group][i] for i in members]) for group in groups}
            for side, members in sides.items()
            if members
        }
        if len(rewards) == 2
        else None,
        "notes": list(notes),
    }


def measure_group(
    scores: NDArray[np.float64],
    counts: NDArray[np.float64],
    reference: Sequence[float],
    ideal: Sequence[float],
) -> dict[str, Measured]:
    """Hypervolume and expected utility of scores `[n, P, K]` under resampled prompts `counts` `[R, P]`."""
    means = scores.mean(axis=1)
    samples = np.tensordot(counts, scores, axes=(1, 1)) / scores.shape[1]  # [R, n, K]
    utility = expected_utility(utilities(np.concatenate([means[None], samples]), reference, ideal))
    return {
        "hypervolume": Measured(hypervolume(means, reference), bootstrap_hypervolumes(samples, reference)),
        "expected_utility": Measured(float(utility[0]), utility[1:]),
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


def _common_points(runs: Sequence[RunScores], given: Sequence[float] | None) -> tuple[list[float], str, list[float]]:
    """Reference point, its rule, and ideal point of the anchors of all runs; of all points where a run has none."""
    anchored = all(run.anchors() for run in runs)
    ids = [run.anchors() if anchored else sorted(run.scores) for run in runs]
    means = np.array([np.mean(run.scores[i], axis=0) for run, of in zip(runs, ids, strict=True) for i in of])
    if given is not None:
        return [float(value) for value in given], GIVEN_RULE, ideal_point(means)
    return reference_point(means), ANCHORS_RULE if anchored else ALL_RULE, ideal_point(means)


def _within(pairs: Sequence[tuple[Measured, Measured]], prompts: int) -> tuple[list[Measured], RunsMean]:
    """The difference in every run, and its mean."""
    each = [Measured(a.value - b.value, a.samples - b.samples) for a, b in pairs]
    return each, mean_over_runs([d.value for d in each], [d.samples for d in each], prompts=prompts)


def _between(a: Sequence[Measured], b: Sequence[Measured], prompts: int) -> tuple[list[Measured], RunsMean]:
    """Nothing for single runs, and the difference of the means of two sides."""
    (x, sample_x), (y, sample_y) = (([m.value for m in side], [m.samples for m in side]) for side in (a, b))
    return [], mean_over_runs(x, sample_x, prompts=prompts, against=(y, sample_y))


def _comparisons(
    names: Sequence[tuple[str, str]],
    found: Sequence[Mapping[str, tuple[list[Measured], RunsMean]]],
    fronts: Mapping[str, Sequence[NDArray[np.float64]]],
    sides: Mapping[str, Sequence[int]],
    reference: Sequence[float],
    confidence: float,
) -> list[RunsComparison]:
    p_values = {m: [entry[m][1].p_value() for entry in found] for m in MEASURES}
    adjusted = {m: holm(values) for m, values in p_values.items()}
    comparisons = []
    for k, ((a, b), entry) in enumerate(zip(names, found, strict=True)):
        differences = {
            m: _difference(*entry[m], p_values[m][k], adjusted[m][k], confidence, within=not sides["b"])
            for m in MEASURES
        }
        of_a = [fronts[a][i] for i in sides["a"]]
        of_b = [fronts[b][i] for i in sides["b"] or sides["a"]]
        comparisons.append(
            {
                "a": a,
                "b": b,
                **{f"{m}_difference": differences[m] for m in MEASURES},
                "verdict": _verdict([difference["over_runs"] for difference in differences.values()], confidence),
                "attainment_difference": attainment_difference(of_a, of_b, reference)
                if len(reference) == 2 and len(of_a) == len(of_b)
                else None,
            }
        )
    return comparisons


def _difference(
    each: Sequence[Measured],
    mean: RunsMean,
    p_value: float,
    adjusted: float,
    confidence: float,
    *,
    within: bool,
) -> RunsDifference:
    low, high = mean.interval(confidence)
    over_runs: OverRuns = {
        "value": mean.value,
        "low": low,
        "high": high,
        "error_of_runs": None if mean.runs is None else mean.runs.variance**0.5,
        "error_of_prompts": mean.prompts.variance**0.5,
        "p_value": p_value,
        "adjusted_p_value": adjusted,
    }
    return {
        "over_runs": over_runs,
        "runs": [_value(difference, confidence) for difference in each],
        "positive_runs": sum(difference.value > 0 for difference in each) if within else None,
    }


def _verdict(differences: Sequence[OverRuns], confidence: float) -> Any:
    signs = {0 if d["adjusted_p_value"] >= 1.0 - confidence else (1 if d["value"] > 0 else -1) for d in differences}
    return {(1,): "better", (-1,): "worse", (0,): "undecided"}.get(tuple(signs), "mixed")


def _value(measured: Measured, confidence: float) -> Value:
    low, high = interval(measured.samples, confidence)
    return {"value": float(measured.value), "low": low, "high": high}


def _owners(fronts: Sequence[ArrayLike]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
