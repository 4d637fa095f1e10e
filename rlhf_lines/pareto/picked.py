"""Picking one point of a front, by a preference or by bounds, and what to tell about it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_lines.errors import alternatives, counted, unknown_name
from rlhf_lines.merge.rules.profile import options_text
from rlhf_lines.models import is_here
from rlhf_lines.pareto.benchmarks import benchmark_metrics
from rlhf_lines.pareto.measures import nondominated
from rlhf_lines.pareto.origin import is_routed, weights_text
from rlhf_lines.pareto.schema import (
    BESIDE,
    BY_OBJECTIVE,
    CONTROLS,
    WORDS,
    Front,
    Mean,
    PointEntry,
    Value,
    groups_of,
    label,
    shortened,
)
from rlhf_lines.pareto.table import decimals, estimate_text, few_prompts, interval_name, setting, supported_decimals
from rlhf_lines.pareto.utility import FLAT


AS_COUNTED = {"raw": "scores in their own units", "range": "each score as a share of its range"}
SCALES = tuple(AS_COUNTED)
NO_ONE_MERGE = "a router gives every prompt weights of its own for this preference, so no one merge is this policy"
LARGEST = 1e100  # of a preference: times a score, or over a range, it is still a number
DAMAGE = ("share_empty", "share_cut", "repetition", "perplexity")  # of which more is never better
LOST, ASKED = 3, 60  # how many of the prompts that lost most are told, and how many characters of each


class Picked(NamedTuple):
    """A picked point, and among which points it is the best.

    Attributes:
        point: the entry of the front.
        among: ids of the points that were allowed; empty where the point was asked for by its id.
        factors: what one unit of each score counts in the worth by which was picked.
        constant: what the worth has beside: it is `constant + sum of factor * score`.
        left_out: groups of controls that were not looked at.
        asked: by what it was picked, in words; empty where it was asked for by its id.
        runner_up: the id of the next best point of other mean scores, and how much less it is worth; None where there
            is none.
    """

    point: PointEntry
    among: list[int]
    factors: dict[str, float]
    constant: float
    left_out: list[str]
    asked: str = ""
    runner_up: tuple[int, float] | None = None


class Bound(NamedTuple):
    """The least, or the most, that the mean of a name may be."""

    name: str
    value: float
    is_least: bool = True

    def __str__(self) -> str:
        return f"{self.name} of at {'least' if self.is_least else 'most'} {self.value:zg}"

    def keeps(self, mean: float) -> bool:
        """Whether a mean is within it."""
        return mean >= self.value if self.is_least else mean <= self.value


class Worth(NamedTuple):
    """What is known of the choice of a point.

    Attributes:
        measured: its worth as it was measured, see `Picked`.
        corrected: the same, corrected for having been picked.
        alike: ids of the other points that cannot be told apart from the best.
    """

    measured: float
    corrected: Value
    alike: list[int]


def pick(
    front: Front,
    *,
    preference: Sequence[float] | None = None,
    scale: str | None = None,
    minimum: Mapping[str, float] | None = None,
    maximize: str | None = None,
    group: str | None = None,
    max_kl: float | None = None,
    point: int | None = None,
    maximum: Mapping[str, float] | None = None,
    minimize: str | None = None,
) -> Picked:
    """The point that is best under a preference, or within bounds; or that has an id.

    The points of all groups are candidates but for the controls `scaled` and `reversed`, which are looked at only if
    `group` names one. Of those within the limits, one is taken that no other dominates in the objectives; of several
    that are equally good, the one with the lowest id.

    With `preference` w, one number per objective: the point with the highest `w . s`, where s is its mean score, or,
    with `scale="range"`, `(s - reference) / (ideal - reference)` per objective, so that scores of different units
    weigh alike. The sum of w does not matter. With `minimum` or `maximum`, and `maximize` or `minimize`: the point with
    the highest, or lowest, mean of one name among those whose means are within the bounds. Names are those of scores
    and metrics, `kl` and `perplexity`.

    Args:
        front: what `build_front` returns, or `read_front` reads.
        preference: K numbers of at least 0, not all 0, in the order of `front["objectives"]`.
        scale: `raw`, which None means too, or `range`; for `preference`.
        minimum: lowest mean by name.
        maximize: a name, of which more is not damage alone.
        group: look at its points only.
        max_kl: look only at points with at most this mean KL to the SFT model, in nats.
        point: id of the point; with nothing else.
        maximum: highest mean by name.
        minimize: a name; in place of `maximize`.

    Raises:
        ValueError: not exactly one way is asked for, a name is unknown, a number is not as described, or no point is
            within the limits.
    """
    ways = (preference, scale, minimum, maximize, group, max_kl, maximum, minimize)
    if point is not None:
        if any(way is not None for way in ways):
            raise ValueError(f"point {point} is asked for by its id; leave out what else it is to be picked by")
        return Picked(_by_id(front, point), [], {}, 0.0, [])
    if preference is not None and any(way is not None for way in (minimum, maximum, maximize, minimize)):
        raise ValueError("both a preference and bounds are given; pick by one of them")
    if maximize is not None and minimize is not None:
        raise ValueError(f"both {maximize} to maximize and {minimize} to minimize are given; give one of them")
    sought = minimize if maximize is None else maximize
    if preference is None and (not (minimum or maximum) or sought is None):
        raise ValueError(
            "a point is picked by a preference (such as --preference 0.7 0.3), by a minimum or maximum and what to "
            "maximize or minimize (such as --min r2=0.4 --maximize r1), or by its id (--point 3); give one of them"
        )
    names, objectives = measured_names(front), list(front["objectives"])
    sign = -1.0 if maximize is None else 1.0
    factors = {sought: sign} if preference is None else _factors(front, preference, scale or "raw")
    for name in (*(minimum or ()), *(maximum or ()), *factors):
        if name not in names:
            raise ValueError(unknown_name("score", name, names))
    damage = {*DAMAGE, *(name for name, better in benchmark_metrics(front).items() if better is False)}
    if maximize in damage.difference(objectives):  # an earlier version took any name for a score
        raise ValueError(f"maximize is {maximize}, of which more is worse: minimize it (--minimize {maximize})")
    candidates, left_out = _of_groups(front, group)
    candidates = _within_kl(candidates, max_kl)
    bounds = [Bound(name, low) for name, low in (minimum or {}).items()]
    bounds += [Bound(name, high, is_least=False) for name, high in (maximum or {}).items()]
    candidates = _within(candidates, bounds)
    candidates = [each for each in candidates if all(measured(each, name) is not None for name in factors)]
    if not candidates:
        raise ValueError(f"no point that is left has a {sought}; ask for a score, or for less")
    columns = [*objectives, *(name for name in factors if name not in objectives)]
    means = np.array([[measured(each, name) for name in columns] for each in candidates])
    worth = means @ [factors.get(name, 0.0) for name in columns]
    better = means * [np.copysign(1.0, factors.get(name, 1.0)) for name in columns]  # more is better in every column
    best = max(nondominated(better), key=lambda i: worth[i])  # of equals, max returns the first
    constant = 0.0
    if scale == "range":
        reference = dict(zip(objectives, front["reference_point"], strict=True))
        constant = -sum(factor * reference[name] for name, factor in factors.items())
    if preference is None:
        asked = f"the {'least' if maximize is None else 'most'} {sought} with {' and '.join(map(str, bounds))}"
    else:
        asked = _weighed(objectives, preference, scale or "raw")
    others = [i for i in range(len(candidates)) if (means[i] != means[best]).any()]
    runner_up = max(others, key=lambda i: worth[i], default=None)
    return Picked(
        candidates[best],
        [each["id"] for each in candidates],
        factors,
        constant,
        left_out,
        asked if max_kl is None else f"{asked}; at most {max_kl:zg} nats of KL",
        None if runner_up is None else (candidates[runner_up]["id"], float(worth[best] - worth[runner_up])),
    )


def _weighed(objectives: Sequence[str], preference: Sequence[float], scale: str) -> str:
    """By which preference a point is picked, in words.

    >>> _weighed(["r1", "r2"], [0.7, 0.3], "range")
    '0.7 r1 + 0.3 r2, each score as a share of its range (--scale range)'
    """
    parts = " + ".join(f"{weight:zg} {name}" for weight, name in zip(preference, objectives, strict=True))
    return f"{parts}, {AS_COUNTED[scale]} (--scale {scale})"


def pick_point(front: Front, **question) -> PointEntry:
    """The point of `pick`, which see."""
    return pick(front, **question).point


def measured_names(front: Front) -> list[str]:
    """What a point can be picked by: scores, and what else points have a mean of: metrics, `kl`, `perplexity`."""
    points = front["points"]
    further = [name for point in points for name in (*point["metrics"], *BESIDE) if measured(point, name) is not None]
    return list(dict.fromkeys([*front["objectives"], *further]))


def measured(point: PointEntry, name: str) -> float | None:
    """The mean of a score or metric of a point, of its `kl` or `perplexity`; None where it has none."""
    of = {name: point[name] for name in BESIDE} | point["metrics"] | point["scores"]
    found = None if name in BY_OBJECTIVE else of.get(name)
    return found["mean"] if found else None


def merge_arguments(front: Front, point: PointEntry, output_dir: str | Path) -> list[str]:
    """The arguments of `rlhf-lines merge` that make the policy of a point; every setting is written.

    Raises:
        ValueError: the front does not know its policies, or the point is the SFT model, which is not merged, or has
            weights that depend on the prompt.
    """
    _check_sources(front, "RUN_DIR")
    if is_routed(point["spec"]):
        raise ValueError(f"point {point['id']}: {NO_ONE_MERGE}")
    if point["merge_arguments"] is None:
        raise ValueError(
            f"point {point['id']} is the SFT model itself, {front['sft_model']}; there is nothing to merge"
        )
    return [*point["merge_arguments"], "--output_dir", str(output_dir)]


def merge_command(front: Front, point: PointEntry, run_dir: str | Path) -> str:
    """The `rlhf-lines merge` that makes the policy of a point in the run's folder; raises as `merge_arguments`."""
    return shlex.join(["rlhf-lines", "merge", *merge_arguments(front, point, Path(run_dir) / f"point_{point['id']}")])


