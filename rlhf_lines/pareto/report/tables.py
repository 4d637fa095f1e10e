"""The tables of the page, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from rlhf_lines.pareto.forgetting import damage_undone
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.groups import Mark
from rlhf_lines.pareto.report.words import MINUS, NOTHING, estimated, number, percent, setting, visible, weights
from rlhf_lines.pareto.schema import SFT, Mean, PointEntry, Value
from rlhf_lines.pareto.table import MEASURES, decimals, p_text


class Column(NamedTuple):
    """A head and a cell for each row; `start` says whether they are set to the left."""

    head: str
    cells: Sequence[str]
    start: bool = False


@dataclass(frozen=True)
class Table:
    """Columns beside each other; `attributes` has those of each row's element."""

    label: str
    columns: Sequence[Column]
    attributes: Sequence[Mapping[str, str]] = ()

    def rows(self) -> Iterator[tuple[Mapping[str, str], Sequence[str]]]:
        """Yield the attributes and the cells of each row."""
        for i, row in enumerate(zip(*(column.cells for column in self.columns), strict=True)):
            yield self.attributes[i] if self.attributes else {}, row


def name(text: str) -> Markup:
    """A text from outside, apart from the direction of what stands around it; the style sheet cuts long ones."""
    return Markup('<bdi title="{0}">{0}</bdi>').format(visible(text))


def symbol(group: Mark) -> Markup:
    """The character of a group in its colour."""
    span = Markup('<span class="symbol" aria-hidden="true" style="color:{}">{}</span>')
    return span.format(group.ink(), group.character)


def points_table(content: Content) -> Table:
    """All points, with what tells those of one group apart."""
    points = content.front["points"]
    best = {i for entry in content.front["fronts"].values() for i in entry["nondominated"]}
    group, *others = _settings_and_scores(content, points)
    columns = [
        Column("", ["★" if point["id"] in best else "" for point in points]),
        Column("id", [str(point["id"]) for point in points]),
        group,
        Column("weights", [weights(point["spec"]["weights"]) for point in points]),
        *others,
    ]
    return Table("All points", columns)


def weight_table(content: Content) -> Table:
    """The points of every step of the slider, group by group, and the SFT model, which is in all of them."""
    steps = {i: {"data-step": str(k)} for k, step in enumerate(content.steps) for i in step.points}
    points = [p for group in content.groups for p in content.points_of(group) if group == SFT or p["id"] in steps]
    columns = _settings_and_scores(content, points)
    return Table("Scores at these weights", columns, [steps.get(point["id"], {}) for point in points])


def volumes_table(content: Content) -> Table:
    """The measures of every group."""
    fronts = {group: content.front["fronts"][group] for group in content.groups if group in content.front["fronts"]}
    digits = (decimals(entry["hypervolume"]["value"] for entry in fronts.values()), 4)
    columns = [
        _groups(content, fronts),
        *(
            Column(measure.replace("_", " "), [_estimate(entry[measure], places) for entry in fronts.values()])
            for measure, places in zip(MEASURES, digits, strict=True)
        ),
        Column("points", [str(len(content.points_of(group))) for group in fronts]),
        Column("not dominated", [str(len(entry["nondominated"])) for entry in fronts.values()]),
    ]
    return Table("Hypervolumes", columns)


def differences_table(content: Content) -> Table:
    """The measures of one group minus those of another."""
    entries = content.front["comparisons"]
    names = [[name(content.groups[entry[k]].label) for k in "ab"] for entry in entries]
    pairs = [Markup("<span>{} {} {}</span>").format(a, MINUS, b) for a, b in names]
    columns = [Column("difference", pairs, start=True)]
    for measure in MEASURES:
        differences = [entry[f"{measure}_difference"] for entry in entries]
        digits = decimals(difference["value"] for difference in differences)
        columns += [
            Column(measure.replace("_", " "), [_estimate(difference, digits) for difference in differences]),
            Column("adjusted p", [p_text(difference["adjusted_p_value"]) for difference in differences]),
        ]
    return Table("Differences between groups", columns)


