"""The tables of the page, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from rlhf_lines.pareto.forgetting import damage_undone
from rlhf_lines.pareto.report.groups import Group
from rlhf_lines.pareto.report.words import (
    MINUS,
    NOTHING,
    Step,
    centre,
    interval,
    measures,
    number,
    percent,
    setting,
    share,
    visible,
    weights,
)
from rlhf_lines.pareto.style import label
from rlhf_lines.pareto.table import decimals


@dataclass(frozen=True)
class Column:
    """A head and a cell for each row; `start` says whether they are set to the left."""

    head: str
    cells: Sequence[str]
    start: bool = False


@dataclass(frozen=True)
class Table:
    """Columns beside each other; `attributes` has those of each row's element."""

    label: str
    columns: Sequence[Column]
    attributes: Sequence[Mapping[str, str]] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[Mapping[str, str], list[str]]]:
        """The attributes and the cells of each row."""
        cells = zip(*(column.cells for column in self.columns), strict=True)
        for i, row in enumerate(cells):
            yield (self.attributes[i] if self.attributes else {}), list(row)


def name(text: str) -> Markup:
    """A text from outside, apart from the direction of what stands around it; the style sheet cuts long ones."""
    return Markup('<bdi title="{0}">{0}</bdi>').format(visible(text))


def mark(group: Group) -> Markup:
    """The character of a group in its colour."""
    return Markup('<span class="symbol" aria-hidden="true" style="color:{}">{}</span>').format(
        group.ink(), group.character
    )


def estimate_cell(estimate: Mapping[str, float] | None, digits: int) -> str:
    """An estimate with its interval, which is fainter."""
    if estimate is None:
        return NOTHING
    return Markup('<span>{}<span class="range"> {}</span></span>').format(
        number(centre(estimate), digits), interval(estimate, digits)
    )


def points_table(front: Mapping[str, Any], groups: Mapping[str, Group]) -> Table:
    """All points, with what tells those of one group apart."""
    points = front["points"]
    best = {i for entry in front["fronts"].values() for i in entry["nondominated"]}
    group, *others = _settings_and_scores(front, points, groups)
    columns = [
        Column("", ["★" if point["id"] in best else "" for point in points]),
        Column("id", [str(point["id"]) for point in points]),
        group,
        Column("weights", [weights(point) for point in points]),
        *others,
    ]
    return Table("All points", columns)


def weight_table(front: Mapping[str, Any], groups: Mapping[str, Group], steps: Sequence[Step]) -> Table:
    """The points of every step of the slider, group by group, and the SFT model, which is in all of them."""
    step_of = {i: {"data-step": str(k)} for k, step in enumerate(steps) for i in step.points}
    points = [point for point in front["points"] if point["id"] in step_of or point["group"] == "sft"]
    points.sort(key=lambda point: list(groups).index(point["group"]))
    columns = _settings_and_scores(front, points, groups)
    return Table("Scores at these weights", columns, [step_of.get(point["id"], {}) for point in points])


def _settings_and_scores(
    front: Mapping[str, Any], points: Sequence[Mapping[str, Any]], groups: Mapping[str, Group]
) -> list[Column]:
    specs = [point["spec"] for point in points]
    columns = [_group_column(points, groups)]
    columns += [Column(key, [setting(spec.get(key)) for spec in specs]) for key in ("alpha", "beta")]
    if any(point["spec"].get("schedule", "linear") != "linear" for point in front["points"]):
        columns.append(Column("schedule", [name(spec.get("schedule", "linear")) for spec in specs], start=True))
    for measure in measures(front):
        head = name(measure.name) if measure.name in front["rewards"] else measure.name
        head = f"{head}, {measure.unit}" if measure.unit else head
        columns.append(Column(head, [estimate_cell(measure.of(point), measure.digits) for point in points]))
    return columns


def _group_column(points: Sequence[Mapping[str, Any]], groups: Mapping[str, Group]) -> Column:
    cells = [
        Markup("<span>{} {}</span>").format(mark(group), name(group.label))
        for group in (groups[point["group"]] for point in points)
    ]
    return Column("group", cells, start=True)


