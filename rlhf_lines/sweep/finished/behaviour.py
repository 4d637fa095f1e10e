"""From the completions in the run store to what they are like, point by point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_lines.pareto.behaviour import Behaviour
from rlhf_lines.pareto.schema import SFT
from rlhf_lines.pareto.wins import lost_most
from rlhf_lines.sweep.store import Row, Store


class LostPrompt(NamedTuple):
    """A prompt for which a point's scores fell: its id and text in the store, and the difference by objective."""

    id: int
    text: str
    differences: dict[str, float]


def read_behaviour(store: Store, split: str, objectives: Sequence[str]) -> dict[int, Behaviour]:
    """By the id of its spec, what the completions of each point of a split are like.

    The completions of one spec are in memory at a time.

    Raises:
        ValueError: prompts have different numbers of completions, or a score is missing.
    """
    most, ends = store.recall("max_new_tokens", None), end_tokens(store)
    specs = itertools.groupby(store.rows(split, objectives), key=lambda row: row.spec)
    return {spec: _behaviour(list(rows), objectives, most, ends) for spec, rows in specs}


def end_tokens(store: Store) -> set[int]:
    """The tokens that end a completion.

    A run of an earlier version does not tell them. There they are the last tokens of completions that are shorter than
    a completion may be: nothing else ended these.
    """
    known = store.recall("end_tokens", None)
    return store.last_tokens(shorter_than=store.recall("max_new_tokens", 0)) if known is None else set(known)


def lost_prompts(store: Store, split: str, point: int, objectives: Sequence[str], count: int = 5) -> list[LostPrompt]:
    """The prompts at which a point lost most against the SFT model, the worst first; see `lost_most`.

    Raises:
        ValueError: the store has no such point, or no SFT model, on this split.
    """
    specs = {stored.id: stored.spec_id for stored in store.points(split)}
    sft = next((stored.spec_id for stored in store.points(split) if stored.group == SFT), None)
    if point not in specs or sft is None:
        what = "the SFT model" if point in specs else f"point {point}"
        raise ValueError(f"the run has no {split} completions of {what}; it has points {sorted(specs)}")
    behaviours = read_behaviour(store, split, objectives)
    prompts = list(store.prompts(split).items())
    lost = lost_most(behaviours[specs[point]].scores, behaviours[sft].scores, objectives, count)
    return [LostPrompt(prompts[found.prompt][0], prompts[found.prompt][1].text, found.differences) for found in lost]


def _behaviour(rows: Sequence[Row], objectives: Sequence[str], most: int | None, ends: set[int]) -> Behaviour:
    prompts = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.prompt)]
    missing = next(((row, name) for row in rows for name in objectives if name not in row.scores), None)
    if missing:
        row, name = missing
        raise ValueError(
            f"sample {row.sample} of prompt {row.prompt} under spec {row.spec} has no score {name!r}: give it one with "
            "rlhf-lines score"
        )
    return Behaviour.of(
        [[row.text for row in group] for group in prompts],
        [[row.token_ids for row in group] for group in prompts],
        [[[row.scores[name] for name in objectives] for row in group] for group in prompts],
        max_new_tokens=most,
        end_tokens=ends,
    )
