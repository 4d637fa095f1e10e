"""Training that has diverged ends: transformers tells a loss of NaN as 0, goes on, and saves a model of NaN."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteTraining:
    """Mixin of a Trainer: it stops at the first number that is not finite, and saves no parameter that is not."""

    def training_step(self, *args, **kwargs) -> Tensor:
        """As Trainer's.

        Raises:
            ValueError: the loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)
        self.check_finite("the loss", loss)
        return loss

    def save_model(self, *args, **kwargs) -> None:
        """As Trainer's, which also writes the model of every checkpoint.

        Raises:
            ValueError: a trained parameter is not finite.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self.check_finite(f"parameter {name}", parameter.detach())
        super().save_model(*args, **kwargs)

    def check_finite(self, what: str, value: Tensor) -> None:
        """Stop where a number of a tensor is not finite, and name it.

        Raises:
            ValueError: one is not.
        """
        if not torch.isfinite(value).all():
            raise ValueError(
                f"training has diverged: after {self.state.global_step} of {self.state.max_steps} updates {what} is "
                f"not finite. Lower learning_rate, which is {self.args.learning_rate:g}, or max_grad_norm, or train in "
                "a wider dtype; start again with --overwrite"
            )
