"""Training that diverges ends in one sentence, and leaves no model and no checkpoint that is not finite."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from rlhf_lines import cli
from rlhf_lines.stages import run_stage
from rlhf_lines.train.checkpoints import newest_checkpoint
from tests.tiny import WORDS
from tests.torchrun import torchrun


ROWS = [{"prompt": f"{x} {y}", "completion": " a b", "chosen": " a b", "rejected": " c"} for x in WORDS for y in WORDS]
PPO = {
    **{"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "rewards": "rule:length"},
    **{"max_completion_length": 4, "steps_per_generation": 2, "num_iterations": 1},
}
STAGES = {"sft": {"use_peft": False}, "reward": {"use_peft": False}, "ppo": PPO}


@pytest.fixture
def given(flags, base, write_rows, tmp_path):
    """Flags of a stage of six updates, with changes."""
    data = write_rows("data/train.jsonl", ROWS[:40]).parent
    write_rows("data/test.jsonl", ROWS[40:50])

    def make(verb, **changes):
        settings = {
            **{"model_name_or_path": base, "dataset_name": data, "output_dir": tmp_path / "out"},
            **{"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1},
        }
        return flags(**{**settings, **STAGES[verb], **changes})

    return make


@pytest.mark.parametrize("verb", STAGES)
def test_training_that_diverges_is_told_and_leaves_nothing(given, tmp_path, capsys, verb):
    assert cli.main([verb, *given(verb, learning_rate=1e30, max_grad_norm=0.0)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"rlhf-lines {verb}: training has diverged: after \d of 6 updates (the loss|the KL of a completion) is not "
        r"finite\. Lower learning_rate, which is 1e\+30, or max_grad_norm, or train in a wider dtype; start again with "
        r"--overwrite",
        told,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("verb", STAGES)
def test_no_checkpoint_is_written_of_parameters_that_are_not_finite(given, tmp_path, monkeypatch, verb):
    """Neither does a finite loss say what the update after it does, nor does a run go on from such parameters."""

    class Diverging(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    [p for p in model.parameters() if p.requires_grad][-1].view(-1)[0] = torch.inf

    original = Trainer.train
    monkeypatch.setattr(
        Trainer, "train", lambda self, *a, **k: self.add_callback(Diverging()) or original(self, *a, **k)
    )
    with pytest.raises(ValueError, match=r"after 4 of 6 updates parameter \S+ is not finite"):
        run_stage(verb, given(verb, save_strategy="steps", save_steps=2))
    kept = newest_checkpoint(tmp_path / ".out.partial")
    assert kept.name == "checkpoint-2"
    for file in kept.glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())
    assert all(
        row["loss"] == row["loss"] for row in json.loads((kept / "trainer_state.json").read_text())["log_history"]
    )


TWO = """
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from rlhf_lines import distributed
from rlhf_lines.train.finite import LEFT_OUT, FiniteTraining


class Trains:
    def training_step(self, value):
        return torch.tensor(value)

    def save_model(self):
        saved.append(True)


class Trainer(FiniteTraining, Trains):
    def __init__(self, *, scales):
        self.accelerator = Accelerator(cpu=True)
        self.accelerator.scaler = object() if scales else None
        self.state, self.args = SimpleNamespace(global_step=3, max_steps=9), SimpleNamespace(learning_rate=0.1)
        self.model = torch.nn.Linear(2, 1)


def told(work, *values):
    try:
        work(*values)
    except ValueError as error:
        return str(error)[: str(error).index(" is not finite")]


distributed.start()
second, saved, nan = not distributed.leads(), [], float("nan")
of_second = nan if second else 1.0
trainer = Trainer(scales=False)
assert told(trainer.training_step, 1.0) is None
assert told(trainer.training_step, of_second) == "training has diverged: after 3 of 9 updates the loss"
assert told(trainer.save_model) is None and saved == [True]
with torch.no_grad():
    trainer.model.weight[0, 1] = of_second
name = "weight" if second else "of another process"
assert told(trainer.save_model) == f"training has diverged: after 3 of 9 updates parameter {name}" and saved == [True]
# A scaler leaves out some updates until its scale fits.
trainer = Trainer(scales=True)
for _ in range(2):
    assert [told(trainer.training_step, of_second) for _ in range(LEFT_OUT)] == [None] * LEFT_OUT
    assert told(trainer.training_step, 1.0) is None
assert [told(trainer.training_step, of_second) for _ in range(LEFT_OUT + 1)][-1] is not None
print("done\\n", end="", flush=True)
distributed.leave()
"""


def test_of_two_processes_both_stop_where_one_diverges(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    done = torchrun([tmp_path / "two.py"])
    assert (done.returncode, done.stdout.split()) == (0, ["done", "done"]), done.stderr[-3000:]
