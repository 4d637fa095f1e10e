"""What a judge needs of a finished sweep, and what is told of its verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from reward_models import Comparer, RewardModel
from rlhf_lines.pareto.schema import SFT
from rlhf_lines.sweep.store import Store


Rivals = dict[tuple[int, int], str]  # the other completion by prompt and sample


def rivals(store: Store, judge: Comparer) -> Rivals:
    """The completions that those of all points are compared with: of the SFT model, or of a point of the front.

    Points of validation prompts are none: those of the front would have nothing to be compared with.

    Raises:
        ValueError: the front has no such point.
    """
    points = store.points("test")
    found = {p.spec_id for p in points if (p.group == SFT if judge.against == SFT else p.id == judge.against)}
    if not found:
        raise ValueError(
            f"the judge {judge.name!r} compares with point {judge.against}, which the front lacks; its points are in "
            "front.csv"
        )
    return {(row.prompt, row.sample): row.text for spec in found for row in store.rows_of(spec, ())}


def counts_of(model: RewardModel) -> dict[str, int]:
    """What a judge or a generative reward model has counted so far; empty of other reward models."""
    names = ("compared", "changed", "undecided", "unread", "graded", "strayed")
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts."""
    return {name: before.get(name, 0) + count for name, count in now.items()}


def judged_text(counts: Mapping[str, int]) -> str:
    """What people read of a judge's counts.

    >>> judged_text({"compared": 40, "changed": 3, "undecided": 1, "unread": 5})
    'asked for 40 pairs in both orders: 3 verdicts changed with the order and 1 could not be read, which count as ties'
    >>> judged_text({"unread": 2})
    '2 answers without a grade, asked for again'
    >>> judged_text({"graded": 40, "strayed": 3})
    'in 3 of 40 texts less than half of the probability lay on the grades'
    """
    if "graded" in counts:
        of_all = f"in {counts['strayed']:,} of {counts['graded']:,} texts"
        return f"{of_all} less than half of the probability lay on the grades"
    if "compared" not in counts:
        return f"{counts['unread']:,} answers without a grade, asked for again"
    return (
        f"asked for {counts['compared']:,} pairs in both orders: {counts['changed']:,} verdicts changed with the order "
        f"and {counts['undecided']:,} could not be read, which count as ties"
    )
