"""Which process this is: asked in one place, without torch where there is one process, and alike in all of several."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lines import distributed
from tests.torchrun import finding, torchrun


ROOT = Path(__file__).parents[1]
QUESTIONS = re.compile(
    r"""["'](LOCAL_)?(RANK|WORLD_SIZE)["']|from torch import distributed|torch\.distributed\.(get|is)_|PartialState"""
    r"""|is_main_process|is_world_process_zero"""
)
OF_A_TRAINER = re.compile(r"\.(num_processes|process_index|world_size)\b")
TWO = """
import datetime, time
import torch
from rlhf_lines import distributed
from rlhf_lines.errors import InputProblems

processes = distributed.Processes()
# As with a short ddp_timeout, which nobody who waits for the leader's own work may run into.
torch.distributed.barrier()
torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2))
assert (distributed.count(), distributed.count_here(), processes.count) == (2, 2, 2)

def work(item):
    return 2 * item

if distributed.leads():
    with processes.leading():
        assert (processes.map(work, [1, 2]), processes.map(work, [5])) == ([2, 4], [10])
else:
    processes.follow(work)
if distributed.leads():
    time.sleep(4)
distributed.wait()
assert distributed.from_leader(lambda: time.sleep(4) or distributed.leads()) is True

def refused():
    raise InputProblems(["a is 1", "b is 2"])

try:
    distributed.from_leader(refused)
except InputProblems as error:
    assert (error.problems, str(error)) == (("a is 1", "b is 2"), "2 problems: (1) a is 1; (2) b is 2")
    print(f"leads {distributed.leads()}\\n", end="", flush=True)
distributed.leave()
"""


FAILING = """
import os, sys, time
from rlhf_lines.cli import main

rank = os.environ["RANK"]
if sys.argv[1] != "all":
    time.sleep(1 if rank == "0" else 0)
    if rank == "0":
        sys.exit(0)
sys.exit(main(["front", "./nowhere"]))
"""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=finding(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def modules_with(question: re.Pattern[str]) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in ("rlhf_lines", "reward_models", "scripts")
        for path in ROOT.glob(f"{package}/**/*.py")
        if question.search(path.read_text())
    }


def test_no_other_module_asks():
    assert modules_with(QUESTIONS) == {"rlhf_lines/distributed.py"}


def test_inside_a_trainer_its_own_accelerator_answers():
    asking = ("ppo_trainer", "ppo_config", "settings", "normalization", "ppo", "checkpoints")
    assert modules_with(OF_A_TRAINER) == {f"rlhf_lines/train/{name}.py" for name in asking}


def test_one_process_leads_and_imports_no_torch():
    script = (
        "import sys; from rlhf_lines import artifact, distributed; distributed.start(); distributed.wait(); "
        "assert distributed.leads() and distributed.count() == distributed.count_here() == 1; "
        "assert distributed.from_leader(lambda: 3) == 3; distributed.leave(); "
        "print(sorted({'torch', 'accelerate', 'numpy'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", script) == "[]\n"
    with pytest.raises(KeyError):
        distributed.from_leader(lambda: {}["missing"])


def test_two_processes_share_work_and_hear_the_same(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    done = torchrun([tmp_path / "two.py"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")) == ["", "leads False", "leads True"]


@pytest.mark.parametrize("failing", ["all", "the second"])
def test_of_processes_that_fail_alike_one_says_so(tmp_path, failing):
    (tmp_path / "failing.py").write_text(FAILING)
    done = torchrun(["failing.py", failing], cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("rlhf-lines front: nowhere has no run.sqlite") == 1, done.stderr[-3000:]


def test_without_the_store_of_a_launcher_each_speaks(monkeypatch):
    said = []
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PATIENCE", datetime.timedelta(seconds=1))
    for store in ("", "True"):  # none, and one that does not answer
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", store)
        distributed.say_once("a", lambda: said.append("a"))
    assert said == ["a", "a"]
