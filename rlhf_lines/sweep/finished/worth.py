"""What the choice of a point says of it: its worth, corrected for that choice, and the points that are as good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto import Front, Picked, Worth, difference_of_best, may_be_best, picked_worth
from rlhf_lines.pareto.intervals import Estimate
from rlhf_lines.pareto.schema import Value
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
        worth = _reader(store, front)(picked)
    if worth is None or len(worth) < 2:
        return None
    alike = [picked.among[row] for row in may_be_best(worth, front["seed"], front["confidence"])]
    return Worth(
        float(worth.mean(axis=1).max()),
        _value(picked_worth(worth, front["seed"], front["confidence"])),
        [i for i in alike if i != picked.point["id"]],
    )


def corrected_worths(store: Store, front: Front, picks: Sequence[Picked]) -> list[Value | None]:
    """Of every picked point what `worth_of` has as corrected, or None; scores are read once for all."""
    found = map(_reader(store, front), picks)
    return [
        None if worth is None or len(worth) < 2 else _value(picked_worth(worth, front["seed"], front["confidence"]))
        for worth in found
    ]


def corrected_differences(
    store: Store, front: Front, pairs: Sequence[tuple[Picked, Picked] | None]
) -> list[Value | None]:
    """Of every pair, the best worth of what the first was picked among less that of what the second was.

    By `difference_of_best`; the second was picked by the same question from fewer points. None for None, and where
    `worth_of` has none.
    """
    read = _reader(store, front)

    def difference(pair: tuple[Picked, Picked] | None) -> Value | None:
        worths = [read(picked) for picked in pair or ()]
        if not worths or any(worth is None for worth in worths):
            return None
        return _value(difference_of_best(*worths, front["seed"], front["confidence"]))

    return [difference(pair) for pair in pairs]


def _reader(store: Store, front: Front) -> Callable[[Picked], NDArray[np.float64] | None]:
    """From a picked point to what all points among which it was picked are worth on every prompt, `[points, prompts]`.

    None of a point that was not picked, or by something that is no score of the run.
    """
    specs, rewards = {point.id: point.spec_id for point in store.points(front["split"])}, store.recall("reward_names")
    scores = cache(lambda point, names: store.scores(specs[point], front["split"], names))

    def read(picked: Picked) -> NDArray[np.float64] | None:
        names, factors = tuple(picked.factors), list(picked.factors.values())
        known = set(names) <= set(rewards) and specs.keys() >= set(picked.among)
        if not picked.among or not known:
            return None
        return np.stack([scores(point, names) @ factors + picked.constant for point in picked.among])

    return read


def _value(found: Estimate) -> Value:
    return {"value": found.value, "low": found.low, "high": found.high}
