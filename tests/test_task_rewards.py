"""The reward models of a run, and that imports go one way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf_lines.task_rewards import RewardEntry, load_reward_models, reward_entries


def test_two_reward_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="have the names split, split: two are equal"):
        load_reward_models(reward_entries(["posixpath:split", "ntpath:split"]))


@pytest.mark.parametrize("name", ["", " ", " length", "two\nlines", 3])
def test_a_reward_has_a_name_that_can_be_found_again(name):
    with pytest.raises(ValueError, match=r"rewards: rule:length has name .*, expected a text without line breaks"):
        RewardEntry.of({"model": "rule:length", "name": name})


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("rlhf_lines.pareto", ["trl", "rlhf_lines.train"]), ("reward_models", ["trl", "rlhf_lines"])],
)
def test_imports_go_one_way(package, forbidden):
    code = f"import sys, {package}; print([name for name in {forbidden} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_identity_of_a_reward_has_no_secrets():
    entry = RewardEntry.of({"model": "scores:ask", "options": {"api_key": "hunter2-is-no-word", "scale": 2.0}})
    assert entry.identity()["options"] == {"scale": 2.0} and entry.options["api_key"] == "hunter2-is-no-word"
