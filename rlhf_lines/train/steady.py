"""A model that reads alike whenever it is asked: no noise in training mode, and a check that none is left.

PPO compares log-probabilities of one token in several passes: of the policy that sampled, of the one that is updated,
and of the reference. What one pass draws and the next draws anew (dropout, noise on routers, layers left out) is an
error of each ratio and of the KL. TRL's own switch reaches modules of dropout; some models call functions instead.
"""

from __future__ import annotations

import re
from types import MethodType

import torch
from torch import Tensor, nn


_NOISE = re.compile(r"drop|jitter")
# Nats per token, on average, that two readings may differ by: rounding, of passes that order their sums differently.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
_TOLERANCE_QUANTISED = 0.1


def hold_steady(model: nn.Module) -> None:
    """Let a model compute in training mode what it computes in evaluation mode, for good.

    `model.train()` goes on to say that it trains, and reaches the modules that keep activations or compute them again
    (gradient checkpointing asks for it): their own probabilities of noise become 0. All others stay in evaluation mode,
    where functions and modules draw nothing, and batch statistics stand still. Their numbers stay what they are: some
    have a meaning in evaluation, too.
    """
    for module in filter(_is_checkpointed, model.modules()):
        for name, value in vars(module).items():
            if _NOISE.search(name) and isinstance(value, float):
                setattr(module, name, 0.0)
    model.train = MethodType(_train, model)
    model.train(model.training)


def distance(first: Tensor, second: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The summed absolute difference of two readings `[B, T]` where the mask is, and the number of tokens."""
    return ((first - second).abs() * mask).sum(), mask.sum()


def tolerance(dtype: torch.dtype, *, quantised: bool) -> float:
    """The nats per token by which two readings in a dtype may differ."""
    return max(_TOLERANCE.get(dtype, 1e-3), _TOLERANCE_QUANTISED if quantised else 0.0)


def _is_checkpointed(module: nn.Module) -> bool:
    """Whether gradient checkpointing looks at the mode of this module, once it is switched on."""
    return hasattr(module, "gradient_checkpointing")


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of `train` of a model that is held steady."""
    nn.Module.train(self, False)
    if mode:
        self.training = True
        for module in filter(_is_checkpointed, self.modules()):
            module.training = True
    return self
