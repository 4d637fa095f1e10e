"""The folder of a training run and its checkpoints: each is visible when complete, the newest whole one is found again.

A run goes on only from what is whole and the same: settings, models, data, and the batches that processes share out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from rlhf_lines.artifact import (
    BEGUN,
    CONFIG,
    check_same_config,
    new_folder,
    partial_folder,
    write_config,
    write_whole,
)
from rlhf_lines.config import RunConfig, missing_trackers
from rlhf_lines.disk import NOTHING_KEPT
from rlhf_lines.distributed import from_leader, leads, wait
from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.merge.inputs.fingerprints import Fingerprint, check_unchanged
from rlhf_lines.train.hub import token_in_environment, uploaded
from rlhf_lines.train.manifest import what_is_missing, write_manifest


logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"
TRACKERS = ("tensorboard", "wandb", "trackio")  # settings of report_to that transformers itself finds out too late


@contextlib.contextmanager
def training_folder(
    training: TrainingArguments,
    run_config: RunConfig,
    given: dict,
    inputs: Mapping[str, Fingerprint],
    *,
    trained: str = ".",
    any_processes: bool = False,
) -> Iterator[Path]:
    """Yield the hidden folder of `new_folder` for `training.output_dir`, and let `training` write into it.

    A stopped run leaves its checkpoints there, from which `--resume` goes on.

    Args:
        training: its `output_dir` becomes the folder of the trainer, and its `resume_from_checkpoint` what
            `choose_checkpoint` says.
        run_config: whether to resume or overwrite.
        given: the settings of the run; `--resume` goes on only with the same ones.
        inputs: what the run reads; `--resume` goes on only with the same.
        trained: the folder of the trainer, with its checkpoints, inside the one that is made.
        any_processes: whether the result does not depend on their number, where the batch on all of them is the same.

    Raises:
        FileNotFoundError: `resume_from_checkpoint` is no folder.
        FileExistsError: `output_dir` exists, or a stopped run left checkpoints and neither `resume` nor
            `overwrite` was given.
        ValueError: the checkpoints are not whole or of another run, a tracker is not installed, or the Hub cannot be
            reached for what is to be uploaded at the end.
    """
    Problems(missing_trackers(name for name in training.report_to or () if name in TRACKERS)).check()
    final = Path(training.output_dir)
    begun = {
        "sequences_at_once": training.per_device_train_batch_size * training.world_size,
        "inputs_sha256": dict(inputs),
    }
    if not any_processes:
        begun["processes"] = training.world_size
    choose_checkpoint(training, run_config, given, begun=begun, trained=trained)
    with (
        token_in_environment(training),
        uploaded(training, given),
        new_folder(
            training.output_dir,
            overwrite=run_config.overwrite,
            keep_partial=bool(training.resume_from_checkpoint),
            leave_partial=True,
        ) as folder,
    ):
        training.output_dir = str(folder / trained)
        if leads():
            write_config(folder, given)
            write_whole(folder / BEGUN, json.dumps(begun))
        try:
            yield folder
        except BaseException as error:
            if not newest_checkpoint(folder / trained):  # from which --resume finishes the run
                error.kept = NOTHING_KEPT  # which the command tells
                if leads():
                    keep_trained(folder / trained, final)
                    shutil.rmtree(folder, ignore_errors=True)
            raise


def choose_checkpoint(
    training: TrainingArguments, run_config: RunConfig, given: dict, *, begun: dict | None = None, trained: str = "."
) -> None:
    """Set `training.resume_from_checkpoint` to the newest whole checkpoint with `--resume`; one that is named stays.

    Args:
        training: the settings of the trainer.
        run_config: whether to resume or overwrite.
        given: the settings of the run.
        begun: what the run shares with the one that it goes on with, beside its settings; None is not compared.
        trained: as for `training_folder`.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `training_folder`.
    """
    if training.save_only_model:
        raise ValueError(
            "save_only_model is true, expected false: a run does not go on from a checkpoint without optimizer, "
            "schedule and random state (a finished folder keeps none of them)"
        )
    final, chosen = training.output_dir, training.resume_from_checkpoint
    partial = partial_folder(final)
    if chosen and not (isinstance(chosen, str) and Path(chosen).is_dir()):
        raise FileNotFoundError(
            f"resume_from_checkpoint {chosen} does not exist: expected a checkpoint folder; --resume finds the newest"
        )
    newest = newest_checkpoint(partial / trained)
    if newest and not (chosen or run_config.resume or run_config.overwrite):
        again = " --overwrite" if Path(final).exists() else ""
        raise FileExistsError(
            f"output_dir {final} was begun by a run that stopped after {newest.name}: add --resume{again} to go on "
            "from there, or --overwrite to start again"
        )
    if chosen or (newest and run_config.resume):
        if chosen:
            _check_own(Path(chosen), partial / trained, final)
        _check_begun(partial, final, given, begun)
        training.resume_from_checkpoint = chosen or from_leader(lambda: _newest_whole(partial / trained, final))
        training.eval_on_start = False  # it was, at the start


def _check_own(chosen: Path, stopped: Path, final: str) -> None:
    """Stop unless the checkpoint is a whole one of the stopped run that goes on."""
    if chosen.resolve().parent != stopped.resolve():
        raise ValueError(
            f"resume_from_checkpoint {chosen} is not one of the stopped run of output_dir {final}, whose checkpoints "
            f"are in {stopped}: a run goes on from its own alone, by --resume; to train a model further, start a new "
            "run from that model"
        )
    missing = from_leader(lambda: what_is_missing(chosen))
    if missing:
        raise ValueError(f"resume_from_checkpoint {chosen} {missing}: restore it, or name another one")


def _check_begun(partial: Path, final: str, given: dict, begun: dict | None) -> None:
    """Stop unless the stopped run had these settings, inputs and batches."""
    for file in (CONFIG, BEGUN):
        if not (partial / file).is_file():
            raise ValueError(
                f"output_dir {final} was begun by a run whose {file} is gone from {partial}, so that nobody can tell "
                "whether this one is the same: restore it, or start again with --overwrite"
            )
    before = read_json(partial / BEGUN)
    check_same_config(partial, given, name=final, may_differ=["per_device_train_batch_size"])
    if begun is None:
        return
    if before.get("sequences_at_once") != begun["sequences_at_once"]:
        raise ValueError(
            f"output_dir {final} was begun with {before.get('sequences_at_once')} sequences at once on all processes "
            f"together, now it is {begun['sequences_at_once']}: set per_device_train_batch_size to "
            f"{before.get('sequences_at_once')} divided by the number of processes"
        )
    if before.get("processes") != begun.get("processes"):
        raise ValueError(
            f"output_dir {final} was begun by {before.get('processes')} processes, now there are "
            f"{begun.get('processes')}: each has a random state of its own, so start as many"
        )
    way_out = "restore it, or start again with --overwrite"
    check_unchanged(
        before.get("inputs_sha256") or {}, begun["inputs_sha256"], since=f"{final} was begun", way_out=way_out
    )


def _newest_whole(stopped: Path, final: str) -> str:
    """The newest checkpoint that has all that was written; newer ones that have not are told."""
    refused = []
    for folder in sorted(_checkpoints(stopped), key=_step, reverse=True):
        missing = what_is_missing(folder)
        if not missing:
            if refused:
                logger.warning("going on from %s, because %s", folder.name, "; ".join(refused))
            return str(folder)
        refused.append(f"{folder.name} {missing}")
    raise ValueError(
        f"output_dir {final} was begun by a run that left no whole checkpoint ({'; '.join(refused)}): restore one in "
        f"{stopped}, or start again with --overwrite"
    )


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step(path) >= 0]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else -1


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
        if file.name == TRAINING_ARGS_NAME:  # a pickle of every setting, secrets among them
            file.unlink()
        elif file.is_file():
            file.rename(kept / file.name)
    logger.warning("what was trained is kept in %s: all but what comes after the training", kept)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step in the folder of a trainer, whole or not, or None."""
    return max(_checkpoints(Path(folder)), key=_step, default=None)


class WholeCheckpoints:
    """Mixin of a Trainer: a checkpoint is written under a hidden name and takes its own when it is complete."""

    _writes_checkpoint = False

    def _run_epoch(self, *args, **kwargs):
        """As Trainer's, which makes one update more where a run goes on from its last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def save_end(self) -> Path:
        """Write a checkpoint of the end of the training, unless there is one, and return its folder.

        What comes after the training may be killed: the next run goes on from there.
        """
        end = Path(self._get_output_dir(None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not from_leader(end.is_dir):
            self._save_checkpoint(self.model, None)
        return end

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
            (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # which nobody reads
            write_manifest(written)
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
