"""Two processes of one machine ask: the results of one, a message for a failure, and a resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest

from rlhf_lines.evaluation.evaluate import evaluate, rounds
from rlhf_lines.pareto import read_front
from rlhf_lines.sweep.store import Store
from tests import forked
from tests.torchrun import torchrun


needs_lm_eval = pytest.mark.usefixtures("lm_eval")
TASKS = ["tiny_choice", "tiny_answer", "tiny_text"]
DRIVER = '''
"""`rlhf-lines evaluate` that notes who asks what, and may fail or be killed while it does."""

import json
import os
import signal
import sys
from pathlib import Path

from torch import distributed

from rlhf_lines.cli import main
from rlhf_lines.evaluation import evaluate, harness
from rlhf_lines.sweep.finished import front

manager = harness.TaskManager
RANK, ask, asked = os.environ.get("RANK", "0"), harness.ask, []


def noted(model, task, *others):
    asked.append(task)
    with (Path(__file__).parent / "asked.jsonl").open("a") as file:
        file.write(json.dumps([int(RANK), distributed.get_world_size(), task]) + "\\n")
    if os.environ.get("FAILING_RANK") == RANK and len(asked) == 2:
        raise {"ValueError": ValueError, "MemoryError": MemoryError}[os.environ["FAILING_WITH"]]("not so")
    if os.environ.get("KILLED_AT") == str(len(asked)) and os.environ.get("KILLED_RANK", RANK) == RANK:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(model, task, *others)


harness.ask = noted
harness.TaskManager = lambda **settings: manager(**{**settings, "include_defaults": False})  # those take half a minute
evaluate.write_report = lambda folder: None
for name in ("plot_front", "plot_kl", "plot_validation", "plot_forgetting", "plot_benchmarks"):
    setattr(front, name, lambda front, *paths: None)
sys.exit(main(["evaluate", *sys.argv[1:]]))
'''


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval")


@pytest.fixture
def driver(tmp_path):
    (tmp_path / "driver").mkdir()
    path = tmp_path / "driver" / "driver.py"
    path.write_text(DRIVER)
    return path


@pytest.fixture
def environment(tmp_path):
    """Of processes of this checkout, with what datasets keep of the tasks for this test alone."""
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}


def arguments(run, tasks) -> list[str]:
    """Of what is asked in all tests: the SFT model, the points of LiNeS and those of a rule that no adapter holds."""
    asked = [run, "--tasks", ",".join(TASKS), "--include_path", tasks, "--points", "all", "--group", "lines", "ties"]
    return list(map(str, asked))


def by_one(run, tasks):
    return evaluate(run, TASKS, include_path=tasks, points=["all"], groups=["lines", "ties"])


def stored(run) -> dict:
    with Store(run, reading=True) as store:
        return store.evaluations()


def notes(driver) -> list:
    return [json.loads(line) for line in (driver.parent / "asked.jsonl").read_text().splitlines()]


@needs_lm_eval
def test_two_processes_find_what_one_finds(run, tasks, driver, environment, tmp_path):
    one = shutil.copytree(run, tmp_path / "one")
    by_one(one, tasks)
    result = torchrun([driver, *arguments(run, tasks)], environment)
    assert result.returncode == 0, result.stderr[-3000:]
    asked = [(rank, task) for rank, world, task in notes(driver) if world == 2]
    specs = len(stored(one)["tiny_text"])
    assert len(asked) == len(TASKS) * specs and specs > 4
    assert {rank for rank, _ in asked} == {0, 1}, "both worked"
    assert stored(run) == stored(one), "to the last bit"
    assert read_front(run) == read_front(one)
    assert result.stdout.count(f"tiny_text: asked {specs} policies") == 1, "one of them speaks"
    assert {path.name for path in run.iterdir()} == {path.name for path in one.iterdir()}


@needs_lm_eval
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("ValueError", 2, "rlhf-lines evaluate: process 1 of 2: not so\n"),
        (
            "MemoryError",
            1,
            "rlhf-lines evaluate: memory ran out (MemoryError process 1 of 2: MemoryError not so): ",
        ),
    ],
)
def test_a_failure_of_the_second_process_ends_both_with_one_sentence(
    run, tasks, driver, environment, error, status, words
):
    failing = {"FAILING_RANK": "1", "FAILING_WITH": error}
    statuses, said = forked.run(2, [str(driver), *arguments(run, tasks)], {**environment, **failing})
    assert statuses == [status, 1]
    assert said.count("rlhf-lines evaluate: ") == 1 and "Traceback" not in said
    assert words in said
    assert {task: len(found) for task, found in stored(run).items()} == {"tiny_choice": 2}, "of the round before"
    assert not list(run.parent.glob(".run.lock"))


@needs_lm_eval
@pytest.mark.parametrize(("rank", "who"), [(0, "the first process"), (1, "another process")])
def test_where_one_is_killed_the_other_says_so(run, tasks, driver, environment, rank, who):
    killed = {"KILLED_RANK": str(rank), "KILLED_AT": "2"}
    statuses, said = forked.run(2, [str(driver), *arguments(run, tasks)], {**environment, **killed})
    assert (statuses[rank], statuses[1 - rank]) == (-signal.SIGKILL, 1)
    assert said.count("rlhf-lines evaluate: ") == 1 and "Traceback" not in said
    assert f"{who} of the run has ended before its work was done, and may have said why; the results so far" in said
    assert {task: len(found) for task, found in stored(run).items()} == {"tiny_choice": 2}


@needs_lm_eval
def test_a_mistake_is_told_once_and_nothing_is_written(run, tasks, driver, environment):
    asked = [str(run), "--tasks", "tiny_chioce", "--include_path", str(tasks), "--group", "sft"]
    statuses, said = forked.run(2, [str(driver), *asked], environment)
    assert statuses == [2, 1] and said.count("rlhf-lines evaluate: ") == 1
    assert "unknown task 'tiny_chioce'; did you mean 'tiny_choice'?" in said and "Traceback" not in said
    assert stored(run) == {}


@needs_lm_eval
def test_two_killed_processes_are_resumed_by_one(run, tasks, driver, environment, tmp_path):
    one = shutil.copytree(run, tmp_path / "one")
    by_one(one, tasks)
    statuses, _ = forked.run(2, [str(driver), *arguments(run, tasks)], {**environment, "KILLED_AT": "3"})
    assert statuses == [-signal.SIGKILL] * 2
    assert {task: len(found) for task, found in stored(run).items()} == {"tiny_choice": 2, "tiny_answer": 2}
    outcome = by_one(run, tasks)
    specs = len(stored(one)["tiny_text"])
    assert outcome.asked == {"tiny_choice": specs - 2, "tiny_answer": specs - 2, "tiny_text": specs}
    assert stored(run) == stored(one) and read_front(run) == read_front(one)


def test_a_round_is_one_task_of_as_many_policies_as_there_are_processes():
    missing = {"a": [1, 2, 3, 4, 5], "b": [2, 3, 4, 5]}  # of b, policy 1 was asked before
    assert list(rounds([1, 2, 3, 4, 5], missing, 1)) == [
        [(1, "a")],
        *([(spec, task)] for spec in (2, 3, 4, 5) for task in "ab"),
    ]
    assert list(rounds([1, 2, 3, 4, 5], {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5]}, 2)) == [
        [(1, "a"), (2, "a")],
        [(1, "b"), (2, "b")],
        [(3, "a"), (4, "a")],
        [(3, "b"), (4, "b")],
        [(5, "a"), (5, "b")],
    ]
    assert list(rounds([1, 2], {"a": [1, 2], "b": [1, 2], "c": [2]}, 4)) == [
        [(1, "a"), (2, "a"), (1, "b"), (2, "b")],
        [(2, "c")],
    ]
    assert list(rounds([1, 2], {"a": [], "b": []}, 2)) == []
