"""Learning on two processes of one machine: the store and the factors of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rlhf_lines.artifact import read_record
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines import sampling
from tests.sweep.of_a_run import COMPLETIONS, SCORES, read
from tests.torchrun import finding, torchrun


JUDGES = '''
"""Two rewards, one of which notes who called it."""

import json
import os
from pathlib import Path

from torch import distributed

FOLDER, RANK = Path(__file__).parent, os.environ.get("RANK", "0")


def short(prompts, completions):
    started = distributed.get_world_size() if distributed.is_initialized() else 1
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps([int(RANK), started]) + "\\n")
    return [-float(len(text)) for text in completions]


def vowels(prompts, completions):
    return [float(sum(c in "aeiou" for c in text)) for text in completions]
'''


DRIVER = """
import os
import sys
from pathlib import Path

from rlhf_lines.cli import main
from rlhf_lines.learn.gradient import Differentiated
from rlhf_lines.sweep.engines import sampling

sampling.LOGITS_ON_CPU, sampling.LEAST_ROWS = 0, 2
call = Differentiated.__call__


def noted(slope, vector, pairs, loss, weights):
    with (Path(__file__).parent / "passes.txt").open("a") as file:
        file.write(f"{os.environ['RANK']} {len(pairs)}\\n")
    return call(slope, vector, pairs, loss, weights)


Differentiated.__call__ = noted
sys.exit(main(["learn", *sys.argv[1:]]))
"""


@pytest.fixture
def judges(tmp_path, monkeypatch):
    """The folder of the reward functions."""
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "noting_rewards.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path / "judges")
    monkeypatch.delitem(sys.modules, "noting_rewards", raising=False)  # of the test before
    return tmp_path / "judges"


def by_two(judges, arguments: list[str]) -> subprocess.CompletedProcess:
    """Run `learn` in two processes, as torchrun starts them, with two rows a pass."""
    (judges / "driver.py").write_text(DRIVER)
    return torchrun([judges / "driver.py", *arguments], finding(judges))


def test_two_processes_find_what_one_finds(flags, judges, tmp_path, monkeypatch):
    """Along gradients, whose passes are shared, and at the end a grid, whose completions are."""
    monkeypatch.setattr(sampling, "LOGITS_ON_CPU", 0)
    monkeypatch.setattr(sampling, "LEAST_ROWS", 2)
    settings = {
        **{"rewards": ["noting_rewards:short", "noting_rewards:vowels"], "method": "adamerging", "num_steps": 3},
        **{"space": "coefficients", "population": None, "num_candidates": 4, "step_prompts": 5, "batch_size": 7},
    }
    one = run_stage("learn", flags(tmp_path / "one", **settings))
    (judges / "calls.jsonl").unlink()
    result = by_two(judges, flags(tmp_path / "two", **settings))
    assert result.returncode == 0, result.stderr[-3000:]
    calls = {tuple(json.loads(line)) for line in (judges / "calls.jsonl").read_text().splitlines()}
    assert calls == {(0, 2), (1, 2)}, "two processes, and both worked"
    passes = (judges / "passes.txt").read_text().splitlines()
    assert sorted(passes) == ["0 1"] * 3 + ["0 2"] * 3 + ["1 2"] * 3, "5 rows in 3 passes of each step, shared"
    two = tmp_path / "two"
    assert (two / "factors.json").read_bytes() == (one / "factors.json").read_bytes()
    assert read(two, SCORES) == read(one, SCORES)
    assert [row[:-1] for row in read(two, COMPLETIONS)] == [row[:-1] for row in read(one, COMPLETIONS)]
    assert read_record(two)["validation"] == read_record(one)["validation"]
    assert (two / "learned.json").read_bytes() == (one / "learned.json").read_bytes()
