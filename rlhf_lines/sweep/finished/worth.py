"""What the choice of a point says of it: its worth, corrected for that choice, and the points that are as good."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_lines.pareto import Front, Picked, Worth, may_be_best, picked_worth
from rlhf_lines.sweep.store import Store


def worth_of(folder: str | Path, front: Front, picked: Picked) -> Worth | None:
    """The worth of a picked point, from the scores of every prompt that the run keeps.

    The highest of several noisy means is too high, so it is corrected for having been picked among the points that were
    looked at. None where nothing was chosen, or where it was chosen by something that is no score of the run.

    Args:
        folder: of the sweep.
        front: of that folder.
        picked: of that front.

    Raises:
        ValueError: the run store cannot be read.
    """
    with Store(folder, reading=True) as store:
        names = list(picked.factors)
        specs = {point.id: point.spec_id for point in store.points(front["split"])}
        known = set(names) <= set(store.recall("reward_names")) and specs.keys() >= set(picked.among)
        if len(picked.among) < 2 or not known:
            return None
        factors = list(picked.factors.values())
        columns = [store.scores(specs[i], front["split"], names) @ factors + picked.constant for i in picked.among]
    worth = np.stack(columns)  # [points, prompts]
    corrected = picked_worth(worth, front["seed"], front["confidence"])
    alike = [picked.among[row] for row in may_be_best(worth, front["seed"], front["confidence"])]
    return Worth(
        float(worth.mean(axis=1).max()),
        {"value": corrected.value, "low": corrected.low, "high": corrected.high},
        [i for i in alike if i != picked.point["id"]],
    )
