"""What a policy does badly, in one place: everything that may have become worse than the SFT model has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rlhf_lines.pareto.look_at import KEPT
from rlhf_lines.pareto.report.content import Content, Measure
from rlhf_lines.pareto.report.words import NOTHING, estimated, number
from rlhf_lines.pareto.schema import SFT, WORDS, Mean, PointEntry, Value


# Of what completions are like: how it is called here, and in which direction a change is bad (0: a reader judges it).
DIRECTIONS = {
    "share_empty": ("empty completions", 1),
    "share_cut": ("completions cut at the longest length", 1),
    "repetition": ("4-grams repeated within a completion", 1),
    "distinct": ("different texts", -1),
    "tokens": ("tokens", 0),
}
SIGN = "↓ "
WORSE = f"{SIGN}worse"


@dataclass(frozen=True)
class Line:
    """One measure of a policy beside the SFT model's; `verdict` is empty where nothing is worse beyond noise."""

    measure: str
    own: str
    interval: str
    sft: str
    verdict: str


def lines(content: Content, point: PointEntry) -> list[Line]:
    """The measures of a point, in the same order and number for every point of a front.

    A score is worse where its mean is below the SFT model's and it wins less than half of the prompts beyond noise.
    What completions are like is worse where the interval of the difference to the SFT model leaves out 0. "Worse in
    all" is where more completions are worse in every objective than are better in every one, beyond noise. Most of a
    gain is length where less than half of it is left at equal length, beyond noise. Perplexity is worse where its
    interval lies above the SFT model's mean.
    """
    sft = next((other for other in content.front["points"] if other["group"] == SFT), None)
    found = [*_scores(content, point, sft), *_behaviour(content, point, sft)]
    found += [*_distance(content, point), *_forgetting(content, point, sft)]
    # Of one prompt nothing is known beyond noise.
    return found if point["prompts"] > 1 else [replace(line, verdict="") for line in found]


def told(content: Content, point: PointEntry) -> str:
    """Which of `lines` are worse than the SFT model's, in a sentence."""
    if point["group"] == SFT:
        return "It is the SFT model, which the others are compared with."
    found = [f"{line.measure} ({line.verdict.removeprefix(SIGN)})" for line in lines(content, point) if line.verdict]
    if not found:
        return "Nothing here is worse than the SFT model's beyond noise."
    return f"Against the SFT model, beyond noise: {', '.join(found)}."


def _matched(name: str) -> Callable[[PointEntry], Mean | None]:
    """What is left of a gain at equal lengths, of a point."""
    return lambda point: (point["metrics"].get("at_matched_length") or {}).get(name)


def _scores(content: Content, point: PointEntry, sft: PointEntry | None) -> Iterator[Line]:
    wins = point["metrics"].get("win_rate")
    for name, measure in content.rewards.items():
        mine, theirs = point["scores"][name], sft and sft["scores"][name]
        lost = bool(theirs) and mine["mean"] < theirs["mean"]
        if lost:
            of = wins and wins["by_objective"].get(name)
            lost = of["high"] < 0.5 if of and of["high"] is not None else _is_below(mine, theirs)
        yield _line(f"score in {name}", measure, point, sft, WORSE if lost else "")
    worse = next((measure for measure in content.wins if measure.name == WORDS["all_worse"]), None)
    if worse is not None:
        lost = bool(wins) and wins["high"] is not None and wins["high"] < 0.5
        yield _line("completions worse in all objectives", worse, point, None, WORSE if lost else "")
    for name, measure in content.rewards.items():
        if sft is None or not any(map(_matched(name), content.front["points"])):
            continue
        left = _matched(name)(point)
        gain = point["scores"][name]["mean"] - sft["scores"][name]["mean"]
        most = left is not None and gain > 0 and left["mean"] < KEPT * gain
        most = most and left["high"] is not None and left["high"] < gain
        own, interval = estimated(left, measure.digits) if left else (NOTHING, "")
        of = f"of {number(gain, measure.digits)}" if gain > 0 else NOTHING
        yield Line(f"gain in {name} at equal length", own, interval, of, "most is length" if most else "")


def _behaviour(content: Content, point: PointEntry, sft: PointEntry | None) -> Iterator[Line]:
    known = {measure.name: measure for measure in content.behaviour}
    for key, (text, direction) in DIRECTIONS.items():
        measure = known.get(WORDS[key])
        if measure is None:
            continue
        change = point["changes"] and point["changes"][key]
        verdict = ""
        if _is_beyond_noise(change):
            rose = change["value"] > 0
            verdict = ("longer" if rose else "shorter") if direction == 0 else WORSE * (rose == (direction > 0))
        yield _line(text, measure, point, sft, verdict)


def _distance(content: Content, point: PointEntry) -> Iterator[Line]:
    """The KL, which a reader judges: what was gained at a larger distance may be had at a smaller one."""
    if any(map(content.kl.of, content.front["points"])):
        yield _line("KL to the SFT model", content.kl, point, None, "")


def _forgetting(content: Content, point: PointEntry, sft: PointEntry | None) -> Iterator[Line]:
    if any(map(content.perplexity.of, content.front["points"])):
        mine, theirs = point["perplexity"], sft and sft["perplexity"]
        rose = bool(mine and theirs) and mine["low"] is not None and mine["low"] > theirs["mean"]
        yield _line("perplexity of control texts", content.perplexity, point, sft, WORSE if rose else "")


def _line(text: str, measure: Measure, point: PointEntry, sft: PointEntry | None, verdict: str) -> Line:
    (own, interval), (theirs, _) = (_written(measure, each) for each in (point, sft))
    return Line(text, own, interval, theirs, verdict)


def _written(measure: Measure, point: PointEntry | None) -> tuple[str, str]:
    found = point and measure.of(point)
    if not found:
        return NOTHING, ""
    value, interval = estimated(found, measure.digits)
    return f"{value} {measure.unit}".rstrip(), interval.removeprefix(NOTHING)


def _is_below(mine: Mean, theirs: Mean) -> bool:
    return mine["high"] is not None and mine["high"] < theirs["mean"]


def _is_beyond_noise(change: Value | None) -> bool:
    return change is not None and change["low"] is not None and not change["low"] <= 0 <= change["high"]
