"""Checkpoints of a training run: visible when complete, and the newest one found again."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import distributed
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints


UNFINISHED = ".unfinished"


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
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()
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


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the complete checkpoint of the highest step in the folder of a run, or None."""
    found = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    return Path(found) if found else None
