"""Checkpoints of sft and reward runs: whole or not there, and a stopped run goes on from the newest."""

from __future__ import annotations

import errno
import json
import shutil
from functools import partial

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from rlhf_lines import cli
from rlhf_lines.disk import KEPT_FOR_RESUME, NOTHING_KEPT, DiskFault
from rlhf_lines.stages import run_stage
from rlhf_lines.train.checkpoints import UNFINISHED, newest_checkpoint
from tests.tiny import WORDS


@pytest.fixture
def stage(flags, base, write_rows, tmp_path):
    """Return a runner of a small stage with a checkpoint every two updates."""
    prompts = [
        {"prompt": f"{x} {y}", "completion": " a b", "chosen": " a b", "rejected": " c"} for x in WORDS for y in WORDS
    ]
    data = write_rows("data/train.jsonl", prompts[:40]).parent
    write_rows("data/test.jsonl", prompts[40:50])

    def run(verb, **changes):
        settings = {
            **{"model_name_or_path": base, "dataset_name": data, "max_steps": 8, "per_device_train_batch_size": 8},
            **{"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "lora_dropout": 0.1},
            **{"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1},
        }
        return run_stage(verb, flags(**{**settings, **changes}))

    run.base = base
    return run


class Killed(BaseException):
    """As SIGKILL: nothing below the test catches it."""


def stop(monkeypatch, method, call):
    """Let the call of the method of Trainer with this number end the run, after it has done its work."""
    original, calls = getattr(Trainer, method), []

    def stopping(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        calls.append(method)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(Trainer, method, stopping)


@pytest.mark.parametrize(
    ("method", "call", "newest"),
    [("training_step", 7, "checkpoint-6"), ("_save_rng_state", 2, "checkpoint-2"), ("training_step", 1, None)],
)
@pytest.mark.parametrize(("verb", "trained"), [("sft", "adapter"), ("reward", ".")])
def test_a_stopped_run_goes_on(stage, tmp_path, monkeypatch, verb, trained, method, call, newest):
    """In an epoch of 5 updates step 7 is in the second; dropout makes the random state count."""
    whole, out = stage(verb, output_dir=tmp_path / "whole"), tmp_path / "out"
    with monkeypatch.context() as patch:
        stop(patch, method, call)
        with pytest.raises(Killed):
            stage(verb, output_dir=out)
    partial = tmp_path / ".out.partial" / trained
    found = newest_checkpoint(partial)
    assert (found and found.name) == newest
    # Half a checkpoint is there, but under no name that counts.
    assert (partial / UNFINISHED).is_dir() == (method == "_save_rng_state")
    assert stage(verb, output_dir=out, resume=True) == out
    assert not list(out.rglob(UNFINISHED)) and not (tmp_path / ".out.partial").exists()
    files = [path.relative_to(whole) for path in whole.glob("**/adapter_model.safetensors")]
    assert len(files) == 5, "four checkpoints and the result"
    a, b = (load_file(folder / trained / "adapter_model.safetensors") for folder in (whole, out))
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize(("verb", "trained"), [("sft", "adapter"), ("reward", ".")])
def test_a_run_that_failed_after_its_training_goes_on(stage, tmp_path, monkeypatch, verb, trained):
    """A full disk for one: half a merge is there then."""
    out, partial = tmp_path / "out", tmp_path / ".out.partial"

    def fail(folder, *_, **__):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"rlhf_lines.train.{verb}.write_record", fail)
        with pytest.raises(DiskFault, match="what was done so far is kept for --resume"):
            stage(verb, output_dir=out)
    assert newest_checkpoint(partial / trained).name == "checkpoint-8"
    assert stage(verb, output_dir=out, resume=True) == out
    assert not partial.exists()
    if verb == "sft":
        assert load_file(out / "model.safetensors").keys() == load_file(stage.base / "model.safetensors").keys()


@pytest.mark.parametrize("fault", [partial(OSError, errno.ENOSPC, "No space left"), KeyboardInterrupt])
@pytest.mark.parametrize(("call", "left"), [(1, NOTHING_KEPT), (3, KEPT_FOR_RESUME)])
def test_a_run_that_ends_says_what_it_has_left(stage, flags, tmp_path, monkeypatch, capsys, fault, call, left):
    """Before the first checkpoint it is nothing: the folder is removed."""
    calls = []

    def fail(self, *_, **__):
        calls.append(1)
        if len(calls) == call:
            raise fault()

    monkeypatch.setattr(Trainer, "_save_rng_state", fail)
    monkeypatch.setattr(cli, "_run", lambda arguments: stage("sft", output_dir=tmp_path / "out"))
    assert cli.main(["sft"]) == (130 if fault is KeyboardInterrupt else 1)
    assert f"; {left}" in capsys.readouterr().err
    assert bool(newest_checkpoint(tmp_path / ".out.partial" / "adapter")) == (left == KEPT_FOR_RESUME)


def test_old_checkpoints_are_removed(stage, tmp_path):
    out = stage("sft", output_dir=tmp_path / "out", save_total_limit=2)
    assert sorted(path.name for path in (out / "adapter").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_the_best_checkpoint_is_loaded_in_the_end(stage, write_rows, tmp_path):
    write_rows("data/validation.jsonl", [{"prompt": "j j", "completion": " a b"}])
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.3}
    out = stage("sft", output_dir=tmp_path / "out", **best)
    checkpoint = newest_checkpoint(out / "adapter")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}
    step = min(losses, key=losses.get)
    assert state["best_global_step"] == step
    saved = load_file(out / "adapter" / f"checkpoint-{step}" / "adapter_model.safetensors")
    result = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all((saved[name] == result[name]).all() for name in saved)


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("needed", ["base", "data"])
def test_what_a_run_reads_is_not_replaced_by_it(stage, tmp_path, verb, needed):
    runs = tmp_path / "runs"
    shutil.copytree(stage.base, runs / "base")
    shutil.copytree(tmp_path / "data", runs / "data")
    setting = {"base": "model_name_or_path", "data": "dataset_name"}[needed]
    of_ppo = {"rewards": "rule:length", "save_steps": 4, "lora_dropout": 0.0} if verb == "ppo" else {}
    with pytest.raises(FileExistsError, match=rf"output_dir \S*runs contains \S*{needed}, which --overwrite would"):
        stage(verb, output_dir=runs, overwrite=True, **{setting: runs / needed}, **of_ppo)
    assert (runs / "base" / "config.json").is_file() and (runs / "data" / "train.jsonl").is_file()


def test_a_policy_does_not_replace_its_reward_model(stage, tmp_path):
    judge = shutil.copytree(stage.base, tmp_path / "runs" / "judge")
    of_ppo = {"rewards": f"similarity:{judge}", "save_steps": 4, "lora_dropout": 0.0}
    with pytest.raises(FileExistsError, match="judge, which --overwrite would delete"):
        stage("ppo", output_dir=tmp_path / "runs", overwrite=True, **of_ppo)
    assert judge.is_dir()
