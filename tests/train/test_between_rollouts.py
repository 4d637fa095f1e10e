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


class Saves(TrainerCallback):
    """Ask for a checkpoint after some updates."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_save or state.global_step in self.steps


@pytest.fixture
def make(tmp_path, llama, tokenizer):
    """Return a maker of trainers with rollouts of 4 completions, two updates each."""

    def trainer(name, *callbacks, **settings):
        defaults = {"per_device_train_batch_size": 4, "max_completion_length": 4, "num_iterations": 2, "max_steps": 6}
        return PPOTrainer(
            llama(),
            [FunctionReward(shortness)],
            PPOConfig(output_dir=str(tmp_path / name), **{**QUIET, **defaults, "learning_rate": 1e-2, **settings}),
            peft_config=LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
            train_dataset=Dataset.from_dict({"prompt": [f"{x} {y}" for x in WORDS[:4] for y in WORDS[:4]]}),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )

    return trainer


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_checkpoint_that_a_callback_asks_for_stands_at_the_end_of_its_rollout(make, tmp_path):
    """The run that goes on from it is the one that was not stopped; from update 3 another one followed."""
    whole = make("whole", Saves(3))
    whole.train()
    assert checkpoints(tmp_path / "whole") == ["checkpoint-4"]
    again = make("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_one_that_is_asked_for_between_rollouts_is_written_there(make, tmp_path):
    make("run", Saves(2, 3, 4)).train()
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
        ValueError, match=r"checkpoint-5 is of update 5, but a rollout has 2 updates, and a run goes on"
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
