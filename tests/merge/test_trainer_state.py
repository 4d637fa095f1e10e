"""Weights of the checkpoints of one run, from what the trainer wrote."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_lines.merge.soups import checkpoint_weights


@pytest.fixture
def checkpoint(tmp_path):
    """A function that makes a checkpoint folder with a trainer state."""

    def make(step, losses=(), **state):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = [{"loss": loss, "step": k} for k, loss in enumerate(losses, start=1)] + [{"eval_loss": 9.0}]
        content = {"global_step": step, "log_history": history, **state}
        (folder / "trainer_state.json").write_text(json.dumps(content))
        return folder

    return make


def test_later_steps_and_lower_losses_count_more(checkpoint):
    folders = [checkpoint(10, [3.0, 2.0]), checkpoint(30, [3.0, 2.0, 0.5])]
    assert checkpoint_weights(folders, "step") == pytest.approx((0.25, 0.75))
    assert checkpoint_weights(folders, "step", power=2) == pytest.approx((0.1, 0.9))
    assert checkpoint_weights(folders, "loss") == pytest.approx((0.2, 0.8))
    assert checkpoint_weights(folders, "loss", power=0) == pytest.approx((0.5, 0.5))


def test_reads_what_the_trainer_of_transformers_writes(sft, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    settings = {"max_steps": 3, "save_steps": 1, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 4
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, **settings)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(sft), arguments, train_dataset=rows)
    trainer.train()
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 3)]
    assert checkpoint_weights(folders, "step") == pytest.approx((0.25, 0.75))
    first, _, last = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert checkpoint_weights(folders, "loss") == pytest.approx((last / (first + last), first / (first + last)))


def test_mistakes_are_named(checkpoint, tmp_path):
    folders = [checkpoint(1, [2.0]), checkpoint(2, [-0.5]), checkpoint(3)]
    with pytest.raises(ValueError, match="unknown weights_by 'steps'; known: loss, step; did you mean 'step'"):
        checkpoint_weights(folders, "steps")
    with pytest.raises(
        ValueError, match=r"checkpoint-2' has loss -0.5 .*the loss of PPO may have any sign.*weights_by s"
    ):
        checkpoint_weights(folders, "loss")
    with pytest.raises(ValueError, match=r"checkpoint-3' has loss None in trainer_state.json, expected a positive num"):
        checkpoint_weights([folders[0], folders[2]], "loss")
    with pytest.raises(ValueError, match=r"checkpoint-0' has step 0 .* use --weights_by loss or --weights"):
        checkpoint_weights([checkpoint(0)], "step")
    (tmp_path / "policy").mkdir()
    with pytest.raises(FileNotFoundError, match=r"policy' has no trainer_state.json; weights_by needs the checkpoint"):
        checkpoint_weights([tmp_path / "policy"], "step")
