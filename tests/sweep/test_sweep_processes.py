"""A sweep on two processes of one machine: the store of one process, a message for a failure, and a resume."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lines.stages import run_stage
from tests.sweep.of_a_run import assert_same_store, read, strict_json, words
from tests.torchrun import torchrun


SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
REWARDS = '''
"""Two rewards that note who called them, and can fail or kill their process group."""

import json
import os
import re
import signal
from pathlib import Path

from torch import distributed

FOLDER, RANK = Path(__file__).parent, os.environ.get("RANK", "0")
CALLS = []


def short(prompts, completions):
    if len(prompts) == 1 and prompts[0].startswith(completions[0] or "-"):  # the trial before the run
        return [0.0]
    CALLS.append(len(completions))
    started = distributed.get_world_size() if distributed.is_initialized() else 1
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps([int(RANK), started, len(completions)]) + "\\n")
    if os.environ.get("FAILING_RANK") == RANK:
        raise KeyError("a judge that fails")
    if os.environ.get("KILLED_AT") == str(len(CALLS)) and RANK == "0":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    return [-float(len(text)) for text in completions]


def vowels(prompts, completions):
    return [float(sum(c in "aeiou" for c in text) - (prompt[0] in text)) for prompt, text in zip(prompts, completions)]
'''


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> Path:
    """The folder of the reward functions and of their notes."""
    folder = tmp_path_factory.mktemp("judges")
    (folder / "shared_rewards.py").write_text(REWARDS)
    (folder / "texts.txt").write_text("a quick brown fox\n\njumps over <it>\n\nand sleeps")
    return folder


@pytest.fixture(scope="module")
def settings(sft, policies, dataset, judges) -> dict:
    """A sweep that chooses, has a rule that is not linear, texts outside the task and two samples of every prompt."""
    return {
        "sft_model": sft,
        "policies": policies[:2],
        "rewards": ["shared_rewards:short", "shared_rewards:vowels"],
        "dataset_name": dataset,
        "alphas": ["1.0"],
        "betas": [0.5, 1.0],
        "controls": "false",
        "groups": ['{"name": "ties", "rule": "ties", "options": {"density": 0.4}}'],
        "control": judges / "texts.txt",
        "num_weights": 3,
        "validation_weights": 2,
        "validation_prompts": 4,
        "test_prompts": 5,
        "samples_per_prompt": 2,
        "max_new_tokens": 6,
        "batch_size": 7,
    }


@pytest.fixture
def notes(judges, monkeypatch):
    """A function that returns [rank, world size, texts] of every call since the last time."""
    monkeypatch.syspath_prepend(judges)
    file = judges / "calls.jsonl"
    file.unlink(missing_ok=True)

    def take() -> list[list[int]]:
        lines = file.read_text().splitlines()
        file.unlink()
        return [json.loads(line) for line in lines]

    return take


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict:
    return {"folder": tmp_path_factory.mktemp("one") / "sweep"}


@pytest.fixture
def one(finished, settings, notes) -> Path:
    """The sweep of one process."""
    if not finished["folder"].exists():
        run_stage("sweep", words({**settings, "output_dir": finished["folder"]}))
        assert sum(texts for _, _, texts in notes()) == len(read(finished["folder"], "SELECT 1 FROM completions"))
    return finished["folder"]


def environment(judges: Path, **variables) -> dict[str, str]:
    paths = [str(judges), *sys.path]  # the checkout that is tested, wherever it is installed from
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}


def start_two(judges: Path, settings: dict, **variables) -> list[tuple[int, str]]:
    """Start two processes as a launcher does, in one process group; return status and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **variables}
    processes = []
    for rank in ("0", "1"):
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *words(settings)],
                env=environment(judges, RANK=rank, LOCAL_RANK=rank, **shared),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                process_group=processes[0].pid if processes else 0,
            )
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def assert_near(found, want, *, rel: float = 1e-6) -> None:
    """The same JSON, its numbers up to the rounding of a KL; a perplexity up to that of an nll in the store."""
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        for key in want:
            assert_near(found[key], want[key], rel=1e-5 if key == "perplexity" else rel)
    elif isinstance(want, list):
        assert len(found) == len(want)
        for a, b in zip(found, want, strict=True):
            assert_near(a, b, rel=rel)
    elif isinstance(want, float):
        assert found == pytest.approx(want, rel=rel, abs=1e-6)
    else:
        assert found == want


def test_two_processes_leave_the_store_of_one(one, settings, judges, notes, tmp_path):
    result = torchrun([SCRIPT, *words({**settings, "output_dir": tmp_path / "two"})], environment(judges))
    assert result.returncode == 0, result.stderr[-3000:]
    calls = notes()
    assert {tuple(call[:2]) for call in calls} == {(0, 2), (1, 2)}, "two processes, and both worked"
    assert max(texts for *_, texts in calls) == settings["batch_size"]
    assert sum(texts for *_, texts in calls) == len(read(one, "SELECT 1 FROM completions"))
    assert_same_store(one, tmp_path / "two")
    assert_near(strict_json(tmp_path / "two" / "front.json"), strict_json(one / "front.json"))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in one.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_failure_of_the_second_process_ends_both_with_one_sentence(settings, judges, notes, tmp_path):
    results = start_two(judges, {**settings, "output_dir": tmp_path / "sweep"}, FAILING_RANK="1")
    assert [status for status, _ in results] == [2, 1]
    leader, follower = (error for _, error in results)
    assert re.search("process 1 of 2: the reward function '.*short' raised KeyError: 'a judge that fails'", leader)
    assert "Traceback" not in leader
    assert re.search(r"sweep, validation prompts.*: 0 of ", leader) and "sweep, " not in follower, (
        "one of them shows progress"
    )
    assert "a judge that fails" not in follower and "Traceback" not in follower
    assert not (tmp_path / "sweep").exists()


def test_two_killed_processes_are_resumed_by_one(one, settings, judges, notes, tmp_path):
    final = tmp_path / "sweep"
    results = start_two(judges, {**settings, "output_dir": final}, KILLED_AT="6")
    assert [status for status, _ in results] == [-signal.SIGKILL] * 2
    notes()
    stored = len(read(tmp_path / ".sweep.partial", "SELECT 1 FROM completions"))
    assert 0 < stored < len(read(one, "SELECT 1 FROM completions"))
    run_stage("sweep", [*words({**settings, "output_dir": final}), "--resume"])
    assert stored + sum(texts for *_, texts in notes()) == len(read(one, "SELECT 1 FROM completions"))
    assert_same_store(one, final)
    assert_near(strict_json(final / "front.json"), strict_json(one / "front.json"))
