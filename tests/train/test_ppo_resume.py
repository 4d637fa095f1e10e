"""A run that is killed at any moment and resumed ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf_lines.stages import run_stage
from rlhf_lines.train import ppo
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests import forked
from tests.tiny import WORDS


KILLED = Path(__file__).parent / "killed.py"


@pytest.fixture
def stage_flags(flags, base, short_reader, write_rows, tmp_path, monkeypatch):
    """Return a maker of flags of a run with everything that has a state."""
    (tmp_path / "resumed_rewards.py").write_text(
        "def letters(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS[:6] for y in WORDS[:3]])

    of_short = json.dumps({"model": str(short_reader), "normalize": True})

    def make(**changes):
        settings = {
            **{"model_name_or_path": base, "dataset_name": data.parent},
            **{
                "rewards": ['{"model": "resumed_rewards:letters", "normalize": true}', of_short],
                "normalization_samples": 18,
            },
            **{"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_target_modules": "all-linear"},
            # 8 completions in a rollout, two updates of it: 18 prompts are two rollouts, so that step 8 ends epoch 2.
            **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
            **{"max_steps": 12, "max_completion_length": 4, "logging_steps": 1, "learning_rate": 1e-2},
            **{"kl_target": 0.5, "kl_gain": 1.0, "value_lora": True, "save_strategy": "steps", "save_steps": 2},
        }
        return flags(**{**settings, **changes})

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Where runs that nothing stopped are kept for the tests that only read them."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def whole(finished, stage_flags):
    """Return a function from changed settings to a run that nothing stopped, made when a test first asks for it."""

    def run(**changes):
        out = finished / ("-".join(f"{key}={value}" for key, value in changes.items()) or "as it is")
        return out if out.exists() else run_stage("ppo", stage_flags(output_dir=out, **changes))

    return run


@pytest.fixture
def killed(stage_flags, tmp_path):
    """Return a function that runs the stage in a process that kills itself."""

    def run(method, count, **changes):
        path = [str(tmp_path), *sys.path]  # the checkout that is tested, wherever it is installed from
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        arguments = [str(KILLED), method, str(count), *stage_flags(**changes)]
        (status,), said = forked.run(1, arguments, environment)
        assert status == -signal.SIGKILL, said[-3000:]

    return run


@pytest.mark.parametrize(
    ("method", "count", "found"),
    [
        ("training_step", 7, ["checkpoint-2"]),  # in the second rollout
        ("_save", 5, ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]),  # half a checkpoint is on disk
        ("_generate_and_score_completions", 4, ["checkpoint-2", "checkpoint-4", "checkpoint-6"]),  # in epoch 2
    ],
)
def test_killed_and_resumed_is_the_run_that_was_not_killed(whole, stage_flags, killed, tmp_path, method, count, found):
    whole = whole()
    out = tmp_path / "out"
    killed(method, count, output_dir=out)
    assert not out.exists()
    partial = tmp_path / ".out.partial"
    assert sorted(path.name for path in partial.glob("checkpoint-*")) == found
    scales = (partial / "normalization.json").read_bytes()

    generated = []
    with pytest.MonkeyPatch.context() as patch:
        own = PPOTrainer._generate_and_score_completions
        patch.setattr(PPOTrainer, "_generate_and_score_completions", lambda *args: generated.append(1) or own(*args))
        assert run_stage("ppo", stage_flags(output_dir=out, resume=True)) == out
    assert len(generated) == 6 - len(found), "what was finished is not done again"
    assert not partial.exists()
    assert (out / "normalization.json").read_bytes() == scales
    for file in ("adapter_model.safetensors", "value/adapter_model.safetensors", "value_head.safetensors"):
        a, b = load_file(whole / file), load_file(out / file)
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max() < 1e-6, name
            assert a[name].abs().max() > 0, name
    states = [json.loads((folder / "ppo_state.json").read_text()) for folder in (whole, out)]
    assert states[0]["rollouts"] == states[1]["rollouts"] == 6
    assert states[1]["kl_coef"] == pytest.approx(states[0]["kl_coef"], abs=1e-9) and states[0]["kl_coef"] != 0.05
    # Epoch 2 has an order of its own.
    records = [json.loads((folder / "rlhf_lines.json").read_text()) for folder in (whole, out)]
    histories = [record["history"] for record in records]
    assert [row["step"] for row in histories[0]] == [row["step"] for row in histories[1]]
    # Each rollout has 8 completions; the samples for the scales, and the words of a first try, are of none.
    cut = [row["rewards/short/truncated"] for row in histories[0] if "rewards/short/truncated" in row]
    assert len(cut) == 6 and min(cut) > 0 and max(cut) <= 8
    assert records[0]["truncated"] == records[1]["truncated"] == {"letters": 0, "short": sum(cut)}
    assert [path.suffix for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".bin")] == []


def test_a_stopped_run_is_not_lost_by_accident(stage_flags, killed, tmp_path):
    out = tmp_path / "out"
    killed("training_step", 9, output_dir=out)
    with pytest.raises(FileExistsError, match=r"stopped after checkpoint-4: add --resume .* or --overwrite"):
        run_stage("ppo", stage_flags(output_dir=out))
    with pytest.raises(ValueError, match=r"out was made with learning_rate '?0.01'?, now it is"):
        run_stage("ppo", stage_flags(output_dir=out, resume=True, learning_rate=2e-2))
    assert (tmp_path / ".out.partial" / "checkpoint-4").is_dir()
    run_stage("ppo", stage_flags(output_dir=out, overwrite=True, max_steps=2))
    assert json.loads((out / "rlhf_lines.json").read_text())["updates"] == 2


def test_another_number_of_sequences_at_once_is_another_run(stage_flags, killed, tmp_path):
    """What a run on twice as many processes would do unasked: twice the rollout."""
    out = tmp_path / "out"
    killed("training_step", 9, output_dir=out)
    with pytest.raises(ValueError, match="begun with 4 sequences at once on all processes together, now it is 2"):
        run_stage("ppo", stage_flags(output_dir=out, resume=True, per_device_train_batch_size=2))
    assert (tmp_path / ".out.partial" / "checkpoint-4").is_dir()


class Killed(BaseException):
    """As SIGKILL: nothing below the test catches it."""


@pytest.mark.parametrize("moment", ["remove_working_files", "write_record"])
def test_a_run_that_was_killed_after_its_last_update_is_finished(whole, stage_flags, tmp_path, monkeypatch, moment):
    """The last checkpoint is of step 10: without its random and optimizer state the rest would be another run."""
    settings = {"save_steps": 10}
    whole, out = whole(**settings), tmp_path / "out"

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ppo, moment, kill)
        with pytest.raises(Killed):
            run_stage("ppo", stage_flags(output_dir=out, **settings))
    assert not out.exists()
    assert run_stage("ppo", stage_flags(output_dir=out, resume=True, **settings)) == out
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole, out))
    assert all((a[name] - b[name]).abs().max() < 1e-6 for name in a)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert [path for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".bin")] == []


def test_a_run_that_was_to_replace_another_goes_on(whole, stage_flags, killed, tmp_path):
    out = run_stage("ppo", stage_flags(output_dir=tmp_path / "out", max_steps=2, learning_rate=0.1))
    first = (out / "adapter_model.safetensors").read_bytes()
    killed("training_step", 9, output_dir=out, overwrite=True)
    assert (out / "adapter_model.safetensors").read_bytes() == first, "the old one is there until the new one is done"
    for flags, message in (
        ({}, "add --resume --overwrite to go on"),
        ({"resume": True}, "add --overwrite to --resume"),
    ):
        with pytest.raises(FileExistsError, match=message):
            run_stage("ppo", stage_flags(output_dir=out, **flags))
    run_stage("ppo", stage_flags(output_dir=out, resume=True, overwrite=True))
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole(), out))
    assert all((a[name] - b[name]).abs().max() < 1e-6 for name in a)
    assert json.loads((out / "rlhf_lines.json").read_text())["updates"] == 12


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(stage_flags, tmp_path):
    (tmp_path / "unscored_rewards.py").write_text(
        "def nan(prompts, completions):\n    return [float('nan')] * len(prompts)\n"
    )
    with pytest.raises(ValueError, match="returned nan"):
        run_stage("ppo", stage_flags(output_dir=tmp_path / "out", rewards=["unscored_rewards:nan"]))
    assert not (tmp_path / ".out.partial").exists()


def test_a_checkpoint_in_the_middle_of_a_rollout_is_refused(stage_flags, tmp_path):
    with pytest.raises(ValueError, match="save_steps is 3, expected a multiple of 2, the updates of a rollout"):
        run_stage("ppo", stage_flags(output_dir=tmp_path / "out", save_steps=3))
