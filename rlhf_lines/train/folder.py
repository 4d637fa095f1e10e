"""The folder of a training stage, which may hold checkpoints of a run that was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from rlhf_lines.artifact import check_same_config, new_folder, partial_folder, write_config
from rlhf_lines.config import RunConfig
from rlhf_lines.train.checkpoints import newest_checkpoint


@contextlib.contextmanager
def training_folder(
    training: TrainingArguments, run_config: RunConfig, given: dict, *, trained: str = "."
) -> Iterator[Path]:
    """Yield the hidden folder of ``new_folder`` for ``training.output_dir``.

    A stopped run leaves its checkpoints there. ``--resume`` sets ``training.resume_from_checkpoint`` to the newest one,
    if there is any; a checkpoint of the user's own choice stays.

    Args:
        given: the settings of the run; ``--resume`` goes on only with the same ones.
        trained: the folder of the trainer, with its checkpoints, inside the one that is made.

    Raises:
        FileNotFoundError: ``resume_from_checkpoint`` is no folder.
        FileExistsError: ``output_dir`` exists, or a stopped run left checkpoints and neither ``resume`` nor
            ``overwrite`` was given.
        ValueError: the checkpoints are of a run with other settings.
    """
    choose_checkpoint(training, run_config, given, trained=trained)
    resumes = bool(training.resume_from_checkpoint)
    leave = training.save_strategy != "no"
    with new_folder(
        training.output_dir, overwrite=run_config.overwrite, keep_partial=resumes, leave_partial=leave
    ) as folder:
        if training.process_index == 0:
            write_config(folder, given)
        yield folder


def choose_checkpoint(training: TrainingArguments, run_config: RunConfig, given: dict, *, trained: str = ".") -> None:
    """Set ``training.resume_from_checkpoint`` to what ``--resume`` goes on from; see ``training_folder``."""
    final, partial = training.output_dir, partial_folder(training.output_dir)
    chosen, newest = training.resume_from_checkpoint, newest_checkpoint(partial / trained)
    if chosen and not Path(chosen).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint {chosen} does not exist: expected a checkpoint folder")
    if newest and run_config.resume and not chosen:
        check_same_config(partial, given, name=final)
        training.resume_from_checkpoint = str(newest)
    elif newest and not (chosen or run_config.overwrite):
        raise FileExistsError(
            f"output_dir {final} was begun by a run that stopped after {newest.name}: add --resume to go on from "
            "there, or --overwrite to start again"
        )
