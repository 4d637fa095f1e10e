"""What a policy does badly, against the numbers of its front."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.report.badly import lines, told
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.words import NOTHING
from tests.pareto.damaged import DEMO, front_of
from tests.pareto.report.report_runs import MINUS, make_front


def of(front, point):
    content = Content(front)
    return {line.measure: line for line in lines(content, point)}, told(content, point)


def wins(low=0.4, high=0.6, **objectives):
    share = {"mean": 0.1, "low": 0.05, "high": 0.15}
    each = {name: {"mean": 0.5, "low": end - 0.1, "high": end} for name, end in objectives.items()}
    joint = {"mean": (low + high) / 2, "low": low, "high": high}
    return {**joint, "by_objective": each, "all_better": share, "all_worse": share}


@pytest.fixture
def front():
    return make_front(groups=("lines",))


def test_a_damaged_policy_is_told_with_its_shares():
    front = front_of(DEMO)
    point = next(p for p in front["points"] if p["metrics"]["share_empty"]["mean"] > 0.2)
    found, text = of(front, point)
    line = found["empty completions"]
    share = point["metrics"]["share_empty"]
    assert (line.own, line.sft, line.verdict) == (f"{100 * share['mean']:.1f} %", "1.0 %", "↓ worse")
    assert line.interval == f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
    assert "empty completions (worse)" in text and text.startswith("Against the SFT model, beyond noise: ")


def test_every_point_has_the_same_measures():
    for front in (front_of(DEMO), make_front()):
        content = Content(front)
        assert len({tuple(line.measure for line in lines(content, point)) for point in front["points"]}) == 1


@pytest.mark.parametrize(
    ("mean", "high", "by_wins", "verdict"),
    [
        (0.4, 0.45, 0.49, "↓ worse"),
        (0.4, 0.45, 0.51, ""),  # it wins as often as not
        (0.6, 0.7, 0.49, ""),  # its mean is not lower
        (0.4, 0.45, None, "↓ worse"),  # wins are not known: its interval ends below the SFT model's mean
        (0.4, 0.55, None, ""),
    ],
)
def test_a_score_below_the_sft_models(front, mean, high, by_wins, verdict):
    sft, point = front["points"][:2]
    sft["scores"]["brief"] = {"mean": 0.5, "low": 0.4, "high": 0.6}
    point["scores"]["brief"] = {"mean": mean, "low": mean - 0.1, "high": high}
    point["metrics"]["win_rate"] = by_wins and wins(brief=by_wins, faithful=0.7)
    found, _ = of(front, point)
    line = found["score in brief"]
    assert (line.own, line.sft, line.verdict) == (f"{mean:.3f}", "0.500", verdict)


def test_worse_in_all_is_by_the_joint_win_rate(front):
    for point in front["points"]:
        point["metrics"]["win_rate"] = wins(brief=0.6, faithful=0.6)
    front["points"][1]["metrics"]["win_rate"] |= {"high": 0.45}
    verdicts = [of(front, point)[0]["completions worse in all objectives"].verdict for point in front["points"][1:3]]
    assert verdicts == ["↓ worse", ""]


@pytest.mark.parametrize(
    ("left", "verdict"),
    [((0.4, 0.8), "most is length"), ((0.4, 1.2), ""), ((0.6, 0.8), ""), ((-0.2, 0.1), "most is length")],
)
def test_a_gain_that_is_length(front, left, verdict):
    sft, point = front["points"][:2]
    sft["scores"]["brief"] = {"mean": -1.0, "low": -1.1, "high": -0.9}
    point["scores"]["brief"] = {"mean": 0.0, "low": -0.1, "high": 0.1}
    point["metrics"]["at_matched_length"] = {"brief": {"mean": left[0], "low": -9.0, "high": left[1]}, "faithful": None}
    line = of(front, point)[0]["gain in brief at equal length"]
    assert (line.sft, line.verdict) == ("of 1.000", verdict)
    point["scores"]["brief"]["mean"] = -2.0  # no gain
    line = of(front, point)[0]["gain in brief at equal length"]
    assert (line.sft, line.verdict) == (NOTHING, "")


@pytest.mark.parametrize(
    ("key", "measure", "rise", "fall"),
    [
        ("share_empty", "empty completions", "↓ worse", ""),
        ("share_cut", "completions cut at the longest length", "↓ worse", ""),
        ("repetition", "4-grams repeated within a completion", "↓ worse", ""),
        ("distinct", "different texts", "", "↓ worse"),
        ("tokens", "tokens", "longer", "shorter"),
    ],
)
def test_what_completions_are_like_is_worse_in_one_direction(key, measure, rise, fall):
    front = front_of(DEMO)
    point = next(point for point in front["points"] if point["group"] == "lines")
    for low, high, verdict in ((0.01, 0.03, rise), (-0.03, -0.01, fall), (-0.01, 0.02, "")):
        point["changes"][key] = {"value": (low + high) / 2, "low": low, "high": high}
        assert of(front, point)[0][measure].verdict == verdict
    point["changes"][key] = {"value": 0.02, "low": 0.01, "high": 0.03}
    assert of(front, point | {"prompts": 1})[0][measure].verdict == ""  # of one prompt nothing is known


def test_forgetting_and_a_policy_without_faults(front):
    sft, point = front["points"][:2]
    for other in front["points"]:
        other["perplexity"] = {"mean": 5.0, "low": 4.9, "high": 5.1}
    point["perplexity"] = {"mean": 5.2, "low": 5.01, "high": 5.3}
    found, text = of(front, point)
    assert found["perplexity of control texts"].verdict == "↓ worse" and "perplexity of control texts (worse)" in text
    point["perplexity"]["low"] = 4.99
    for name in front["rewards"]:
        point["scores"][name] = {"mean": 3.0, "low": 2.0, "high": 4.0}
        sft["scores"][name] = {"mean": -3.0, "low": -4.0, "high": -2.0}
    found, text = of(front, point)
    assert text == "Nothing here is worse than the SFT model's beyond noise."
    assert found["score in brief"].sft == f"{MINUS}3.000"
    assert of(front, sft)[1] == "It is the SFT model, which the others are compared with."


def test_the_distance_is_told_and_not_judged(front):
    point = front["points"][1]
    point["kl"] = {"mean": 4.25, "low": 4.0, "high": 4.5}
    line = of(front, point)[0]["KL to the SFT model"]
    assert (line.own, line.sft, line.verdict) == ("4.250 nats", NOTHING, "")
    for other in front["points"]:
        other["kl"] = None
    assert "KL to the SFT model" not in of(front, point)[0]