def volumes_table(front: Mapping[str, Any], groups: Mapping[str, Group]) -> Table:
    """The measures of every group."""
    entries = {group: front["fronts"][group] for group in groups if group in front["fronts"]}
    digits = decimals([entry["hypervolume"]["value"] for entry in entries.values()])
    columns = [
        _group_column([{"group": group} for group in entries], groups),
        Column("hypervolume", [estimate_cell(entry["hypervolume"], digits) for entry in entries.values()]),
        Column("expected utility", [estimate_cell(entry["expected_utility"], 4) for entry in entries.values()]),
        Column("points", [str(sum(p["group"] == group for p in front["points"])) for group in entries]),
        Column("not dominated", [str(len(entry["nondominated"])) for entry in entries.values()]),
    ]
    return Table("Hypervolumes", columns)


def differences_table(front: Mapping[str, Any]) -> Table:
    """The measures of one group minus those of another."""
    entries = front["comparisons"]
    pairs = [
        Markup(f"<span>{{}} {MINUS} {{}}</span>").format(*(name(label(entry[k])) for k in "ab")) for entry in entries
    ]
    columns = [Column("difference", pairs, start=True)]
    for head in ("hypervolume", "expected utility"):
        differences = [entry[f"{head.replace(' ', '_')}_difference"] for entry in entries]
        digits = decimals([difference["value"] for difference in differences])
        columns.append(Column(head, [estimate_cell(difference, digits) for difference in differences]))
        columns.append(Column("P(> 0)", [number(difference["probability_positive"], 3) for difference in differences]))
    return Table("Differences between groups", columns)


def validation_table(validation: Mapping[str, Any]) -> Table:
    """Every setting that was tried."""
    grid, chosen = validation["grid"], validation["chosen"]
    digits = decimals([entry["hypervolume"]["value"] for entry in grid])
    is_chosen = [all(entry[key] == chosen[key] for key in ("alpha", "beta", "schedule")) for entry in grid]
    columns = [
        Column("alpha", [setting(entry["alpha"]) for entry in grid]),
        Column("beta", [setting(entry["beta"]) for entry in grid]),
        Column("schedule", [name(entry["schedule"]) for entry in grid], start=True),
        Column("hypervolume", [estimate_cell(entry["hypervolume"], digits) for entry in grid]),
        Column("", ["chosen" if found else "" for found in is_chosen], start=True),
    ]
    return Table("Validation hypervolumes", columns, [{"class": "chosen"} if found else {} for found in is_chosen])


def undone_table(front: Mapping[str, Any]) -> Table | None:
    """LiNeS beside the rewarded soup at the same weights; None if no weights have both."""
    rows = damage_undone(front)
    columns = [
        Column("weights", [" / ".join(map(share, row["weights"])) for row in rows]),
        Column("policy", ["" if row["policy"] is None else name(row["policy"]) for row in rows], start=True),
        Column("damage undone", [percent(row["damage_undone"]) for row in rows]),
    ]
    for reward in front["rewards"]:
        head = Markup("<span>kept of {}</span>").format(name(reward))
        columns.append(Column(head, [percent(row["reward_kept"][reward]) for row in rows]))
    return Table("Damage undone and reward kept by LiNeS", columns) if rows else None


def surrogate_table(
    front: Mapping[str, Any], groups: Mapping[str, Group], predictions: Sequence[Mapping[str, Any]]
) -> Table:
    """What was predicted and measured, of all groups."""
    by_id = {point["id"]: point for point in front["points"]}
    points = [by_id[entry["id"]] for entry in predictions]
    columns = [
        Column("id", [str(point["id"]) for point in points]),
        _group_column(points, groups),
        Column("weights", [weights(point) for point in points]),
    ]
    for reward, measure in zip(front["rewards"], measures(front), strict=False):
        heads = (Markup("<span>{} predicted</span>").format(name(reward)), "measured")
        for head, key in zip(heads, ("predicted", "measured"), strict=True):
            columns.append(Column(head, [number(entry[key][reward], measure.digits) for entry in predictions]))
    return Table("Predicted and measured scores", columns)


def pairs_table(head: str, pairs: Sequence[tuple[str, str]]) -> Table:
    """Names beside their values."""
    keys, values = ([name(pair[k]) for pair in pairs] for k in (0, 1))
    return Table(head, [Column(head, keys, start=True), Column("", values, start=True)])
