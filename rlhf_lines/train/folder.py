"""The folder of a training stage, which may hold checkpoints of a run that was stopped."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from transformers import TrainingArguments

from rlhf_lines.artifact import new_folder
from rlhf_lines.config import RunConfig


def training_folder(training: TrainingArguments, run_config: RunConfig) -> AbstractContextManager[Path]:
    """Return ``new_folder`` for ``training.output_dir``; a stopped run leaves what ``resume_from_checkpoint`` needs.

    Raises:
        FileNotFoundError: ``resume_from_checkpoint`` is no folder.
    """
    checkpoint = training.resume_from_checkpoint
    if checkpoint and not Path(checkpoint).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint {checkpoint} does not exist: expected a checkpoint folder")
    return new_folder(
        training.output_dir,
        overwrite=run_config.overwrite,
        keep_partial=bool(checkpoint),
        leave_partial=training.save_strategy != "no",
    )
