"""Checkpoints of PPO stand between two rollouts: the rest of one is not kept, so that another run would follow."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from rlhf_lines.distributed import leads
from rlhf_lines.merge.inputs.checkpoint import read_json


logger = logging.getLogger(__name__)


def check_between_rollouts(checkpoint: str | Path, updates: int, max_steps: int, ends: int) -> None:
    """Stop where PPO would go on from inside a rollout.

    Args:
        checkpoint: its folder.
        updates: of one rollout, in the run that goes on.
        max_steps: of the same; where nothing is left to train, any checkpoint will do.
        ends: the update at whose end the newest rollout of the checkpoint is used up.

    Raises:
        ValueError: it would.
    """
    step = read_json(Path(checkpoint) / TRAINER_STATE_NAME)["global_step"]
    if (step % updates or step < ends) and step < max_steps:
        inside = f"inside a rollout that ends with update {ends}"
        why = inside if step < ends else f"but a rollout has {updates} updates"
        raise ValueError(
            f"{checkpoint} is of update {step}, {why}, and a run goes on between two: take one of an earlier update "
            f"that is a multiple of {updates}, or the settings of its run (num_iterations, steps_per_generation, "
            "gradient_accumulation_steps)"
        )


class BetweenRollouts:
    """Mixin of PPO's trainer: a checkpoint that is asked for inside a rollout, by whomever, is written at its end.

    Where training stops before, none is written, and no earlier one makes room for it. The end of the training, after
    `max_steps` updates, is kept wherever it lies.
    """

    _rollout_ends = 0  # the update at whose end the newest rollout is used up; the trainer says it
    _saves_later = False

    def _is_inside_rollout(self) -> bool:
        return self.state.global_step < min(self._rollout_ends, self.state.max_steps)

    def _save_checkpoint(self, model, trial):
        self._saves_later = self._is_inside_rollout()
        if not self._saves_later:
            super()._save_checkpoint(model, trial)

    def _put_off(self) -> None:
        """Inside a rollout, keep for its end what is asked for: callbacks are told of checkpoints that are written."""
        if self.control.should_save and self._is_inside_rollout():
            self.control.should_save, self._saves_later = False, True

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        self.control.should_save = self.control.should_save or self._saves_later
        self._put_off()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, *args, **kwargs):
        """As Trainer's, whose callbacks may ask for a checkpoint."""
        super().log(*args, **kwargs)
        self._put_off()

    def _evaluate(self, *args, **kwargs):
        metrics = super()._evaluate(*args, **kwargs)
        self._put_off()
        return metrics

    def _finalize_training(self, *args, **kwargs):
        if self._saves_later and leads():
            logger.warning(
                "training stops after update %d, inside a rollout, so the checkpoint that was asked for is not "
                "written: a run goes on from the one before",
                self.state.global_step,
            )
        self._saves_later = False
        return super()._finalize_training(*args, **kwargs)
