"""Training that has diverged ends: transformers tells a loss of NaN as 0, goes on, and saves a model of NaN."""

from __future__ import annotations

import torch
from torch import Tensor


LEFT_OUT = 20  # updates in a row that float16's gradient scaler may leave out: by then it has no scale left to blame


class FiniteTraining:
    """Mixin of a Trainer: it stops at the first number that is not finite, and saves no parameter that is not.

    Of several processes all stop where one does.
    """

    _in_a_row = 0  # losses that were not finite

    def training_step(self, *args, **kwargs) -> Tensor:
        """As Trainer's.

        Raises:
            ValueError: the loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)
        self._in_a_row = self._in_a_row + 1 if self._anywhere(not _is_finite(loss)) else 0
        if self._in_a_row > (0 if self.accelerator.scaler is None else LEFT_OUT):
            self._stop("the loss")
        return loss

    def save_model(self, *args, **kwargs) -> None:
        """As Trainer's, which also writes the model of every checkpoint.

        Raises:
            ValueError: a trained parameter is not finite.
        """
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        found = next((name for name, parameter in trained if not _is_finite(parameter)), None)
        if self._anywhere(found is not None):
            self._stop(f"parameter {found or 'of another process'}")
        super().save_model(*args, **kwargs)

    def check_finite(self, what: str, value: Tensor) -> None:
        """Stop where a number of a tensor is not finite, and name it.

        Raises:
            ValueError: one is not.
        """
        if self._anywhere(not _is_finite(value)):
            self._stop(what)

    def _anywhere(self, happened: bool) -> bool:
        """Whether it has happened in one of the processes."""
        flag = torch.tensor(float(happened), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _stop(self, what: str) -> None:
        raise ValueError(
            f"training has diverged: after {self.state.global_step} of {self.state.max_steps} updates {what} is not "
            f"finite. Lower learning_rate, which is {self.args.learning_rate:g}, or max_grad_norm, or train in a wider "
            "dtype; start again with --overwrite"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; of one that FSDP or DeepSpeed shares out, those of this process."""
    held = getattr(tensor, "ds_tensor", tensor).detach()
    held = held.to_local() if hasattr(held, "to_local") else held
    return bool(torch.isfinite(held).all())