def named_elsewhere(front: Front, point: PointEntry) -> list[str]:
    """The models of the merge of a point that are not here, as they are named from the folder where the sweep ran."""
    if point["merge_arguments"] is None:
        return []
    names = [front["sft_model"], *front["policies"][: len(point["spec"]["weights"])]]
    return [name for name in names if not (Path(name).is_absolute() or is_here(name))]


def picked_text(
    front: Front,
    point: PointEntry,
    run_dir: str | Path,
    *,
    picked: Picked | None = None,
    worth: Worth | None = None,
    prompts: Mapping[int, str] | None = None,
    mix: str | None = None,
    elsewhere: Sequence[str] = (),
) -> str:
    """What to tell about a picked point, without a trailing newline; its last line is the merge command.

    The SFT model needs no merge, and the last line says so. A command that is to be run elsewhere names the run's
    folder from there.

    Args:
        front: of the point.
        point: an entry of it.
        run_dir: of the sweep.
        picked: how the point was picked, where it was.
        worth: what is known of the choice, where it is.
        prompts: texts of the prompts at which it lost most, by their ids, where they are known.
        mix: what a request names for it from a server of its group, where there is such a mix.
        elsewhere: what `named_elsewhere` says.

    Raises:
        ValueError: the front does not know its policies.
    """
    _check_sources(front, run_dir)
    spec = point["spec"]
    options = f" {options_text(spec['options'])}" if spec["options"] else ""
    weights = weights_text(spec["weights"])
    rows: list[tuple[str, Mean]] = [(name, point["scores"][name]) for name in front["objectives"]]
    metrics = [(name, point["metrics"][name]) for name in point["metrics"] if measured(point, name) is not None]
    metrics += [(name, point[name]) for name in BESIDE if point[name] is not None]
    rows += [(WORDS.get(name, name), value) for name, value in metrics]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"point {point['id']}: {label(point['group'])}, {spec['rule']}{options}, weights {weights}, "
        f"alpha {setting(spec['alpha'])}, beta {setting(spec['beta'])}, schedule {spec['schedule']}"
        + (", LiNeS before the rule" if spec.get("lines") == "before" else ""),
        *(f"  {name:<{width}}  {estimate_text(value, supported_decimals(value))}" for name, value in rows),
        f"  mean [{interval_name(front)}] over {point['prompts']} {front['split']} prompts",
        *(f"  {few}" for few in [few_prompts(front)] if few),
    ]
    if point["single_policy"] is not None:
        lines.append(f"  it is one policy as it was trained: {front['policies'][point['single_policy']]}")
    if picked is not None:
        lines += _how_picked(front, picked)
    lines += _choice(worth)
    lines += _lost(point, prompts or {})
    if picked is not None and picked.left_out:
        controls = ", ".join(f"{label(name)} (--group {name})" for name in picked.left_out)
        lines.append(f"  not looked at, as controls: {controls}")
    if mix is not None:
        server = shlex.join(["rlhf-lines", "serve", str(run_dir), "--group", point["group"]])
        lines.append(f'  to ask a server for it: {server}, and in the request "model": "{mix}"')
    if elsewhere:
        run_dir = Path(run_dir).resolve()
        names = alternatives(list(elsewhere))
        lines.append(f"  neither this folder nor the Hub's cache has {names}: run the merge where the sweep ran")
    if is_routed(spec):
        last = NO_ONE_MERGE[:1].upper() + NO_ONE_MERGE[1:]
    elif point["merge_arguments"] is None:
        last = f"It is the SFT model itself, no merge is needed: {front['sft_model']}"
    else:
        last = merge_command(front, point, run_dir)
    return "\n".join([*lines, "", last])


