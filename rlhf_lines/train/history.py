"""The history of a training run, as its record keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def history(logged: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All that a Trainer has logged, a row a step: the numbers of training, and those of the evaluation made there.

    A Trainer logs evaluations, and the times of the whole run, as rows of their own behind the row of their step.

    >>> history([{"loss": 2.0, "step": 1}, {"eval_loss": 3.0, "step": 1}, {"train_runtime": 9.0, "step": 1}])
    [{'loss': 2.0, 'step': 1, 'eval_loss': 3.0, 'train_runtime': 9.0}]
    """
    rows: dict[int, dict[str, Any]] = {}
    for row in logged:
        rows.setdefault(row["step"], {}).update(row)
    return list(rows.values())
