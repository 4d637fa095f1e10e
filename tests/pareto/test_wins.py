"""Wins over the SFT model, pair by pair in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.wins import lost_most, win_rate


RESAMPLING = Resampling(resamples=20)


def whole(values) -> np.ndarray:
    """Scores in whole numbers, so that there are ties."""
    return np.random.default_rng(values).integers(4, size=(30, 3, 3)).astype(float)


def test_win_rates_are_those_of_every_pair():
    own, sft, names = whole(1), whole(2), ["a", "b", "c"]
    found = win_rate(own, sft, names, RESAMPLING)
    pairs = [(own[p, s], sft[p, s]) for p in range(30) for s in range(3)]
    wins = [[1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(*pair, strict=True)] for pair in pairs]
    for k, name in enumerate(names):
        assert found["by_objective"][name]["mean"] == pytest.approx(np.mean([row[k] for row in wins]))
    better = np.mean([all(win == 1 for win in row) for row in wins])
    worse = np.mean([all(win == 0 for win in row) for row in wins])
    joint = np.mean([1.0 if set(row) == {1} else 0.0 if set(row) == {0} else 0.5 for row in wins])
    assert worse > 0 and better > 0
    assert found["all_better"]["mean"] == pytest.approx(better) and found["all_worse"]["mean"] == pytest.approx(worse)
    assert found["mean"] == pytest.approx(joint)
    assert found["low"] < found["mean"] < found["high"]


def test_the_sft_model_ties_with_itself_whatever_the_prompts():
    scores = whole(3)
    half, none = ({"mean": value, "low": value, "high": value} for value in (0.5, 0.0))
    by_objective = dict.fromkeys("abc", half)
    expected = {**half, "by_objective": by_objective, "all_better": none, "all_worse": none}
    assert win_rate(scores, scores, ["a", "b", "c"], RESAMPLING) == expected


def test_a_policy_that_tied_everywhere_so_far_may_win_elsewhere():
    scores = whole(3)
    found = win_rate(scores.copy(), scores, ["a", "b", "c"], RESAMPLING)
    # With t^2 / 2 more wins and losses each, 1/2 stays 1/2, and 0 of 30 becomes q.
    t = student.ppf(0.975, 29)
    q, more = t**2 / 2 / (30 + t**2), 30 + t**2
    reach = t * np.sqrt(0.25 / more)
    half = pytest.approx({"mean": 0.5, "low": 0.5 - reach, "high": 0.5 + reach}, rel=1e-12)
    none = pytest.approx({"mean": 0.0, "low": 0.0, "high": q + t * np.sqrt(q * (1 - q) / more)}, rel=1e-12)
    joint = {key: found.pop(key) for key in ("mean", "low", "high")}
    assert joint == half
    assert found == {"by_objective": dict.fromkeys("abc", half), "all_better": none, "all_worse": none}


def test_with_one_objective_the_joint_rate_is_its_own():
    found = win_rate(whole(4)[..., :1], whole(5)[..., :1], ["a"], RESAMPLING)
    assert found["by_objective"]["a"] == {key: found[key] for key in ("mean", "low", "high")}


def test_the_prompts_that_lost_most():
    sft = np.array([[[0.0, 10.0]], [[2.0, 30.0]], [[4.0, 50.0]], [[6.0, 70.0]]])  # sd sqrt(5) and 10 sqrt(5)
    fall = np.array([[[-1.0, 0.0]], [[0.0, -30.0]], [[1.0, 1.0]], [[-1.0, 10.0]]])
    found = lost_most(sft + fall, sft, ["a", "b"])
    assert [lost.prompt for lost in found] == [1, 0]  # what loses and gains the same has lost nothing
    assert [lost.loss for lost in found] == pytest.approx([1.5 / np.sqrt(5), 0.5 / np.sqrt(5)])
    assert found[0].differences == {"a": 0.0, "b": -30.0}
    assert lost_most(sft + fall, sft, ["a", "b"], count=1) == found[:1]
    assert lost_most(sft, sft, ["a", "b"]) == []


def test_an_objective_without_spread_counts_in_its_own_unit():
    sft = np.zeros((3, 2, 1))
    own = np.array([[[0.0], [0.0]], [[-1.0], [-3.0]], [[1.0], [0.0]]])
    assert [(lost.prompt, lost.loss) for lost in lost_most(own, sft, ["a"])] == [(1, 2.0)]


def test_an_objective_that_is_the_same_for_all_prompts_is_not_divided_by_rounding():
    sft = np.full((200, 1, 1), 0.3)
    own = sft.copy()
    own[7] = -0.7
    [lost] = lost_most(own, sft, ["a"])
    assert (lost.prompt, lost.loss) == (7, 1.0)
