"""An optimizer or a schedule that cannot be made is a mistake in the settings, and a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer
from transformers.optimization import get_scheduler

from rlhf_lines.errors import is_about_input
from rlhf_lines.train.ppo_trainer import PPOTrainer
from rlhf_lines.train.reward import RewardTrainer
from rlhf_lines.train.sft import SFTTrainer
from rlhf_lines.train.told import ToldSettings


class Made:
    """What a Trainer does when training begins, with the libraries' own errors."""

    def __init__(self, **settings) -> None:
        self.args = SimpleNamespace(**{"optim": "adamw_torch", "learning_rate": 1e-3, **settings})
        self.weights = [torch.nn.Parameter(torch.zeros(2))]

    def create_optimizer(self, model=None):
        if self.args.optim == "lomo":
            raise ImportError("You need to install `lomo_optim`")
        return torch.optim.AdamW(self.weights, lr=self.args.learning_rate)

    def create_scheduler(self, num_training_steps, optimizer=None):
        return get_scheduler(self.args.lr_scheduler_type, Made().create_optimizer(), 0, num_training_steps)


class Told(ToldSettings, Made):
    """With our sentences."""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": -1.0}, r"\(optim adamw_torch, learning_rate -1\): Invalid learning rate: -1.0"),
        ({"optim": "lomo"}, r"\(optim lomo, learning_rate 0.001\): You need to install `lomo_optim`"),
    ],
)
def test_an_optimizer(settings, words):
    with pytest.raises(ValueError, match=f"^the optimizer cannot be made {words}$") as error:
        Told(**settings).create_optimizer()
    assert is_about_input(error.value)
    assert isinstance(Told().create_optimizer(), torch.optim.AdamW)


def test_a_schedule():
    told = Told(lr_scheduler_type="cosine_with_min_lr")
    with pytest.raises(ValueError, match=r"^the schedule cannot be made \(lr_scheduler_type cosine_.*min_lr"):
        told.create_scheduler(4)
    assert Told(lr_scheduler_type="linear").create_scheduler(4) is not None


@pytest.mark.parametrize("trainer", [SFTTrainer, RewardTrainer, PPOTrainer])
def test_every_trainer_tells(trainer):
    order = trainer.__mro__
    assert order.index(ToldSettings) < order.index(Trainer)
