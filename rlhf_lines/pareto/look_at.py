"""What to look at: how policies that one would choose differ from the SFT model beside their scores, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlhf_lines.pareto.intervals import FEW_PROMPTS
from rlhf_lines.pareto.schema import SFT, Front, PointEntry, Value, label, shortened


# What moved is told where the interval of its difference to the SFT model leaves out 0, and where it is worth a look.
# `distinct` has no interval: it is told from `FEW_PROMPTS` on, where a tenth is several completions.
EMPTY = 0.05  # one completion more in twenty says nothing at all
CUT = 0.10  # one more in ten breaks off, and its scores are of a part
REPETITION = 0.05  # good texts repeat about 1 % of their 4-grams, so this is far outside
DISTINCT = 0.10  # one fewer in ten is a text of its own
LENGTH = 1.25  # readers see that texts are a quarter longer or shorter, and many rewards do
LOSING = 0.05  # of the win rate below 1/2: where nothing is tied so far, 10 % more are worse in all than better in all
KEPT = 0.5  # where less than half of a gain is left at equal lengths, most of it is length
SHARES = (  # the least change that is told, up or down, and how
    ("share_empty", EMPTY, "{} of the completions of {} are empty"),
    ("share_cut", CUT, "{} of the completions of {} are cut at the longest length"),
    ("repetition", REPETITION, "{} of the 4-grams in completions of {} occurred before in them"),
    ("distinct", -DISTINCT, "{} of the completions of {} are texts of their own"),
)
SENTENCES, LIKEWISE = 6, 2  # at most so many sentences, and so many other points named in one


class Finding(NamedTuple):
    """Something about a point: how large in units of what is worth a look, what it says, and its number alone."""

    kind: str
    size: float
    sentence: str
    point: str
    number: str


def what_to_look_at(front: Front) -> list[str]:
    """Sentences about what moved beyond noise and is worth a look, the largest first; at most `SENTENCES`.

    Read are the ends of each group's front and its best point for equal preferences. A sentence tells of the point
    where something moved most, and names others.
    """
    sft = next((point for point in front["points"] if point["group"] == SFT), None)
    if sft is None:
        return []
    kinds: dict[str, list[Finding]] = {}
    for point in likely_choices(front):
        for finding in _findings(point, sft):
            kinds.setdefault(finding.kind, []).append(finding)
    ordered = [sorted(found, key=lambda finding: -finding.size) for found in kinds.values()]
    ordered.sort(key=lambda found: -found[0].size)
    return [_told(found) for found in ordered[:SENTENCES]]


def likely_choices(front: Front) -> list[PointEntry]:
    """Of each group's front the best point in every objective and for equal preferences, each policy once."""
    by_id = {point["id"]: point for point in front["points"]}
    scales = [
        (reward, low, (high - low) or 1.0)
        for reward, low, high in zip(front["rewards"], front["reference_point"], front["ideal_point"], strict=True)
    ]

    def worth(point: PointEntry) -> float:
        return sum((point["scores"][reward]["mean"] - low) / span for reward, low, span in scales)

    chosen: dict[str, PointEntry] = {}
    for entry in front["fronts"].values():
        points = [by_id[i] for i in entry["nondominated"]]
        wishes: list[Callable[[PointEntry], float]] = [
            *(lambda point, reward=reward: point["scores"][reward]["mean"] for reward in front["rewards"]),
            worth,
        ]
        for wish in wishes:
            best = max(points, key=wish)
            chosen.setdefault(repr(best["spec"]), best)
    return list(chosen.values())


def _told(found: Sequence[Finding]) -> str:
    first, *others = found
    named = [f"{other.point} ({other.number})" for other in others[:LIKEWISE]]
    named += [f"{len(others) - LIKEWISE} more"] if len(others) > LIKEWISE else []
    return first.sentence + (f" Likewise {_list(named)}." if named else "")


def _findings(point: PointEntry, sft: PointEntry) -> Iterator[Finding]:
    name = f"{label(point['group'])} {shortened(point['label'])}"
    if point["changes"] is not None and point["prompts"] > 1:  # of one prompt nothing is known beyond noise
        yield from _of_shares(name, point, sft)
        yield from _of_length(name, point, sft)
        yield from _of_scores(name, point, sft)


def _of_shares(name: str, point: PointEntry, sft: PointEntry) -> Iterator[Finding]:
    for metric, least, text in SHARES:
        change = point["changes"][metric]
        is_told = point["prompts"] >= FEW_PROMPTS if metric == "distinct" else _is_beyond_noise(change)
        if is_told and change["value"] / least >= 1:
            own, before = (_percent(of["metrics"][metric]["mean"]) for of in (point, sft))
            sentence = f"{text.format(own, name)}; of the SFT model's {before}."
            yield Finding(metric, change["value"] / least, sentence, name, own)


def _of_length(name: str, point: PointEntry, sft: PointEntry) -> Iterator[Finding]:
    own, before = (of["metrics"]["tokens"]["mean"] for of in (point, sft))
    size = abs(math.log(own / before)) / math.log(LENGTH)
    if _is_beyond_noise(point["changes"]["tokens"]) and size >= 1:
        sentence = f"The completions of {name} have {own:z.1f} tokens on average; the SFT model's {before:z.1f}."
        yield Finding("longer" if own > before else "shorter", size, sentence, name, f"{own:z.1f}")


def _of_scores(name: str, point: PointEntry, sft: PointEntry) -> Iterator[Finding]:
    wins = point["metrics"]["win_rate"]
    if wins["high"] < 0.5 and wins["mean"] <= 0.5 - LOSING:
        worse, better = (_percent(wins[key]["mean"]) for key in ("all_worse", "all_better"))
        sentence = (
            f"{worse} of the completions of {name} score below the SFT model's in every objective, {better} above it "
            "in every one."
        )
        yield Finding("losing", (0.5 - wins["mean"]) / LOSING, sentence, name, worse)
    for objective, matched in point["metrics"]["at_matched_length"].items():
        gain = point["scores"][objective]["mean"] - sft["scores"][objective]["mean"]
        wins_here = wins["by_objective"][objective]["low"] > 0.5
        if matched is None or not wins_here or matched["high"] >= gain or matched["mean"] >= KEPT * gain:
            continue
        left = f"{matched['mean']:z.3g} [{matched['low']:z.3g}, {matched['high']:z.3g}]"
        sentence = (
            f"Most of what {name} gains in {shortened(objective)} is length: {gain:z.3g} above the SFT model, {left} "
            "at equal lengths."
        )
        size = (1 - matched["mean"] / gain) / (1 - KEPT)
        yield Finding(f"length of {objective}", size, sentence, name, f"{gain:z.3g}, then {matched['mean']:z.3g}")


def _is_beyond_noise(change: Value | None) -> bool:
    return change is not None and not change["low"] <= 0 <= change["high"]


def _percent(share: float) -> str:
    """A share as people write it, with a decimal where it is below 1 %.

    >>> _percent(0.225), _percent(0.004), _percent(0)
    ('22 %', '0.4 %', '0 %')
    """
    return f"{100 * share:z.1f} %" if 0 < share < 0.01 else f"{100 * share:z.0f} %"


def _list(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