def validation_table(content: Content) -> Table:
    """Every setting that was tried."""
    grid, chosen = content.front["validation"]["grid"], content.front["validation"]["chosen"]
    digits = decimals(entry["hypervolume"]["value"] for entry in grid)
    is_chosen = [all(entry[key] == chosen[key] for key in chosen) for entry in grid]
    columns = [
        *(Column(key, [setting(entry[key]) for entry in grid]) for key in ("alpha", "beta")),
        Column("schedule", [name(entry["schedule"]) for entry in grid], start=True),
        Column("hypervolume", [_estimate(entry["hypervolume"], digits) for entry in grid]),
        Column("", ["chosen" if found else "" for found in is_chosen], start=True),
    ]
    return Table("Validation hypervolumes", columns, [{"class": "chosen"} if found else {} for found in is_chosen])


def undone_table(content: Content) -> Table | None:
    """LiNeS beside the rewarded soup at the same weights; None if no weights have both."""
    rows = damage_undone(content.front)
    columns = [
        Column("weights", [weights(row["weights"]) for row in rows]),
        Column("policy", ["" if row["policy"] is None else name(row["policy"]) for row in rows], start=True),
        Column("damage undone", [percent(row["damage_undone"]) for row in rows]),
    ]
    for reward in content.front["rewards"]:
        head = Markup("<span>kept of {}</span>").format(name(reward))
        columns.append(Column(head, [percent(row["reward_kept"][reward]) for row in rows]))
    return Table("Damage undone and reward kept by LiNeS", columns) if rows else None


def predictions_table(content: Content) -> Table:
    """What was predicted and measured."""
    predictions, by_id = content.predictions, {point["id"]: point for point in content.front["points"]}
    points = [by_id[entry["id"]] for entry in predictions]
    columns = [
        Column("id", [str(point["id"]) for point in points]),
        _groups(content, [point["group"] for point in points]),
        Column("weights", [weights(point["spec"]["weights"]) for point in points]),
    ]
    for reward, measure in content.rewards.items():
        for head, key in ((Markup("<span>{} predicted</span>").format(name(reward)), "predicted"), ("measured",) * 2):
            columns.append(Column(head, [number(entry[key].get(reward), measure.digits) for entry in predictions]))
    return Table("Predicted and measured scores", columns)


def pairs_table(head: str, pairs: Sequence[tuple[str, str]]) -> Table:
    """Names beside their values."""
    return Table(head, [Column(top, [name(pair[k]) for pair in pairs], start=True) for k, top in enumerate((head, ""))])


def _settings_and_scores(content: Content, points: Sequence[PointEntry]) -> list[Column]:
    specs = [point["spec"] for point in points]
    columns = [_groups(content, [point["group"] for point in points])]
    columns += [Column(key, [setting(spec[key]) for spec in specs]) for key in ("alpha", "beta")]
    if any(point["spec"]["schedule"] != "linear" for point in content.front["points"]):
        columns.append(Column("schedule", [name(spec["schedule"]) for spec in specs], start=True))
    for measure in content.measures:
        head = f"{measure.name}, {measure.unit}" if measure.unit else name(measure.name)
        columns.append(Column(head, [_estimate(measure.of(point), measure.digits) for point in points]))
    return columns


def _groups(content: Content, names: Sequence[str]) -> Column:
    groups = [content.groups[name] for name in names]
    cells = [Markup("<span>{} {}</span>").format(symbol(group), name(group.label)) for group in groups]
    return Column("group", cells, start=True)


def _estimate(estimate: Mean | Value | None, digits: int) -> str:
    """An estimate with its interval, which is fainter."""
    cell = Markup('<span>{}<span class="range"> {}</span></span>')
    return NOTHING if estimate is None else cell.format(*estimated(estimate, digits))
