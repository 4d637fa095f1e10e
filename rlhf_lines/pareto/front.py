"""Dominance, hypervolume and `front.json`. Higher scores are better everywhere.

Letters: n points, P prompts, K rewards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.artifact import write_whole
from rlhf_lines.pareto.attainment import attained_regions
from rlhf_lines.pareto.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_hypervolumes,
    bootstrap_means,
    interval,
    probability_positive,
)
from rlhf_lines.pareto.hull import hull_vertices
from rlhf_lines.pareto.utility import UTILITY_RULE, expected_utility, ideal_point, utilities


FORMAT = 1
FILE_NAME = "front.json"
KEYS = ("rewards", "split", "reference_point", "ideal_point", "seed", "points", "fronts", "comparisons")
MARGIN = 0.1
REFERENCE_POINT_RULE = (
    "per reward: the lowest mean score of any point, minus 10 % of the range of mean scores over all points"
)


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
        nats: `[T]`, minus the log-probability of each of T control texts, or None when it was not measured.
        text_tokens: `[T]`, how many tokens of each control text the nats are summed over, or None.
    """

    id: int
    group: str
    spec: Mapping[str, Any]
    scores: ArrayLike
    kl: ArrayLike | None = None
    samples_per_prompt: int = 1
    nats: ArrayLike | None = None
    text_tokens: ArrayLike | None = None


def nondominated(scores: ArrayLike) -> list[int]:
    """The indices of the rows of `scores` `[n, K]` that no other row dominates, in ascending order.

    Row a dominates row b if it is at least as high everywhere and higher somewhere. Equal rows do not dominate each
    other, so duplicates stay or go together.

    >>> nondominated([[1, 3], [3, 1], [2, 2], [1, 1], [2, 2]])
    [0, 1, 2, 4]
    """
    scores = _as_matrix(scores)
    return [int(i) for i in np.flatnonzero(moocore.is_nondominated(scores, maximise=True, keep_weakly=True))]


def hypervolume(scores: ArrayLike, reference_point: Sequence[float]) -> float:
    """The volume of the region that lies below some row of `scores` `[n, K]` and above the reference point.

    A row that does not exceed the reference point in every reward adds nothing, and neither does a dominated row.

    Two unit-wide boxes, 1 x 3 and 3 x 1, that share the unit square: 3 + 3 - 1.

    >>> hypervolume([[1, 3], [3, 1]], [0, 0])
    5.0

    Source: Zitzler and Thiele, PPSN 1998 (the measure); computed by moocore.
    """
    return float(moocore.hypervolume(_as_matrix(scores), ref=np.asarray(reference_point, float), maximise=True))


def reference_point(scores: ArrayLike) -> list[float]:
    """The reference point for mean scores `[n, K]` of all points: see `REFERENCE_POINT_RULE`.

    The margin gives the ends of a front a volume of their own. A reward on which all points agree has no range, and
    every hypervolume is then zero.

    >>> reference_point([[0.0, 10.0], [1.0, 30.0]])
    [-0.1, 8.0]
    """
    scores = _as_matrix(scores)
    low, high = scores.min(axis=0), scores.max(axis=0)
    return [float(value) for value in low - MARGIN * (high - low)]


def build_front(
    *,
    rewards: Sequence[str],
    split: str,
    seed: int,
    points: Sequence[Point | Mapping[str, Any]],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
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
        resamples: number of bootstrap resamples.
        confidence: coverage of all intervals.

    Raises:
        ValueError: there are no points, an id occurs twice, shapes differ or a score is not finite.
    """
    rewards = list(rewards)
    points = [Point(**point) if isinstance(point, Mapping) else point for point in points]
    points = sorted(points, key=lambda point: point.id)
    scores = _stack_scores(points, rewards)  # [n, P, K]
    means = scores.mean(axis=1)
    mean_samples = bootstrap_means(scores, resamples, seed)
    reference, ideal = reference_point(means), ideal_point(means)

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
    }


def write_front(folder: str | Path, front: Mapping[str, Any]) -> Path:
    """Write `front.json` into `folder` and returns its path; the file appears whole or not at all.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a number is not finite, which JSON cannot hold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {FILE_NAME}: {folder} is not a folder; create it or check the path")
    text = json.dumps(front, indent=2, allow_nan=False) + "\n"
    write_whole(folder / FILE_NAME, text)
    return folder / FILE_NAME


def read_front(folder: str | Path) -> dict[str, Any]:
    """The content of `front.json` in `folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a front of format 1.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected the folder of a finished sweep; where it is one, make it with: "
            f"rlhf-lines front {folder}"
        )
    try:
        front = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); make it again with: rlhf-lines front {folder}") from None
    found = front.get("format") if isinstance(front, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}; expected {FORMAT}; make it again with: rlhf-lines front {folder}"
        )
    missing = [key for key in KEYS if key not in front]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; make it again with: rlhf-lines front {folder}")
    return front


def _as_matrix(scores: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores have shape {scores.shape}; expected [points, rewards] with at least one of each")
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0, 0])
        raise ValueError(f"the scores of point {row} are {scores[row].tolist()}; expected finite numbers")
    return scores


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
    first = {"lines": 0, "rewarded_soup": 1}
    return list(combinations(sorted(groups, key=lambda group: (first.get(group, 2), group)), 2))


def _difference(
    a: tuple[float, NDArray[np.float64]], b: tuple[float, NDArray[np.float64]], confidence: float
) -> dict[str, float]:
    (value_a, samples_a), (value_b, samples_b) = a, b
    difference = _estimate("value", value_a - value_b, samples_a - samples_b, confidence)
    return {**difference, "probability_positive": probability_positive(samples_a - samples_b)}


def _estimate(key: str, value: float, samples: NDArray[np.float64], confidence: float) -> dict[str, float]:
    low, high = interval(samples, confidence)
    return {key: float(value), "low": low, "high": high}


def _kl(point: Point, prompts: int, resamples: int, seed: int, confidence: float) -> dict[str, float] | None:
    if point.kl is None:
        return None
    kl = np.asarray(point.kl, dtype=np.float64)
    if kl.shape != (prompts,) or not np.isfinite(kl).all():
        raise ValueError(f"kl of point {point.id} has shape {kl.shape}; expected {prompts} finite numbers or None")
    samples = bootstrap_means(kl[None, :, None], resamples, seed)[:, 0, 0]
    return _estimate("mean", kl.mean(), samples, confidence)


def _perplexity(point: Point, resamples: int, seed: int, confidence: float) -> dict[str, float] | None:
    """`exp(sum of nats / sum of tokens)` with its interval over control texts."""
    if point.nats is None and point.text_tokens is None:
        return None
    nats, tokens = (np.asarray(values, dtype=np.float64) for values in (point.nats, point.text_tokens))
    if nats.ndim != 1 or nats.shape != tokens.shape or nats.size == 0 or not (np.isfinite(nats) & (tokens > 0)).all():
        raise ValueError(
            f"point {point.id} has nats of shape {nats.shape} and text_tokens of shape {tokens.shape}; expected a "
            "finite number of nats and a positive number of tokens for every control text, or None for both"
        )
    samples = bootstrap_means(np.stack([nats, tokens], axis=-1)[None], resamples, seed)[:, 0]
    return _estimate("mean", np.exp(nats.sum() / tokens.sum()), np.exp(samples[:, 0] / samples[:, 1]), confidence)
