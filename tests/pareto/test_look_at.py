"""What to look at: told where it moved beyond noise and by a size that matters, and not else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_lines.pareto.look_at import SENTENCES, likely_choices, what_to_look_at
from rlhf_lines.pareto.schema import faults
from tests.pareto.damaged import DEMO, ENDS, P, front_of


def test_empty_and_cut_completions_at_the_ends_are_told():
    front = front_of(DEMO)
    assert list(faults(json.loads(json.dumps(front, allow_nan=False)))) == []
    assert front["points"][4]["metrics"]["share_empty"]["mean"] == 0.225
    assert front["points"][6]["metrics"]["share_cut"]["mean"] == 0.29
    assert front["points"][6]["changes"]["share_cut"]["value"] == pytest.approx(0.26)
    empty, cut = what_to_look_at(front)[:2]
    assert empty == (
        "22 % of the completions of LiNeS 1 / 0 are empty; of the SFT model's 1 %. Likewise rewarded soup 1 / 0 (10 %)."
    )
    assert cut == "29 % of the completions of LiNeS 0 / 1 are cut at the longest length; of the SFT model's 3 %."


def test_where_nothing_moved_nothing_is_said():
    assert what_to_look_at(front_of()) == []


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({"repeated": 40}, "20 % of the 4-grams in completions of LiNeS 1 / 0 occurred before in them; of the SFT"),
        (
            {"distinct": 50},
            "25 % of the completions of LiNeS 1 / 0 are texts of their own; of the SFT model's 100 %.",
        ),
        ({"tokens": 24}, "The completions of LiNeS 1 / 0 have 24.0 tokens on average; the SFT model's 16.0."),
        ({"tokens": 8}, "The completions of LiNeS 1 / 0 have 8.0 tokens on average; the SFT model's 16.0."),
    ],
)
def test_everything_else_that_moved(changed, begins):
    (sentence, *more) = what_to_look_at(front_of({("lines", (1.0, 0.0)): changed}))
    assert more == []
    percent, rest = (sentence.split(" ", 1)[0], begins.split(" ", 1)[1])
    if "repeated" not in changed:
        assert sentence.startswith(begins)
    else:  # of 13 4-grams 12 or 11 in each of 40 of 200 completions
        assert rest in sentence and 15 <= int(percent) <= 20


@pytest.mark.parametrize("changed", [{"empty": 8}, {"cut": 16}, {"tokens": 19}, {"distinct": 190}])
def test_what_is_small_is_not_told(changed):
    assert what_to_look_at(front_of({("lines", (1.0, 0.0)): changed})) == []


def test_what_is_better_than_the_sft_model_is_not_told():
    assert what_to_look_at(front_of({("sft", None): {"empty": 40, "cut": 40}})) == []


def test_what_noise_could_do_is_not_told():
    front = front_of({("lines", (1.0, 0.0)): {"empty": 40}})
    for point in front["points"]:
        point["changes"]["share_empty"]["low"] = -0.01
        point["changes"]["tokens"]["low"], point["changes"]["tokens"]["high"] = -1.0, 1.0
    assert what_to_look_at(front) == [
        "80 % of the completions of LiNeS 1 / 0 are texts of their own; of the SFT model's 100 %."
    ]
    for point in front["points"]:
        point["prompts"] = 29  # `distinct` has no interval that could tell it from noise
    assert what_to_look_at(front) == []


def test_only_points_that_one_would_choose_are_read():
    changed = {(group, (0.5, 0.5)): {"empty": 100} for group in ENDS}
    front = front_of(changed, {("lines", (0.5, 0.5)): np.full((P, 2), -9.0)})
    (sentence, *_) = what_to_look_at(front)
    assert "rewarded soup 0.5 / 0.5 are empty" in sentence and "LiNeS" not in sentence


def test_each_policy_is_read_once():
    front = front_of()
    for point in front["points"]:
        point["spec"]["alpha"] = 1.0  # so that both groups have the same policies
    assert [point["id"] for point in likely_choices(front)] == [1, 3, 2]


def test_a_point_that_loses_everywhere_is_told():
    generator = np.random.default_rng(3)
    worse = generator.normal(size=(P, 2)) - 0.5
    front = front_of(
        scores={
            (g, w): worse - 1e-3 * i for i, (g, w) in enumerate((g, (w, 1 - w)) for g in ENDS for w in (1.0, 0.5, 0.0))
        }
    )
    first = what_to_look_at(front)[0]
    wins = front["points"][1]["metrics"]["win_rate"]
    share = f"{100 * wins['all_worse']['mean']:.0f} %"
    above = f"{100 * wins['all_better']['mean']:.0f} %"
    assert first.startswith(f"{share} of the completions of rewarded soup 1 / 0 score below the SFT model's in every")
    assert f"objective, {above} above it in every one." in first


def test_a_gain_that_is_length_is_told():
    front = front_of()
    point = next(point for point in front["points"] if point["label"] == "0 / 1" and point["group"] == "lines")
    gain = point["scores"]["b"]["mean"] - front["points"][0]["scores"]["b"]["mean"]
    point["metrics"]["at_matched_length"]["b"] = {"mean": 0.2, "low": 0.1, "high": 0.3}
    assert what_to_look_at(front) == [
        f"Most of what LiNeS 0 / 1 gains in b is length: {gain:.3g} above the SFT model, 0.2 [0.1, 0.3] at equal "
        "lengths."
    ]
    point["metrics"]["at_matched_length"]["b"] = {"mean": 0.2, "low": -2.0, "high": gain + 0.1}
    assert what_to_look_at(front) == []  # what is left could be all of it


def test_the_list_is_short_and_the_largest_come_first():
    everything = {"empty": 30, "cut": 60, "tokens": 30, "repeated": 60, "distinct": 100}
    front = front_of(
        {(group, weights): everything for group in ENDS for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))}
    )
    sentences = what_to_look_at(front)
    assert 4 <= len(sentences) <= SENTENCES
    assert sentences[0].endswith("and 3 more.")


@pytest.mark.parametrize("without", ["sft", "behaviour"])
def test_without_anything_to_compare_with_nothing_is_said(without):
    front = front_of({("lines", (1.0, 0.0)): {"empty": 45}})
    if without == "sft":
        front["points"] = front["points"][1:]
    else:
        for point in front["points"]:
            point["changes"] = None
    assert what_to_look_at(front) == []
