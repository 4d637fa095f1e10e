"""Reward models see the task's version of a prompt."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reward_models import FunctionReward
from rlhf_lines.task_rewards import TaskReward, load_reward_models, reward_entries


PROMPT = "SUBREDDIT: r/cats\n\nTITLE: Late\n\nPOST: POST: is how it starts.\n\nTL;DR:"


def seen(prompts, completions):
    """A reward that says how many characters of the prompt it was shown."""
    return [float(len(prompt)) for prompt in prompts]


def test_summaries_are_scored_against_the_post_alone():
    reward = FunctionReward(seen)
    assert TaskReward(reward, "tldr").score([PROMPT], ["Late."]) == [len("POST: is how it starts.")]
    assert TaskReward(reward, "docstrings").score(["json.dumps:"], [" Dump."]) == [len("json.dumps:")]
    assert TaskReward(reward, "some/file.jsonl").score([PROMPT], ["Late."]) == [len(PROMPT)]


def test_two_reward_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="have the names split, split: two are equal"):
        load_reward_models(reward_entries(["posixpath:split", "ntpath:split"]), "docstrings")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("rlhf_lines.pareto", ["trl", "rlhf_lines.train"]), ("reward_models", ["trl", "rlhf_lines"])],
)
def test_imports_go_one_way(package, forbidden):
    code = f"import sys, {package}; print([name for name in {forbidden} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
