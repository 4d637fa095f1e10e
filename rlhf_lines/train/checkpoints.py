"""The folder of a training run and its checkpoints: each is visible when complete, the newest is found again."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from rlhf_lines.artifact import BEGUN, check_same_config, new_folder, partial_folder, write_config
from rlhf_lines.config import RunConfig
from rlhf_lines.distributed import leads, wait


logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"
TRACKERS = ("tensorboard", "wandb", "trackio")  # settings of report_to that are named like their module


@contextlib.contextmanager
def training_folder(
    training: TrainingArguments, run_config: RunConfig, given: dict, *, trained: str = "."
) -> Iterator[Path]:
    """Yield the hidden folder of `new_folder` for `training.output_dir`, and let `training` write into it.

    A stopped run leaves its checkpoints there, from which `--resume` goes on.

    Args:
        training: its `output_dir` becomes the folder of the trainer, and its `resume_from_checkpoint` what
            `choose_checkpoint` says.
        run_config: whether to resume or overwrite.
        given: the settings of the run; `--resume` goes on only with the same ones.
        trained: the folder of the trainer, with its checkpoints, inside the one that is made.

    Raises:
        FileNotFoundError: `resume_from_checkpoint` is no folder.
        FileExistsError: `output_dir` exists, or a stopped run left checkpoints and neither `resume` nor
            `overwrite` was given.
        ValueError: the checkpoints are of a run with other settings, or a tracker is not installed.
    """
    for name in training.report_to or ():
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to names {name}, which is not installed: pip install {name}, or leave it out")
    choose_checkpoint(training, run_config, given, trained=trained)
    final = Path(training.output_dir)
    with new_folder(
        training.output_dir,
        overwrite=run_config.overwrite,
        keep_partial=bool(training.resume_from_checkpoint),
        leave_partial=True,
    ) as folder:
        training.output_dir = str(folder / trained)
        if leads():
            write_config(folder, given)
            (folder / BEGUN).write_text(json.dumps({"sequences_at_once": _sequences_at_once(training)}))
        try:
            yield folder
        except BaseException:
            if leads():
                keep_trained(folder / trained, final)
                if not newest_checkpoint(folder / trained):
                    shutil.rmtree(folder, ignore_errors=True)
            raise


def choose_checkpoint(training: TrainingArguments, run_config: RunConfig, given: dict, *, trained: str = ".") -> None:
    """Set `training.resume_from_checkpoint` to the newest checkpoint with `--resume`; one of the user's choice stays.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `training_folder`.
    """
    final, partial = training.output_dir, partial_folder(training.output_dir)
    chosen, newest = training.resume_from_checkpoint, newest_checkpoint(partial / trained)
    if chosen and not (isinstance(chosen, str) and Path(chosen).is_dir()):
        raise FileNotFoundError(
            f"resume_from_checkpoint {chosen} does not exist: expected a checkpoint folder; --resume finds the newest"
        )
    if newest and run_config.resume and not chosen:
        check_same_config(partial, given, name=final, may_differ=["per_device_train_batch_size"])
        before, now = json.loads((partial / BEGUN).read_text())["sequences_at_once"], _sequences_at_once(training)
        if before != now:
            raise ValueError(
                f"output_dir {final} was begun with {before} sequences at once on all processes together, now it is "
                f"{now}: set per_device_train_batch_size to {before} divided by the number of processes"
            )
        training.resume_from_checkpoint = str(newest)
    elif newest and not (chosen or run_config.overwrite):
        again = " --overwrite" if Path(final).exists() else ""
        raise FileExistsError(
            f"output_dir {final} was begun by a run that stopped after {newest.name}: add --resume{again} to go on "
            "from there, or --overwrite to start again"
        )


def keep_trained(trained: Path, final: Path) -> None:
    """Move what a trainer has saved at the end of its training out of a folder that will not be finished.

    What comes after training (a merge, a score, a record) can fail, on a full disk for one; the hours before it stay.

    Args:
        trained: the folder of the trainer; without weights in it nothing is moved.
        final: the folder that was to be made: what is moved goes beside it, into `NAME.trained`.
    """
    if not any(trained.glob("*.safetensors")):
        return
    places = (final.with_name(f"{final.name}.trained{number}") for number in ("", *(f"-{n}" for n in range(2, 1000))))
    kept = next(place for place in places if not place.exists())
    kept.mkdir(parents=True)
    for file in trained.iterdir():
        if file.is_file():
            file.rename(kept / file.name)
    logger.warning("what was trained is kept in %s: all but what comes after the training", kept)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint of the highest step in the folder of a trainer, or None."""
    found = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    return Path(found) if found else None


def _sequences_at_once(training: TrainingArguments) -> int:
    return training.per_device_train_batch_size * training.world_size


class WholeCheckpoints:
    """Mixin of a Trainer: a checkpoint is written under a hidden name and takes its own when it is complete."""

    _writes_checkpoint = False

    def _get_output_dir(self, trial):
        run_dir = super()._get_output_dir(trial)
        return str(Path(run_dir) / UNFINISHED) if self._writes_checkpoint else run_dir

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial))
        hidden = run_dir / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(hidden, ignore_errors=True)
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == hidden:
            self.state.best_model_checkpoint = str(run_dir / Path(best).name)
        wait()
        if self.args.should_save:
            (written,) = hidden.iterdir()
            self.state.save_to_json(str(written / "trainer_state.json"))
            final = run_dir / written.name
            shutil.rmtree(final, ignore_errors=True)  # of a run that went on from an earlier checkpoint
            written.rename(final)
            hidden.rmdir()
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
