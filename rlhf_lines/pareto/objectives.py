"""Which scores fronts are made of, and from where their hypervolumes are measured: what may be asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rlhf_lines.errors import unknown_name
from rlhf_lines.pareto.schema import BESIDE, METRICS


def check_score_names(names: Sequence[str]) -> None:
    """Refuse a score whose name `front.json` has for something else.

    Raises:
        ValueError: a name is one of `METRICS` or `BESIDE`.
    """
    for name in names:
        if name in (*METRICS, *BESIDE):
            raise ValueError(
                f"a reward has the name {name}, which is what a front calls something else that it measures: give it "
                'another name, as in {"model": ..., "name": ...}'
            )


def check_objectives(objectives: Sequence[str], scores: Sequence[str]) -> None:
    """Refuse objectives that are no scores of the run, or stand twice.

    Raises:
        ValueError: one is, or there are none.
    """
    if not objectives:
        raise ValueError("objectives is empty, expected the names of one score or more")
    for name in objectives:
        if name not in scores:
            raise ValueError(f"objectives: {unknown_name('reward', name, scores)}")
        if list(objectives).count(name) > 1:
            raise ValueError(f"objectives has {name!r} twice: give every reward once")


def check_minimum(minimum: Iterable[str], scores: Sequence[str]) -> None:
    """Refuse a minimum of what is no score of the run.

    Raises:
        ValueError: a name is none.
    """
    for name in minimum:
        if name not in scores:
            raise ValueError(f"minimum: {unknown_name('reward', name, scores)}")


def check_reference_point(reference_point: Sequence[float], objectives: Sequence[str]) -> None:
    """Refuse a reference point that is not one finite number per objective.

    Raises:
        ValueError: it is not.
    """
    if len(reference_point) != len(objectives) or not all(map(math.isfinite, reference_point)):
        found = " ".join(f"{value:zg}" for value in reference_point)
        raise ValueError(
            f"reference_point is {found}, expected one finite number for each objective: {', '.join(objectives)}"
        )
