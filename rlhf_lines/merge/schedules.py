"""How LiNeS' factors change with depth; known without torch, so that configs are checked without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """One way in which LiNeS' factors change with depth.

    Attributes:
        share: of beta that a layer at depth d in [0, 1] gets.
        formula: the same for people, as a factor.
        reverse: the name of the schedule with the same factors upside down.
        falls: whether deeper layers get less, which is for ablations.
    """

    share: Callable[[Tensor], Tensor]
    formula: str
    reverse: str
    falls: bool = False


SCHEDULES = {
    "linear": Schedule(lambda depth: depth, "d", "reversed"),
    "sqrt": Schedule(lambda depth: depth.sqrt(), "sqrt(d)", "reversed_sqrt"),
    "quadratic": Schedule(lambda depth: depth.square(), "(d)^2", "reversed_quadratic"),
    "reversed": Schedule(lambda depth: 1 - depth, "(1 - d)", "linear", falls=True),
    "reversed_sqrt": Schedule(lambda depth: (1 - depth).sqrt(), "sqrt(1 - d)", "sqrt", falls=True),
    "reversed_quadratic": Schedule(lambda depth: (1 - depth).square(), "(1 - d)^2", "quadratic", falls=True),
}
GROWING, FALLING = ([name for name, entry in SCHEDULES.items() if entry.falls == falls] for falls in (False, True))


def schedules_without_effect(scalings: Iterable[tuple[float, str]]) -> Iterator[str]:
    """Sentences on the schedules that shape nothing, since beta is always 0.

    >>> list(schedules_without_effect([(0.0, "sqrt"), (0.0, "linear")]))
    ['schedule sqrt has no effect: beta is 0, so every layer has the factor alpha']

    Args:
        scalings: beta and schedule of each; linear is what a schedule is that is not given.
    """
    betas, schedules = zip(*scalings, strict=True)
    if not any(betas):
        for schedule in dict.fromkeys(schedules):
            if schedule != "linear":
                yield f"schedule {schedule} has no effect: beta is 0, so every layer has the factor alpha"
