"""From points with their scores to the content of `front.json`. Higher scores are better everywhere.

Letters: n points, P prompts, K rewards, T texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.attainment import attained_regions
from rlhf_lines.pareto.behaviour import Behaviour, behaviour_entry, changes
from rlhf_lines.pareto.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_hypervolumes,
    bootstrap_means,
    interval,
    probability_positive,
)
from rlhf_lines.pareto.hull import hull_vertices
from rlhf_lines.pareto.measures import REFERENCE_POINT_RULE, hypervolume, nondominated, reference_point
from rlhf_lines.pareto.origin import arguments_to_merge, point_label, single_policy
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import (
    FORMAT,
    LINES,
    SFT,
    SOUP,
    Audit,
    Difference,
    Forgetting,
    Front,
    Mean,
    Spec,
    SurrogateEntry,
    Validation,
)
from rlhf_lines.pareto.utility import UTILITY_RULE, expected_utility, ideal_point, utilities


@dataclass(frozen=True)
class Point:
    """One merged policy with its scores.

    Attributes:
        id: number of the point in its run; unique.
        group: `sft`, `rewarded_soup`, `lines` or any other name; groups are what is compared.
        spec: the merge that made the policy: rule, weights, alpha, beta, schedule, options.
        scores: `[P, K]`, averaged over the samples of a prompt.
        kl: `[P]`, estimated KL to the SFT model, or None when it was not measured.
        samples_per_prompt: how many completions were averaged for each prompt.
        nll: `[T]`, minus the log-probability of each text outside the task, or None when it was not measured.
        text_tokens: `[T]`, how many tokens of each text the `nll` is summed over, or None.
        behaviour: what its completions are like, or None.
    """

    id: int
    group: str
    spec: Spec
    scores: ArrayLike
    kl: ArrayLike | None = None
    samples_per_prompt: int = 1
    nll: ArrayLike | None = None
    text_tokens: ArrayLike | None = None
    behaviour: Behaviour | None = None

    def __post_init__(self) -> None:
        missing = [key for key in Spec.__annotations__ if key not in self.spec]
        if missing:
            raise ValueError(f"the spec of point {self.id} has no {', '.join(missing)}; expected what MergeSpec holds")


def build_front(
    *,
    rewards: Sequence[str],
    split: str,
    seed: int,
    points: Sequence[Point | Mapping[str, Any]],
    sft_model: str | None = None,
    policies: Sequence[str] = (),
    validation: Validation | None = None,
    surrogate: dict[str, SurrogateEntry] | None = None,
    forgetting: Forgetting | None = None,
    audit: Audit | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Front:
    """The content of `front.json`: points with intervals, one front per group, and paired comparisons.

    Points are listed by id, so the result does not depend on the order they come in. A group with one point (`sft`)
    gets no front. All groups with a front are compared with each other: `lines` with `rewarded_soup` first, then
    `lines` with the others by name, then the rest. Reference and ideal point are those of the mean scores, also in
    the resamples.

    Args:
        rewards: K names, in the order of the columns of `Point.scores`.
        split: the prompts that were scored, such as `test`.
        seed: seed of the resampled prompts.
        points: points scored on the same prompts in the same order; a mapping with the fields of `Point` will do.
        sft_model: what the policies were trained from; without it no point says how it is made.
        policies: those that were merged, then the MORLHF runs; the weights of a spec belong to the first of them.
        validation: how alpha, beta and schedule were chosen; None, as for the next two, where there is nothing to say.
        surrogate: by group, what a fit predicted.
        forgetting: what the texts outside the task were.
        audit: the signatures of the policies.
        resamples: number of bootstrap resamples.
        confidence: coverage of all intervals.

    Raises:
        ValueError: there are no points, an id occurs twice, shapes differ or a score is not finite.
    """
    rewards, policies = list(rewards), list(policies)
    points = [Point(**point) if isinstance(point, Mapping) else point for point in points]
    points = sorted(points, key=lambda point: point.id)
    scores = _stack_scores(points, rewards)  # [n, P, K]
    means = scores.mean(axis=1)
    mean_samples = bootstrap_means(scores, resamples, seed)
    reference, ideal = reference_point(means), ideal_point(means)

    resampling = Resampling(resamples, seed, confidence)
    sft = next((point.behaviour for point in points if point.group == SFT), None)

    groups: dict[str, list[int]] = {}
    for row, point in enumerate(points):
        groups.setdefault(point.group, []).append(row)
    fronts, measures = {}, {}
    for group, rows in groups.items():
        if len(rows) < 2:
            continue
        mine, my_samples = means[rows], mean_samples[:, rows]
        measures[group] = {
            "hypervolume": (hypervolume(mine, reference), bootstrap_hypervolumes(my_samples, reference)),
            "expected_utility": (
                float(expected_utility(utilities(mine[None], reference, ideal))[0]),
                expected_utility(utilities(my_samples, reference, ideal)),
            ),
        }
        fronts[group] = {
            **{name: _estimate("value", *measure, confidence) for name, measure in measures[group].items()},
            "nondominated": [points[rows[i]].id for i in nondominated(mine)],
            "hull": [points[rows[i]].id for i in hull_vertices(mine)],
            "attainment": attained_regions(my_samples),
        }

    return {
        "format": FORMAT,
        "rewards": rewards,
        "split": split,
        "reference_point": reference,
        "reference_point_rule": REFERENCE_POINT_RULE,
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
                "scores": {
                    reward: _estimate("mean", means[row, k], mean_samples[:, row, k], confidence)
                    for k, reward in enumerate(rewards)
                },
                "kl": _kl(point, scores.shape[1], resamples, seed, confidence),
                "prompts": scores.shape[1],
                "samples_per_prompt": point.samples_per_prompt,
                "perplexity": _perplexity(point, resamples, seed, confidence),
                "label": point_label(point.spec, policies),
                "single_policy": single_policy(point.spec, policies),
                "merge_arguments": arguments_to_merge(point.spec, sft_model, policies),
                "metrics": behaviour_entry(point.behaviour, sft, rewards, resampling),
                "changes": changes(point.behaviour, sft, resampling),
            }
            for row, point in enumerate(points)
        ],
        "fronts": fronts,
        "comparisons": [
            {
                "a": a,
                "b": b,
                **{
                    f"{name}_difference": _difference(measure, measures[b][name], confidence)
                    for name, measure in measures[a].items()
                },
            }
            for a, b in _pairs(fronts)
        ],
        "sft_model": sft_model,
        "policies": policies,
        "validation": validation,
        "surrogate": surrogate,
        "forgetting": forgetting,
        "audit": audit,
    }


def _stack_scores(points: Sequence[Point], rewards: Sequence[str]) -> NDArray[np.float64]:
    if not points:
        raise ValueError("a front needs at least one scored point, got none; run the sweep first")
    if len(set(rewards)) != len(rewards):
        raise ValueError(f"the rewards {list(rewards)} name one reward twice; give every reward its own name")
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


def _pairs(groups: Iterable[str]) -> list[tuple[str, str]]:
    first = {LINES: 0, SOUP: 1}
    return list(combinations(sorted(groups, key=lambda group: (first.get(group, 2), group)), 2))


def _difference(
    a: tuple[float, NDArray[np.float64]], b: tuple[float, NDArray[np.float64]], confidence: float
) -> Difference:
    (value_a, samples_a), (value_b, samples_b) = a, b
    difference = _estimate("value", value_a - value_b, samples_a - samples_b, confidence)
    return {**difference, "probability_positive": probability_positive(samples_a - samples_b)}


def _estimate(key: str, value: float, samples: NDArray[np.float64], confidence: float) -> dict[str, float]:
    low, high = interval(samples, confidence)
    return {key: float(value), "low": low, "high": high}


def _kl(point: Point, prompts: int, resamples: int, seed: int, confidence: float) -> Mean | None:
    if point.kl is None:
        return None
    kl = np.asarray(point.kl, dtype=np.float64)
    if kl.shape != (prompts,) or not np.isfinite(kl).all():
        raise ValueError(f"kl of point {point.id} has shape {kl.shape}; expected {prompts} finite numbers or None")
    samples = bootstrap_means(kl[None, :, None], resamples, seed)[:, 0, 0]
    return _estimate("mean", kl.mean(), samples, confidence)


def _perplexity(point: Point, resamples: int, seed: int, confidence: float) -> Mean | None:
    """`exp(sum of nll / sum of tokens)` with its interval over texts."""
    if point.nll is None and point.text_tokens is None:
        return None
    nll, tokens = (np.asarray(values, dtype=np.float64) for values in (point.nll, point.text_tokens))
    if nll.ndim != 1 or nll.shape != tokens.shape or nll.size == 0 or not (np.isfinite(nll) & (tokens > 0)).all():
        raise ValueError(
            f"point {point.id} has nll of shape {nll.shape} and text_tokens of shape {tokens.shape}; expected a "
            "finite nll and a positive number of tokens for every text outside the task, or None for both"
        )
    samples = bootstrap_means(np.stack([nll, tokens], axis=-1)[None], resamples, seed)[:, 0]
    return _estimate("mean", np.exp(nll.sum() / tokens.sum()), np.exp(samples[:, 0] / samples[:, 1]), confidence)
