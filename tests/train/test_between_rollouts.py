"""A checkpoint stands between two rollouts, whoever asks for it; no run goes on from inside one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from reward_models import FunctionReward
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import PPOTrainer
from tests.tiny import QUIET, WORDS


def shortness(prompts, completions):
    return [-len(completion.split()) for completion in completions]


class Asks(TrainerCallback):
    """Ask for a checkpoint at an event after some updates, and perhaps for the end of the training."""

    def __init__(self, *steps, at="on_step_end", stops=False):
        self.steps, self.at, self.stops, self.told = steps, at, stops, []

    def _ask(self, event, state, control):
        if event == self.at and state.global_step in self.steps:
            control.should_save = True
            control.should_training_stop = control.should_training_stop or self.stops

    def on_step_end(self, args, state, control, **kwargs):
        self._ask("on_step_end", state, control)

    def on_log(self, args, state, control, **kwargs):
        self._ask("on_log", state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._ask("on_evaluate", state, control)

    def on_save(self, args, state, control, **kwargs):
        self.told.append(state.global_step)


class SavesByItself(TrainerCallback):
    """Write a checkpoint past the Trainer's own flags, before the update that follows some number of them."""

    def __init__(self, step):
        self.step, self.trainer = step, None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.trainer._save_checkpoint(self.trainer.model, None)


@pytest.fixture
def make(tmp_path, llama, tokenizer):
    """Return a maker of trainers with rollouts of 4 completions, two updates each."""

    def trainer(name, *callbacks, eval_dataset=None, **settings):
        defaults = {"per_device_train_batch_size": 4, "max_completion_length": 4, "num_iterations": 2, "max_steps": 6}
        return PPOTrainer(
            llama(),
            [FunctionReward(shortness)],
            PPOConfig(output_dir=str(tmp_path / name), **{**QUIET, **defaults, "learning_rate": 1e-2, **settings}),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            train_dataset=Dataset.from_dict({"prompt": [f"{x} {y}" for x in WORDS[:4] for y in WORDS[:4]]}),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )

    return trainer


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def same(one, other):
    for (name, a), (_, b) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("event", ["on_step_end", "on_log", "on_evaluate"])
def test_a_checkpoint_that_a_callback_asks_for_stands_at_the_end_of_its_rollout(make, tmp_path, event):
    """The run that goes on from it is the one that was not stopped; from update 3 another one followed."""
    asks = Asks(3, at=event)
    measured = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    whole = make("whole", asks, eval_dataset=Dataset.from_dict({"prompt": ["a b"]}), **measured)
    whole.train()
    assert checkpoints(tmp_path / "whole") == ["checkpoint-4"] and asks.told == [4]
    again = make("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    same(whole, again)


@pytest.mark.parametrize("step", [2, 3])
def test_what_writes_past_the_flags_waits_for_the_end_of_the_rollout_too(make, tmp_path, step):
    """Before update 3 the second rollout is sampled and counted: what checkpoint-2 held there was of another run."""
    writes = SavesByItself(step)
    writes.trainer = make("run", writes, save_strategy="steps", save_steps=2)
    writes.trainer.train()
    again = make("again")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    same(writes.trainer, again)
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_a_run_that_is_stopped_inside_a_rollout_keeps_the_checkpoint_before(make, tmp_path, caplog):
    """It was removed to make room for one from which no run could go on."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    make("run", Asks(3, stops=True), **saving).train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert "training stops after update 3, inside a rollout, so the checkpoint that was asked for is not" in caplog.text
    again, whole = make("run", **saving), make("whole")
    again.train(resume_from_checkpoint=True)
    whole.train()
    same(again, whole)


def test_max_kl_stops_inside_a_rollout_and_its_epoch_leaves_no_checkpoint(make, tmp_path):
    """16 prompts are four rollouts, eight updates: the epoch ends with update 3, because training does."""
    stopped = make("run", max_kl=1e-9, kl_estimator="k3", learning_rate=1.0, save_strategy="epoch", max_steps=16)
    stopped.train()
    assert stopped.state.global_step == 3 and checkpoints(tmp_path / "run") == []


def test_a_checkpoint_says_where_its_rollout_ends(make, tmp_path):
    """Update 3 is a multiple of the other run's updates, and yet inside a rollout of four."""
    make("run", num_iterations=4, max_steps=3, save_strategy="steps", save_steps=4).train()
    other = make("other", num_iterations=3)
    with pytest.raises(ValueError, match=r"checkpoint-3 is of update 3, inside a rollout that ends with update 4, and"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def test_checkpoints_on_a_signal_are_refused(make):
    with pytest.raises(ValueError, match="enable_jit_checkpoint is true, expected false: it saves inside rollouts"):
        make("run", enable_jit_checkpoint=True)


def test_one_that_is_asked_for_between_rollouts_is_written_there(make, tmp_path):
    make("run", Asks(2, 3, 4)).train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]


def test_the_end_of_a_run_is_kept_and_no_run_goes_on_from_inside_a_rollout(make, tmp_path):
    whole = make("run", max_steps=5, save_strategy="steps", save_steps=2)
    whole.train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    end = tmp_path / "run" / "checkpoint-5"
    finished = make("same", max_steps=5)
    finished.train(resume_from_checkpoint=str(end))
    assert finished.state.global_step == 5, "there is nothing left to train"
    for (name, a), (_, b) in zip(whole.model.named_parameters(), finished.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    longer = make("longer", max_steps=8)
    with pytest.raises(
        ValueError, match=r"checkpoint-5 is of update 5, inside a rollout that ends with update 6, and a run goes"
    ):
        longer.train(resume_from_checkpoint=str(end))


def test_other_updates_of_a_rollout_must_divide_the_checkpoint(make, tmp_path):
    make("run", max_steps=4, save_strategy="steps", save_steps=2).train()
    other = make("other", num_iterations=4, max_steps=8)
    with pytest.raises(ValueError, match=r"checkpoint-2 is of update 2, but a rollout has 4 updates"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    other = make("other", num_iterations=4, max_steps=8)
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert other.state.global_step == 8
