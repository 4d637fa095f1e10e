"""What rewards say of held-out pairs: shares counted by hand, and a Bradley-Terry fit that can be solved on paper."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.pareto.intervals import share_estimate
from rlhf_lines.train.reward_check import agreement, calibration, length_groups, wins


# Words of the chosen and the rejected completion. The longer one is chosen in 3, the shorter in 2; one pair is equal.
PAIRS = [
    ("a b c d e f", "a b"),
    ("a b c", "d"),
    ("a b c d e", "f g"),
    ("a", "b c d"),
    ("a b", "c d e f"),
    ("a b c", "d e f"),
]


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": f" {a}", "rejected": f" {b}"} for i, (a, b) in enumerate(PAIRS)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(("right", "wrong", "margin"), [(3, 1, 1.0), (7, 2, 0.1), (51, 49, 4.0)])
def test_the_temperature_of_equal_margins_is_that_of_their_share(right, wrong, margin):
    """`sigmoid(m / T) = p` at the best fit, so `T = m / log(p / (1 - p))`."""
    found = calibration([margin] * right + [-margin] * wrong, bins=1)
    share = right / (right + wrong)
    assert found.temperature == pytest.approx(margin / math.log(right / wrong), rel=1e-9)
    assert found.error == pytest.approx(abs(share - 1 / (1 + math.exp(-margin))), abs=1e-12)


def test_margins_that_say_how_sure_they_are_have_no_error():
    sure = [math.log(3), math.log(9)]  # right in 3 of 4, and in 9 of 10
    margins = [sure[0]] * 15 + [-sure[0]] * 5 + [sure[1]] * 18 + [-sure[1]] * 2
    found = calibration(margins, bins=2)
    assert found.error == pytest.approx(0.0, abs=1e-12) and found.temperature == pytest.approx(1.0, rel=1e-9)
    assert calibration(np.array(margins) * 3, bins=2).temperature == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("margins", [[1.0, 2.0, 0.0], [-1.0, -2.0], [1.0, -1.0], [0.0, 0.0]])
def test_a_fit_without_an_end_has_no_temperature(margins):
    assert calibration(margins).temperature is None


def test_two_rewards_agree_where_they_prefer_the_same():
    same, correlation = agreement([1.0, 2.0, -1.0, 0.0], [10.0, 20.0, 5.0, -3.0])
    assert same == share_estimate([1.0, 1.0, 0.0, 0.5])
    # Ranks 3 4 1 2 and 3 4 2 1: 1 - 6 (0 + 0 + 1 + 1) / (4 * 15).
    assert correlation == pytest.approx(0.8)
    assert agreement([1.0, 1.0], [1.0, 2.0])[1] is None


def test_lengths_within_a_fifth_are_about_as_long():
    assert length_groups([80, 79, 100, 100, 0], [100, 100, 79, 80, 0]).tolist() == [
        "as long", "shorter", "longer", "as long", "as long",
    ]  # fmt: skip
    assert wins([2.0, 0.0, -1e-9]).tolist() == [1.0, 0.5, 0.0]


def test_the_table_has_what_was_counted(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    longer = json.dumps({"model": "rule:length", "name": "longer", "options": {"target": "longer"}})
    flags = ["--dataset_name", data, "--test_size", "all", "--rewards", longer, "rule:length", "posixpath:constant"]
    monkeypatch.setattr("posixpath.constant", lambda prompts, completions: [1.0] * len(prompts), raising=False)
    assert cli.main(["reward", "--check", *flags]) == 0
    told = capsys.readouterr().out
    header, longer, shorter, constant = told.splitlines()[2:6]
    assert "6 held-out pairs" in told and "the longer completion is the chosen one in 58.3 %" in told  # 3.5 of 6
    for line, shares in ((longer, ("58.3", "0.0", "50.0", "100.0")), (shorter, ("41.7", "100.0", "50.0", "0.0"))):
        assert tuple(part.split()[-1] for part in line.split(" %")[:-1]) == shares
        assert [part.split()[0] for part in line.split(" of ")[1:]] == ["2", "1", "3"]
    assert constant.split()[:3] == ["constant", "50.0", "%"]
    assert header.split()[0] == "reward"
    assert "longer and length prefer the same one in 8.3 %" in told  # the equal pair counts half
    assert "rank correlation of their margins -1.00" in told
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rewards", "rule:lenght"], "did you mean 'rule:length'"),
        (["--rewards", '{"model": "rule:length", "weight": 2}'], "here raw scores are read"),
        (["--rewards", "rule:length", "--batch_size", "0"], "batch_size is 0, expected at least 1"),
        (["--rewards", "rule:length", "--output_dir", "x"], "output_dir"),
        (["--rewards", "http://127.0.0.1:9/get_reward"], "cannot be reached"),
    ],
)
def test_a_mistake_is_one_sentence(data, flags, told, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert cli.main(["reward", "--check", "--dataset_name", data, "--test_size", "all", *flags]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_reward_that_cannot_score_is_told_before_another_has_worked(data, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("posixpath.counted", lambda prompts, completions: asked.extend(prompts), raising=False)
    options = {"model": "m", "rubric": "r", "against": "sft"}
    judge = json.dumps({"model": "judge:http://127.0.0.1:9/v1", "options": options})
    flags = ["--dataset_name", data, "--test_size", "all", "--rewards", "posixpath:counted", judge]
    assert cli.main(["reward", "--check", *flags]) == 2
    assert "compares with other completions" in capsys.readouterr().err and asked == []
