"""From points with their scores to the content of `front.json`. Higher scores are better everywhere.

Letters: n points, P prompts, K objectives, T texts, R resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.behaviour import Behaviour, behaviour_entry, changes
from rlhf_lines.pareto.benchmarks import Result, benchmark_changes, result_entry
from rlhf_lines.pareto.bootstrap import CONFIDENCE, RESAMPLES, bootstrap_counts, bootstrap_means, mean_interval
from rlhf_lines.pareto.corrected import DRAWN, ExpectedUtility, Hypervolume, correct
from rlhf_lines.pareto.equal_kl import common_budgets, correct_at_equal_kl, offers, why_no_budgets
from rlhf_lines.pareto.fixed_points import fixed_points
from rlhf_lines.pareto.hull import hull_vertices
from rlhf_lines.pareto.measures import nondominated
from rlhf_lines.pareto.origin import anchors, arguments_to_merge, point_label, shared_weights, single_policy
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import (
    FORMAT,
    METRICS,
    SFT,
    Audit,
    Benchmark,
    Comparison,
    EverySpec,
    Forgetting,
    Front,
    LostEntry,
    Mean,
    Measured,
    Spec,
    SurrogateEntry,
    Validation,
    label,
)
from rlhf_lines.pareto.utility import UTILITY_RULE
from rlhf_lines.pareto.wins import lost_most


@dataclass(frozen=True)
class Point:
    """One merged policy with its scores.

    Attributes:
        id: number of the point in its run; unique.
        group: `sft`, `rewarded_soup`, `lines` or any other name; groups are what is compared.
        spec: the merge that made the policy: rule, weights, alpha, beta, schedule, options.
        scores: `[P, K]`, of the objectives, averaged over the samples of a prompt.
        kl: `[P]`, estimated KL to the SFT model, or None when it was not measured.
        samples_per_prompt: how many completions were averaged for each prompt.
        nll: `[T]`, minus the log-probability of each text outside the task, or None when it was not measured.
        text_tokens: `[T]`, how many tokens of each text the `nll` is summed over, or None.
        metrics: `[P]` each, what else was measured, by name: further scores, and what has a mean over prompts. None
            is a score that other points have.
        behaviour: what its completions are like, or None.
        preference: the weights at which it stands beside the points of other groups; None where they are those of the
            spec, if they sum to 1.
        results: of benchmarks, by metric.
    """

    id: int
    group: str
    spec: Spec
    scores: ArrayLike
    kl: ArrayLike | None = None
    samples_per_prompt: int = 1
    nll: ArrayLike | None = None
    text_tokens: ArrayLike | None = None
    metrics: Mapping[str, ArrayLike | None] = field(default_factory=dict)
    behaviour: Behaviour | None = None
    preference: Sequence[float] | None = None
    results: Mapping[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [key for key in EverySpec.__annotations__ if key not in self.spec]
        if missing:
            raise ValueError(f"the spec of point {self.id} has no {', '.join(missing)}; expected what MergeSpec holds")


def build_front(
    *,
    rewards: Sequence[str],
    split: str,
    seed: int,
    points: Sequence[Point | Mapping[str, Any]],
    metrics: Sequence[str] = (),
    given_reference_point: Sequence[float] | None = None,
    sft_model: str | None = None,
    policies: Sequence[str] = (),
    sft_renamed: bool = False,
    validation: Validation | None = None,
    surrogate: dict[str, SurrogateEntry] | None = None,
    forgetting: Forgetting | None = None,
    audit: Audit | None = None,
    benchmarks: Mapping[str, Benchmark] | None = None,
    prompt_ids: Sequence[int] = (),
    answers: Collection[str] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Front:
    """The content of `front.json`: points with intervals, one front per group, and paired comparisons.

    Points are listed by id, so the result does not depend on the order they come in. A group with one point (`sft`)
    gets no front. All groups with a front are compared with each other: `lines` with `rewarded_soup` first, then
    `lines` with the others by name, then the rest.

    Reference and ideal point are those of the mean scores of the SFT model and the single policies (see `anchors`), so
    that a group that is added changes neither; without two of these they are those of all points. They are the
    same in all resamples.

    Args:
        rewards: K names, the objectives, in the order of the columns of `Point.scores`.
        split: the prompts that were scored, such as `test`.
        seed: seed of the resampled prompts.
        points: points scored on the same prompts in the same order; a mapping with the fields of `Point` will do.
        metrics: names of further scores, which every point has under its `metrics`, or None.
        given_reference_point: K numbers; None leaves it to the rule.
        sft_model: what the policies were trained from; without it no point says how it is made.
        policies: those that were merged, then the MORLHF runs; the weights of a spec belong to the first of them.
        sft_renamed: the policies know the SFT model by another name, which whoever merges them has to say.
        validation: how alpha, beta and schedule were chosen; None, as for the next two, where there is nothing to say.
        surrogate: by group, what a fit predicted.
        forgetting: what the texts outside the task were.
        audit: the signatures of the policies.
        benchmarks: how the points were asked what their `results` are of.
        prompt_ids: of the P prompts in the run store; left out, their numbers from 0.
        answers: names of the scores of which every single one is 0 or 1, before samples are averaged; left out, those
            of a point whose means are.
        resamples: number of bootstrap resamples.
        confidence: coverage of all intervals.

    Raises:
        ValueError: there are no points, an id or name occurs twice, shapes differ or a number is not finite.
    """
    rewards, policies = list(rewards), list(policies)
    points = [Point(**point) if isinstance(point, Mapping) else point for point in points]
    points = sorted(points, key=lambda point: point.id)
    _check_names(rewards, metrics)
    scores = _stack_scores(points, rewards)  # [n, P, K]
    means, prompts = scores.mean(axis=1), scores.shape[1]

    anchored = anchors((point.spec, point.group) for point in points)
    reference, ideal, rule = fixed_points([(anchored, means)], rewards, given_reference_point)
    kl = [_per_prompt(point, "kl", point.kl, prompts) for point in points]

    resampling = Resampling(resamples, seed, confidence)
    model = next((point.behaviour for point in points if point.group == SFT), None)
    model_results = next((point.results for point in points if point.group == SFT), {})

    groups: dict[str, list[int]] = {}
    for row, point in enumerate(points):
        groups.setdefault(point.group, []).append(row)
    groups = {group: rows for group, rows in groups.items() if len(rows) > 1}
    sft = [row for row, found in enumerate(anchored) if found == ()][:1]

    measures = {
        group: {
            "hypervolume": correct(scores[rows], Hypervolume(tuple(reference)), seed),
            "expected_utility": correct(scores[rows], ExpectedUtility(tuple(reference), tuple(ideal)), seed),
        }
        for group, rows in groups.items()
    }

    counts = bootstrap_counts(prompts, DRAWN, seed)

    @cache
    def offered(group: str) -> NDArray[np.float64]:
        rows = groups[group]
        weights = [points[row].spec["weights"] for row in rows]
        return offers(scores[rows], [kl[row] for row in rows], weights, scores[sft])

    def compared(a: str, b: str) -> Comparison:
        spent = {group: [kl[row] for row in groups[group]] for group in (a, b)}
        budgets = common_budgets(*spent.values())
        is_ratio = any("log_ratio" in points[row].metrics for group in (a, b) for row in groups[group])
        at_equal = budgets and correct_at_equal_kl(
            [offered(group) for group in (a, b)], [*spent.values()], reference, [counts, counts]
        )
        return {
            "a": a,
            "b": b,
            **{
                f"{name}_difference": comparisons.difference(measure, measures[b][name], confidence)
                for name, measure in measures[a].items()
            },
            "equal_kl_difference": at_equal and comparisons.difference(*at_equal, confidence),
            "kl_budgets": budgets and list(budgets),
            "equal_kl_hypervolumes": at_equal and [each.corrected for each in at_equal],
            "no_equal_kl": None
            if at_equal
            else why_no_budgets({label(group): found for group, found in spent.items()}, is_ratio=is_ratio),
            "verdict": "undecided",
        }

    found = [compared(a, b) for a, b in comparisons.pairs(groups)]
    comparisons.conclude(found, confidence)
    names = list(dict.fromkeys([*(name for point in points for name in point.metrics), *metrics]))
    asked = list(dict.fromkeys(name for point in points for name in point.results))

    return {
        "format": FORMAT,
        "rewards": rewards,
        "objectives": rewards,
        "metrics": list(metrics),
        "split": split,
        "reference_point": reference,
        "reference_point_rule": rule,
        "ideal_point": ideal,
        "utility_rule": UTILITY_RULE,
        "seed": seed,
        "resamples": resamples,
        "confidence": confidence,
        "points": [
            {
                "id": point.id,
                "group": point.group,
                "spec": dict(point.spec),
                **measure_point(
                    point, model, rewards, metrics, resampling, further=names, asked=asked, answers=answers
                ),
                "label": point_label(point.spec, policies),
                "preference": _preference(point),
                "single_policy": single_policy(point.spec, policies),
                "merge_arguments": arguments_to_merge(point.spec, sft_model, policies, sft_renamed=sft_renamed),
                "changes": changes(point.behaviour, model, resampling),
                "lost_most": _lost_most(point.behaviour, model, rewards, prompt_ids or range(prompts)),
                "benchmark_changes": benchmark_changes(point.results, model_results, resampling),
            }
            for point in points
        ],
        "fronts": {
            group: {
                **{name: comparisons.group_measure(each, confidence) for name, each in measures[group].items()},
                "nondominated": [points[rows[i]].id for i in nondominated(means[rows])],
                "hull": [points[rows[i]].id for i in hull_vertices(means[rows])],
            }
            for group, rows in groups.items()
        },
        "comparisons": found,
        "not_compared": _not_compared([point.group for point in points]),
        "sft_model": sft_model,
        "policies": policies,
        "validation": validation,
        "surrogate": surrogate,
        "forgetting": forgetting,
        "audit": audit,
        "benchmarks": dict(benchmarks or {}),
        "answers": list(answers or ()),
    }


def measure_point(
    point: Point,
    sft: Behaviour | None,
    objectives: Sequence[str],
    metrics: Sequence[str],
    resampling: Resampling,
    *,
    further: Sequence[str] = (),
    asked: Sequence[str] = (),
    answers: Collection[str] | None = None,
) -> Measured:
    """What was measured of a point, with intervals over its prompts.

    Args:
        point: with scores of P prompts.
        sft: what the SFT model's completions of the same prompts are like, or None.
        objectives: names of the columns of its scores.
        metrics: names of further scores, which it has, or None in place of them.
        resampling: of the prompts.
        further: names of what else other points have; null where this one has it not.
        asked: metrics of the benchmarks that points were asked; null where this one was not.
        answers: names of the scores of which every single one is 0 or 1; left out, those whose means are.

    Raises:
        ValueError: a metric has another shape than the scores, or is not finite.
    """
    scores = np.asarray(point.scores, dtype=np.float64)
    prompts, kl = len(scores), _per_prompt(point, "kl", point.kl, len(scores))
    required = set(metrics) - point.metrics.keys()
    found = {
        name: _per_prompt(point, name, point.metrics.get(name), prompts, needed=name in required)
        for name in dict.fromkeys([*further, *point.metrics, *metrics])
    }
    return {
        "scores": resampling.scores(dict(zip(objectives, scores.T, strict=True)), answers=answers),
        "metrics": behaviour_entry(point.behaviour, sft, objectives, resampling)
        | {
            name: None
            if column is None
            else resampling.mean(column)
            if name in METRICS
            else resampling.scores({name: column}, answers=answers)[name]
            for name, column in found.items()
        }
        | {name: result_entry(point.results[name], resampling) if name in point.results else None for name in asked},
        "kl": None if kl is None else resampling.mean(kl),
        "prompts": prompts,
        "samples_per_prompt": point.samples_per_prompt,
        "perplexity": _perplexity(point, resampling),
    }


def _not_compared(of_points: Sequence[str]) -> str | None:
    """Which groups have a single point, the SFT model aside, from the groups of all points."""
    names = [label(group) for group, count in Counter(of_points).items() if count == 1 and group != SFT]
    if len(names) > 1:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        return f"{listed} are single points, which are no fronts: they are compared with nothing."
    return f"{names[0]} is a single point, which is no front: it is compared with nothing." if names else None


def _lost_most(
    own: Behaviour | None, sft: Behaviour | None, objectives: Sequence[str], prompt_ids: Sequence[int]
) -> list[LostEntry] | None:
    if own is None or sft is None:
        return None
    lost = lost_most(own.scores, sft.scores, objectives)
    return [{"prompt": prompt_ids[one.prompt], "loss": one.loss, "differences": one.differences} for one in lost]


def _preference(point: Point) -> list[float] | None:
    if point.preference is not None:
        return list(map(float, point.preference))
    return shared_weights(point.group, point.spec["weights"])


def _check_names(rewards: Sequence[str], metrics: Sequence[str]) -> None:
    if len(set(rewards)) != len(rewards):
        raise ValueError(f"the rewards {list(rewards)} name one reward twice; give every reward its own name")
    for name in metrics:
        if name in METRICS or name in rewards or list(metrics).count(name) > 1:
            raise ValueError(f"the score {name!r} has a name that is taken; give every score its own name")


def _stack_scores(points: Sequence[Point], rewards: Sequence[str]) -> NDArray[np.float64]:
    if not points:
        raise ValueError("a front needs at least one scored point, got none; run the sweep first")
    ids = [point.id for point in points]
    duplicates = sorted({i for i in ids if ids.count(i) > 1})
    if duplicates:
        raise ValueError(f"point ids {duplicates} occur more than once; expected one entry per point")
    arrays = [np.asarray(point.scores, dtype=np.float64) for point in points]
    expected = (*arrays[0].shape[:1], len(rewards))
    for point, array in zip(points, arrays, strict=True):
        if array.shape != expected or array.shape[0] == 0:
            raise ValueError(
                f"scores of point {point.id} have shape {array.shape}; expected [prompts, rewards] = {expected}, "
                f"the same prompts for every point and one column for each of {list(rewards)}"
            )
        if not np.isfinite(array).all():
            prompt, k = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"point {point.id} has score {array[prompt, k]} for reward {rewards[k]!r} on prompt {prompt}; "
                "expected a finite number; score that prompt again"
            )
    return np.stack(arrays)


def _per_prompt(
    point: Point, name: str, values: ArrayLike | None, prompts: int, *, needed: bool = False
) -> NDArray[np.float64] | None:
    """What was measured of every prompt, `[P]`, or None where it was not."""
    if values is None and not needed:
        return None
    values = np.asarray([] if values is None else values, dtype=np.float64)
    if values.shape != (prompts,) or not np.isfinite(values).all():
        optional = "" if needed else " or None"
        raise ValueError(
            f"{name} of point {point.id} has shape {values.shape}; expected {prompts} finite numbers{optional}"
        )
    return values


def _perplexity(point: Point, resampling: Resampling) -> Mean | None:
    """`exp(sum of nll / sum of tokens)`; its interval over texts is that of the exponent, and ends at 1 or above."""
    if point.nll is None and point.text_tokens is None:
        return None
    nll, tokens = (np.asarray(values, dtype=np.float64) for values in (point.nll, point.text_tokens))
    if nll.ndim != 1 or nll.shape != tokens.shape or nll.size == 0 or not (np.isfinite(nll) & (tokens > 0)).all():
        raise ValueError(
            f"point {point.id} has nll of shape {nll.shape} and text_tokens of shape {tokens.shape}; expected a "
            "finite nll and a positive number of tokens for every text outside the task, or None for both"
        )
    columns = np.stack([nll, tokens], axis=-1)
    samples = bootstrap_means(columns[None], resampling.resamples, resampling.seed)[:, 0]
    exponent = float(nll.sum() / tokens.sum())
    low, high = mean_interval(samples[:, 0] / samples[:, 1], exponent, nll.size, resampling.confidence)
    ends = {"mean": exponent, "low": low, "high": high}
    return {key: None if end is None else float(np.exp(max(end, 0.0))) for key, end in ends.items()}
