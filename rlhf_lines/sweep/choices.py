"""What a config says about specs: weights, scalings to choose from, and further groups."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import SCHEDULES
from rlhf_lines.pareto.schema import GROUPS


class Scaling(NamedTuple):
    """alpha, beta and schedule of LiNeS."""

    alpha: float | str
    beta: float
    schedule: str = "linear"


@dataclass(frozen=True)
class GroupEntry:
    """One item of `groups` in a config: a merge at all weights of the sweep.

    Attributes:
        name: what the group is called in the front.
        rule, options, alpha, beta, schedule: as in `MergeSpec`.
        statistics: folders of `rlhf-lines fisher` or `gram`, one per policy, for the rules of these names.
    """

    name: str
    rule: str = "linear"
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | str = 1.0
    beta: float = 0.0
    schedule: str = "linear"
    statistics: tuple[str, ...] = ()

    def spec(self, weights: tuple[float, ...]) -> MergeSpec:
        """The spec at some weights."""
        return MergeSpec(self.rule, weights, self.alpha, self.beta, self.schedule, self.options)


def group_entries(items: Sequence[str | Mapping[str, Any]]) -> list[GroupEntry]:
    """What the items of `groups` stand for: mappings, also as JSON.

    Raises:
        ValueError: a key is unknown, the name is missing or taken, or a value is wrong.
    """
    entries = [_group_entry(item) for item in items]
    names = [entry.name for entry in entries]
    for name in names:
        if name in GROUPS:
            raise ValueError(f"groups: {name!r} is the name of a group that a sweep has anyway: choose another one")
        if names.count(name) > 1:
            raise ValueError(f"groups: {name!r} occurs twice: give every group a name of its own")
    for entry in entries:
        others = {other.statistics for other in entries if other.rule == entry.rule}
        if len(others) > 1:
            raise ValueError(f"groups: rule {entry.rule!r} has different statistics: give all of its groups the same")
    return entries


def weight_vectors(items: Iterable[str | Sequence[float]], num_policies: int) -> list[tuple[float, ...]]:
    """The weights that texts as `0.3 0.7`, or lists of numbers, stand for.

    Raises:
        ValueError: not one finite number per policy.
    """
    vectors = []
    for item in items:
        parts = item.replace(",", " ").split() if isinstance(item, str) else item
        try:
            vector = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            vector = ()
        if len(vector) != num_policies or not all(map(math.isfinite, vector)):
            raise ValueError(f"weights holds {item!r}, expected {num_policies} numbers, one per policy")
        if vector in vectors:
            raise ValueError(f"weights holds {item!r} twice: give every point once")
        vectors.append(vector)
    return vectors


def candidates(
    scalings: Iterable[str | Sequence], alphas: Sequence, betas: Sequence[float], schedules: Sequence[str]
) -> list[Scaling]:
    """The scalings to choose from: those of the list, or, without one, all of the grid.

    Raises:
        ValueError: a value is wrong or occurs twice.
    """
    listed = [_scaling(item) for item in scalings]
    if listed:
        if len(set(listed)) < len(listed):
            raise ValueError(f"scalings is {list(scalings)}, expected every one once")
        return listed
    numbers = [_alpha(value) for value in alphas]
    for name, values in (("alphas", numbers), ("betas", list(betas)), ("schedules", list(schedules))):
        if not values:
            raise ValueError(f"{name} is empty, expected one value or more")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}, expected every value once")
    return [_scaling(item) for item in itertools.product(numbers, betas, schedules)]


def _scaling(item: str | Sequence) -> Scaling:
    parts = item.split() if isinstance(item, str) else list(item) if isinstance(item, Sequence) else []
    if not 2 <= len(parts) <= 3:
        raise ValueError(f"scalings holds {item!r}, expected alpha, beta and, if not linear, a schedule")
    alpha, beta, schedule = _alpha(parts[0]), parts[1], parts[2] if len(parts) == 3 else "linear"
    try:
        beta = float(beta)
    except (TypeError, ValueError):
        beta = math.nan
    if not math.isfinite(beta):
        raise ValueError(f"betas or scalings hold beta {parts[1]!r}, expected finite numbers")
    if schedule not in SCHEDULES:
        raise ValueError(unknown_name("schedule", schedule, SCHEDULES))
    return Scaling(alpha, beta, schedule)


def _alpha(value: float | str) -> float | str:
    if value == "auto":
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"alphas or scalings hold alpha {value!r}, expected finite numbers or auto")
    return number


def _group_entry(item: str | Mapping[str, Any]) -> GroupEntry:
    if isinstance(item, str):
        try:
            item = json.loads(item)
        except json.JSONDecodeError as error:
            raise ValueError(f"groups holds {item!r}, which is no valid JSON: {error}") from None
    if not isinstance(item, Mapping) or not (isinstance(item.get("name"), str) and item["name"].strip()):
        raise ValueError(f"groups holds {item!r}, expected a mapping with the key name")
    known = [entry.name for entry in dataclasses.fields(GroupEntry)]
    for key in item:
        if key not in known:
            raise ValueError(f"groups: {item['name']}: {unknown_name('key', key, known)}")
    statistics = item.get("statistics", ())
    if isinstance(statistics, str) or not isinstance(statistics, Sequence):
        raise ValueError(
            f"groups: {item['name']}: statistics is {statistics!r}, expected a list of folders, one per policy"
        )
    entry = GroupEntry(**{**item, "statistics": tuple(statistics)})
    try:
        entry.spec((1.0,))
    except ValueError as error:
        raise ValueError(f"groups: {entry.name}: {error}") from None
    return entry
