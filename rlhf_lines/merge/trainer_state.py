"""The training metrics of a checkpoint, as transformers' Trainer writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.merge.soups import metric_weights
from rlhf_lines.suggestion import unknown_name


STATE_FILE = "trainer_state.json"
METRICS = ("step", "loss")


def checkpoint_weights(checkpoints: Sequence[str | Path], by: str, *, power: float = 1.0) -> tuple[float, ...]:
    """The weights of the checkpoints of one run, from their `trainer_state.json`; see `metric_weights`.

    Args:
        checkpoints: folders `checkpoint-N` of one run, adapters or dense.
        by: `step` (later is better) or `loss` (the last training loss that was logged; lower is better).
        power: the exponent.

    Raises:
        FileNotFoundError: a folder has no `trainer_state.json`.
        ValueError: an unknown metric, or one that a checkpoint lacks or that is not positive.
    """
    if by not in METRICS:
        raise ValueError(unknown_name("weights_by", by, METRICS))
    values = [_metric(Path(folder), by) for folder in checkpoints]
    return metric_weights(values, power=power, lower_is_better=by == "loss")


def _metric(folder: Path, by: str) -> float:
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"policy {str(folder)!r} has no {STATE_FILE}; weights_by needs the checkpoint folders that the trainer "
            "wrote, or give --weights"
        )
    state = read_json(path)
    if by == "step":
        value = state.get("global_step")
    else:
        logged = [row["loss"] for row in state.get("log_history") or [] if "loss" in row]
        value = logged[-1] if logged else None
    if not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        reason = " (the loss of PPO may have any sign)" if by == "loss" and value is not None else ""
        raise ValueError(
            f"policy {str(folder)!r} has {by} {value!r} in {STATE_FILE}, expected a positive number{reason}; use "
            f"--weights_by {'step' if by == 'loss' else 'loss'} or --weights"
        )
    return float(value)
