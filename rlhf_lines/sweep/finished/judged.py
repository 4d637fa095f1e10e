"""What a judge needs of a finished sweep, and what is told of its verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward_models import Comparer, RewardModel
from reward_models.generative import strayed_text
from reward_models.service import JUDGE
from rlhf_lines.errors import closest
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import SFT, Mean, label
from rlhf_lines.sweep.finished.front import metrics_of, preferences
from rlhf_lines.sweep.store import Store, StoredPoint


DECIMALS = 9  # of weights that are the same


@dataclass(frozen=True)
class Rivals:
    """What completions are compared with.

    Attributes:
        of: by the id of a spec, that of the spec whose completions its own are compared with.
        texts: completions by spec, prompt and sample.
    """

    of: Mapping[int, int]
    texts: Mapping[tuple[int, int, int], str]

    def text(self, spec: int, prompt: int, sample: int) -> str | None:
        """The other completion for a prompt, or None where there is none."""
        return self.texts.get((self.of.get(spec, -1), prompt, sample))


def is_group(against: object) -> bool:
    """Whether a judge with this `against` compares with a group of merges, and not with the SFT model or a point."""
    return isinstance(against, str) and against != SFT


def rivals(store: Store, judge: Comparer) -> Rivals:
    """The completions that those of all points are compared with: of the SFT model, of a point, or of a group's points.

    Points of validation prompts are no such points: those of the front would have nothing to be compared with. Of a
    group it is the point of the same weights, for points of the test prompts; one without is not compared.

    Raises:
        ValueError: the front has no such point or group, or none of the group's points stands at the weights of another
            group's point, or two of them stand at the same.
    """
    points = store.points("test")
    if is_group(judge.against):
        of = _at_same_weights(store, judge.name, judge.against, points)
        asked = store.prompts("test")
        return Rivals(of, {key: text for key, text in _texts(store, set(of.values())).items() if key[1] in asked})
    found = {p.spec_id for p in points if (p.group == SFT if judge.against == SFT else p.id == judge.against)}
    if not found:
        raise ValueError(
            f"the judge {judge.name!r} compares with point {judge.against}, which the front lacks; its points are in "
            "front.csv"
        )
    return Rivals(dict.fromkeys(store.specs(), *found), _texts(store, found))


def _at_same_weights(store: Store, name: str, group: str, points: Sequence[StoredPoint]) -> dict[int, int]:
    """By spec, the spec of the group's point at the same weights, for all specs that have one."""
    groups = dict.fromkeys(point.group for point in points)
    if group not in groups:
        near = closest(group, groups)
        meant = f"did you mean {near!r}? " if near else ""
        raise ValueError(
            f"the judge {name!r} compares with the group {group!r}, which the front lacks; {meant}its groups are "
            f"{', '.join(groups)}"
        )
    at = {
        point: None if weights is None else tuple(round(weight, DECIMALS) for weight in weights)
        for point, weights in preferences(store, "test").items()
    }
    of_group: dict[tuple[float, ...], int] = {}
    for point in points:
        weights = at[point.id] if point.group == group else None
        if weights is not None and of_group.setdefault(weights, point.spec_id) != point.spec_id:
            raise ValueError(
                f"the judge {name!r} compares with the group {group!r}, which has two points at the weights "
                f"{', '.join(f'{weight:zg}' for weight in weights)}; name a point by its id, or another group"
            )
    found: dict[int, set[int]] = {}
    for point in points:
        if (rival := of_group.get(at[point.id] or ())) is not None:
            found.setdefault(point.spec_id, set()).add(rival)
    if not any(point.spec_id in found for point in points if point.group != group):
        raise ValueError(
            f"the judge {name!r} compares with the group {group!r}, but no point of another group stands at the "
            "weights of one of its points; the weights are in front.csv"
        )
    # A spec that stands at two weights, of two groups that count them otherwise, has no one rival.
    return {spec: rival for spec, (rival, *others) in found.items() if not others}


def _texts(store: Store, specs: Iterable[int]) -> dict[tuple[int, int, int], str]:
    return {(spec, row.prompt, row.sample): row.text for spec in specs for row in store.rows_of(spec, ())}


def wins_of_groups(store: Store) -> dict[str, list[str]]:
    """By the name of a comparison with a group, a sentence for each other group: how often it wins at the same weights.

    The win rate of a prompt is the mean over the group's points that have a rival, and the interval is over prompts.
    """
    known, resampling = store.recall("reward_models", {}), Resampling(seed=store.recall("seed"))
    found = {}
    for name in metrics_of(store, "test"):
        if name not in known or not known[name]["model"].startswith(JUDGE):
            continue
        against = known[name]["options"].get("against")
        if not is_group(against):
            continue
        of_groups: dict[str, list[NDArray]] = {}
        for point in store.points("test"):
            scores = store.scores(point.spec_id, "test", [name])[:, 0]
            if point.group != against and len(scores):
                of_groups.setdefault(point.group, []).append(scores)
        found[name] = [
            f"{label(group)} wins {_share(resampling.scores({'': np.mean(columns, axis=0)})[''])} against "
            f"{label(against)} at the same weights, over {len(columns)} point{'s' * (len(columns) > 1)}"
            for group, columns in of_groups.items()
        ]
    return found


def _share(share: Mean) -> str:
    """A share with its interval, in per cent."""
    interval = "" if share["low"] is None else f" [{100 * share['low']:z.1f}, {100 * share['high']:z.1f}]"
    return f"{100 * share['mean']:z.1f} %{interval}"


def counts_of(model: RewardModel) -> dict[str, int]:
    """What a judge or a generative reward model has counted so far; empty of other reward models."""
    names = ("compared", "changed", "undecided", "unread", "graded", "strayed")
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts."""
    return {name: before.get(name, 0) + count for name, count in now.items()}


def judged_text(counts: Mapping[str, int]) -> str:
    """What people read of a judge's counts.

    >>> judged_text({"compared": 40, "changed": 3, "undecided": 1, "unread": 5})
    'asked for 40 pairs in both orders: 3 verdicts changed with the order and 1 could not be read, which count as ties'
    >>> judged_text({"unread": 2})
    '2 answers without a grade, asked for again'
    """
    if "graded" in counts:
        return strayed_text(counts["strayed"], counts["graded"])
    if "compared" not in counts:
        return f"{counts['unread']:,} answers without a grade, asked for again"
    return (
        f"asked for {counts['compared']:,} pairs in both orders: {counts['changed']:,} verdicts changed with the order "
        f"and {counts['undecided']:,} could not be read, which count as ties"
    )