def _how_picked(front: Front, picked: Picked) -> list[str]:
    """What a point was picked by, and how far ahead of the next best it is."""
    if not picked.asked:
        return []
    count = len(picked.among)
    lines = [f"  picked by {picked.asked}, among {count} point{'s' * (count > 1)}"]
    if picked.runner_up is not None:
        runner_up, less = picked.runner_up
        group = label(_by_id(front, runner_up)["group"])
        lines.append(f"  next best: point {runner_up} ({group}), worth {less:z.2g} less")
    return lines


def _choice(worth: Worth | None) -> list[str]:
    """What the choice of the point does to what is known of it."""
    if worth is None:
        return []
    corrected, digits = worth.corrected, supported_decimals(worth.corrected)
    text = f"{corrected['value']:z.{digits}f}" if corrected["low"] is None else estimate_text(corrected, digits)
    alike = ", ".join(map(str, worth.alike)) or "none"
    return [
        f"  worth {worth.measured:z.{digits}f} as measured, {text} corrected for having been picked",
        f"  points that cannot be told apart from it: {alike}",
    ]


def _lost(point: PointEntry, prompts: Mapping[int, str]) -> list[str]:
    """The prompts at which a point lost most, with the difference in every objective."""
    if not point["lost_most"]:
        return []
    lines = ["  lost most against the SFT model, mean score less its own:"]
    for entry in point["lost_most"][:LOST]:
        text = "".join(filter(str.isprintable, shortened(prompts.get(entry["prompt"], ""), ASKED)))
        told = ", ".join(f"{name} {value:+z.{decimals([value])}f}" for name, value in entry["differences"].items())
        lines.append(f"    prompt {entry['prompt']}{f' ({text})' if text else ''}: {told}")
    return lines


