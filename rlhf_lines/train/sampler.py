"""The order of prompts in training: a function of seed and epoch alone, so that a run can go on in any epoch."""

from __future__ import annotations

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's RepeatSampler, with the order of every epoch drawn from ``seed + epoch``.

    TRL draws the epochs' orders from one generator, one after the other: a run that goes on in its second epoch meets
    the prompts in the order of the first.
    """

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before every epoch."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)