def _by_id(front: Front, point: int) -> PointEntry:
    by_id = {entry["id"]: entry for entry in front["points"]}
    if point not in by_id:
        raise ValueError(f"the front has no point {point}; its points are {_ranges(by_id)}")
    return by_id[point]


def _ranges(ids: Iterable[int]) -> str:
    """Whole numbers as people list them.

    >>> _ranges([3, 1, 2, 7])
    '1 to 3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _of_groups(front: Front, group: str | None) -> tuple[list[PointEntry], list[str]]:
    """The points that are looked at, by id, and the controls that are not."""
    groups = groups_of(front)
    if group is not None and group not in groups:
        raise ValueError(unknown_name("group", group, groups))
    left_out = [name for name in groups if name in CONTROLS] if group is None else []
    points = [p for p in front["points"] if p["group"] not in left_out and group in (None, p["group"])]
    return sorted(points, key=lambda point: point["id"]), left_out


def _within_kl(points: list[PointEntry], limit: float | None) -> list[PointEntry]:
    if limit is None:
        return points
    if not limit >= 0:
        raise ValueError(f"max_kl is {limit}; expected a number of at least 0, in nats")
    known = [point for point in points if point["kl"] is not None]
    if not known:
        raise ValueError("max_kl is given, but no point that is looked at has a KL to the SFT model; leave it out")
    within = [point for point in known if point["kl"]["mean"] <= limit]
    if not within:
        lowest = min(known, key=lambda point: point["kl"]["mean"])
        least = math.ceil(100 * lowest["kl"]["mean"]) / 100  # no less than it is: that much must be enough
        raise ValueError(
            f"no point has a KL of at most {limit:zg} nats: the lowest is {least:zg} (point {lowest['id']}); allow at "
            "least that"
        )
    return within


def _factors(front: Front, preference: Sequence[float], scale: str) -> dict[str, float]:
    """What one unit of each objective is worth under a preference."""
    weights, names = np.asarray(preference, dtype=np.float64), front["objectives"]
    if weights.shape != (len(names),):
        raise ValueError(
            f"the preference has {counted(weights.size, 'number')}; expected {len(names)}, one for each of "
            f"{', '.join(names)}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()):
        raise ValueError(f"the preference is {weights.tolist()}; expected finite numbers of at least 0, not all 0")
    if weights.max() > LARGEST:
        raise ValueError(
            f"the preference is {weights.tolist()}; expected numbers of at most {LARGEST:zg}: only their ratios count"
        )
    if scale not in SCALES:
        raise ValueError(unknown_name("scale", scale, SCALES))
    if scale == "range":
        reference, ideal = np.array(front["reference_point"]), np.array(front["ideal_point"])
        flat = ideal - reference <= FLAT * np.maximum(np.abs(ideal), np.abs(reference))
        weights = np.where(flat, 0.0, weights / np.where(flat, 1.0, ideal - reference))
    return dict(zip(names, weights.tolist(), strict=True))


def _within(points: list[PointEntry], bounds: Sequence[Bound]) -> list[PointEntry]:
    """The points within all bounds; stop at the first that none keeps of those within the ones before."""
    left, before = points, []
    for bound in bounds:
        name, value, is_least = bound
        if not math.isfinite(value):
            raise ValueError(
                f"the {'minimum' if is_least else 'maximum'} of {name} is {value}; expected a finite number"
            )
        known = [point for point in left if measured(point, name) is not None]
        among = f" among the points with {' and '.join(before)}" if before else ""
        if not known:
            raise ValueError(f"no point that is looked at has a {name}{among}; ask for another score")
        nearest = (max if is_least else min)(known, key=lambda point, name=name: measured(point, name))
        left = [point for point in known if bound.keeps(measured(point, name))]
        if not left:
            end, way_out = ("highest", "ask for at most that") if is_least else ("lowest", "allow at least that")
            raise ValueError(
                f"no point has a mean {bound}{among}: the {end} is {measured(nearest, name)!r} "
                f"(point {nearest['id']}); {way_out}"
            )
        before.append(str(bound))
    return left


def _check_sources(front: Front, run_dir: str | Path) -> None:
    if front["sft_model"] is None or not front["policies"]:
        raise ValueError(
            f"the front does not say which policies it was made from; run it again with: rlhf-lines front {run_dir}"
        )
