"""The tables of the page, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.figures.benchmarks import drawn_metrics
from rlhf_lines.pareto.forgetting import damage_undone, sft_point
from rlhf_lines.pareto.headline import bases, budgets_text
from rlhf_lines.pareto.look_at import likely_choices
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.picked import Picked, pick
from rlhf_lines.pareto.report import badly, facts
from rlhf_lines.pareto.report.content import Content, Measure
from rlhf_lines.pareto.report.groups import Mark
from rlhf_lines.pareto.report.words import MINUS, NOTHING, estimated, number, percent, setting, signed, visible, weights
from rlhf_lines.pareto.schema import SFT, SOUP, GridEntry, Mean, PointEntry, Value, label, shortened
from rlhf_lines.pareto.table import MEASURES, decimals, p_text


BEYOND = {1: "↑ better", -1: "↓ worse", 0: "≈ cannot be told apart"}
PRINTED = 60  # of more points, only those that one would likely choose are on paper


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


def bdi(text: str) -> Markup:
    """A text apart from the direction of what stands around it, which is short enough already."""
    return Markup("<bdi>{}</bdi>").format(visible(text))


def symbol(group: Mark) -> Markup:
    """The character of a group in its colour."""
    span = Markup('<span class="symbol" aria-hidden="true" style="color:{}">{}</span>')
    return span.format(group.ink(), group.character)


def points_table(content: Content) -> Table:
    """All points: what they score, and how they are made."""
    points = content.front["points"]
    columns = [*_measured(content, content.scores, points), *_settings(content, points)]
    return Table("All points", [_points(content, points), *columns], _rows(content, points))


def behaviour_table(content: Content) -> Table | None:
    """What the completions of all points are like; None where that is not known."""
    points = content.front["points"]
    columns = _measured(content, [*content.behaviour, *content.wins], points)
    return (
        Table("What the completions are like", [_points(content, points), *columns], _rows(content, points))
        if columns
        else None
    )


def weight_table(content: Content) -> Table:
    """The points of every step of the slider, group by group, and the SFT model, which is in all of them."""
    steps = {i: {"data-step": str(k)} for k, step in enumerate(content.steps) for i in step.points}
    points = [p for group in content.groups for p in content.points_of(group) if group == SFT or p["id"] in steps]
    columns = [*_measured(content, [*content.scores, *content.behaviour], points), *_settings(content, points)]
    cells = _groups(content, [point["group"] for point in points]).cells
    groups = Column("group", [_link(point, cell) for point, cell in zip(points, cells, strict=True)], start=True)
    rows = [steps.get(point["id"], {}) | _row(point) for point in points]
    return Table("Scores at these weights", [groups, *columns], rows)


def choice_table(content: Content) -> Table | None:
    """For every preference the best point of each group; None where there are too many objectives to list them."""
    front = content.front
    if not content.choices:
        return None
    picked = {content.by_id[choice.point]["group"] for choice in content.choices}
    groups = [name for name in content.groups if name != SFT or name in picked]
    objectives = [shortened(visible(objective), 20) for objective in front["objectives"]]
    cells: dict[str, list[str]] = {name: [] for name in groups}
    for choice in content.choices:
        for name in groups:
            found = pick(front, preference=choice.preference, scale="range", group=name)
            cell = _link(found.point, _worth_of(content, found))
            is_best = found.point["id"] == choice.point
            cells[name].append(Markup("<strong class='chosen'>{} picked</strong>").format(cell) if is_best else cell)
    heads = [
        Markup("<span>{} {}</span>").format(symbol(content.groups[name]), bdi(content.groups[name].label))
        for name in groups
    ]
    labels = [choice.ratio for choice in content.choices]
    first = Column(Markup("<span>{} (%)</span>").format(bdi(" : ".join(objectives))), labels, start=True)
    rows = [{"data-preference": str(k)} for k in range(len(labels))]
    columns = [first, *_corrected(content), *_beside_soup(content), *map(Column, heads, cells.values())]
    return Table("The best point of every group by preference", columns, rows)


def _corrected(content: Content) -> list[Column]:
    """The utility of what is picked for every preference, corrected for having been picked, where that is known."""
    if not any(content.worths):
        return []
    return [Column("picked, corrected", [_estimate(worth, 3) for worth in content.worths])]


def _beside_soup(content: Content) -> list[Column]:
    """For every preference what is picked beside the best point of the soup whose KL is at most as large."""
    pairs = content.within_kl
    if not any(pairs):
        return []
    cells = [pair and _link(pair[1].point, _worth_of(content, pair[1])) for pair in pairs]
    head = Markup("<span>{} soup within its KL</span>").format(symbol(content.groups[SOUP]))
    columns = [
        Column(head, [cell or NOTHING for cell in cells]),
        Column("KL of picked", [_spent(content.by_id[choice.point]) for choice in content.choices]),
        Column("KL of soup", [_spent(pair[1].point) if pair else NOTHING for pair in pairs]),
    ]
    if any(content.over_soup):
        more = [_more(*each) for each in zip(pairs, content.over_soup, strict=True)]
        columns.insert(0, Column(f"picked {MINUS} soup within its KL", more))
    return columns


def _spent(point: PointEntry) -> str:
    return number(point["kl"] and point["kl"]["mean"], 2)


def _more(pair: tuple[Picked, Picked] | None, difference: Value | None) -> str:
    """How much more what is picked is worth than the soup's best, and whether beyond noise."""
    if pair is None or difference is None:
        return NOTHING
    if pair[0].point["id"] == pair[1].point["id"]:
        return "it is the soup's"
    low, high = difference["low"], difference["high"]
    beyond = "" if low is None else BEYOND[(low > 0) - (high < 0)]
    cell = Markup('<span>{}<span class="range"> {}</span> {}</span>')
    return cell.format(signed(difference["value"], 3), estimated(difference, 3)[1], beyond)


def _worth_of(content: Content, found: Picked) -> Markup:
    """Where a point of its group is, and its utility in brackets."""
    text = Markup("<span>{} <span class='range'>({})</span></span>")
    return text.format(content.place(found.point), number(_worth(found), 3))


def _worth(picked: Picked) -> float:
    scores = picked.point["scores"]
    return sum(factor * scores[name]["mean"] for name, factor in picked.factors.items()) + picked.constant


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
    """The measures of one group minus those of another, also as shares of the latter's, and what they say together."""
    entries = content.front["comparisons"]
    names = [[bdi(content.groups[entry[k]].label) for k in "ab"] for entry in entries]
    pairs = [Markup("<span>{} {} {}</span>").format(a, MINUS, b) for a, b in names]
    columns = [
        Column("difference", pairs, start=True),
        Column("verdict", [e["verdict"] for e in entries], start=True),
    ]
    for measure, words in comparisons.MEASURES.items():
        found = [entry[f"{measure}_difference"] for entry in entries]
        if not any(found):
            continue
        digits = decimals(each["value"] for each in found if each)
        columns += [
            Column(
                words,
                [
                    NOTHING if each is None else facts.shares(each, bases(content.front, entry)[measure])[0]
                    for each, entry in zip(found, entries, strict=True)
                ],
            ),
            Column("difference", [_estimate(each, digits) for each in found]),
            Column("adjusted p", [p_text(each and each["adjusted_p_value"]) for each in found]),
        ]
    if any(entry["kl_budgets"] is not None for entry in entries):
        columns.append(Column("KL, nats", [budgets_text(content.front, entry, NOTHING) for entry in entries]))
    return Table("Differences between groups", columns)


def validation_table(content: Content) -> Table:
    """Every setting that was tried, group by group."""
    rows = [(each, entry) for each in content.tuned for entry in each.tuning["grid"]]
    entries = [entry for _, entry in rows]
    digits = decimals(entry["hypervolume"]["value"] for entry in entries)
    is_chosen = [all(entry[key] == each.tuning["chosen"][key] for key in each.tuning["chosen"]) for each, entry in rows]

    def said(entry: GridEntry, chosen: bool) -> str:
        return "chosen" if chosen else "" if entry["within_limits"] else "beyond the limits"

    columns = [
        Column("group", [bdi(label(each.group)) for each, _ in rows], start=True),
        Column("hypervolume", [_estimate(entry["hypervolume"], digits) for entry in entries]),
        *(Column(key, [setting(entry[key]) for entry in entries]) for key in ("alpha", "beta")),
        Column("schedule", [name(entry["schedule"]) for entry in entries], start=True),
    ]
    for key, head in (("kl", "largest KL, nats"), ("forgetting", "perplexity over SFT's")):
        if any(entry[key] is not None for entry in entries):
            columns.append(Column(head, [number(entry[key], 3) for entry in entries]))
    columns.append(Column("", [said(*each) for each in zip(entries, is_chosen, strict=True)], start=True))
    return Table("Validation hypervolumes", columns, [{"class": "chosen"} if found else {} for found in is_chosen])


def undone_table(content: Content) -> Table | None:
    """LiNeS beside the rewarded soup at the same weights; None if no weights have both."""
    rows = damage_undone(content.front)
    if not rows:
        return None
    base = sft_point(content.front)["perplexity"]["mean"]
    rises = {
        key: [content.by_id[row[key]]["perplexity"]["mean"] / base - 1 for row in rows] for key in ("soup", "point")
    }

    def against(soup: float, lines: float) -> str:
        change = number(100 * abs(lines - soup), 0)
        return f"{change} points more" if lines > soup else f"{change} points less"

    columns = [
        Column("weights", [content.place(content.by_id[row["soup"]]) for row in rows], start=True),
        *(
            Column(head, [f"{signed(100 * rise, 0)} %" for rise in rises[key]])
            for key, head in (("soup", "perplexity under the soup, over SFT's"), ("point", "under LiNeS"))
        ),
        Column("LiNeS forgets", [against(*pair) for pair in zip(*rises.values(), strict=True)], start=True),
    ]
    for reward in content.front["objectives"]:
        head = Markup("<span>share of the soup's gain in {}</span>").format(name(reward))
        columns.append(Column(head, [percent(row["reward_kept"][reward]) for row in rows]))
    return Table("Forgetting and gains of LiNeS beside the rewarded soup", columns)


def benchmarks_table(content: Content) -> Table:
    """What every point that was asked has of a benchmark beyond the SFT model."""
    points = [point for point in content.front["points"] if point["benchmark_changes"]]
    columns = []
    for metric in drawn_metrics(content.front):
        found = [point["benchmark_changes"].get(metric) for point in points]
        digits = decimals(each["value"] for each in found if each)
        columns.append(Column(name(metric), [_estimate(each, digits) for each in found]))
    return Table("Benchmarks less the SFT model's", [_points(content, points), *columns], list(map(_row, points)))


def audit_table(content: Content) -> Table:
    """What the weights of the policies say of them."""
    audit = content.front["audit"]
    policies = audit["policies"]
    first = audit["directions"]
    columns = [
        Column("policy", [name(each["name"]) for each in policies], start=True),
        Column(
            "unlike the others",
            ["" if each["unlike"] is None else "yes" if each["unlike"] else "no" for each in policies],
        ),
        Column("norm", [number(each["norm"], decimals(p["norm"] for p in policies)) for each in policies]),
        Column("of the SFT model's", [percent_of(each["relative_norm"]) for each in policies]),
        Column("mean depth", [number(each["depth"], 2) for each in policies]),
        *(
            Column(
                f"in the first {count} direction{'s' * (count > 1)}",
                [percent(each["spectrum"][k] if each["spectrum"] else None) for each in policies],
            )
            for k, count in enumerate(first)
        ),
        *(
            Column(
                Markup("<span>cosine with {}</span>").format(name(other["name"])),
                [number(row[k], 2) for row in audit["cosine"]],
            )
            for k, other in enumerate(policies)
        ),
        Column("why", [each["reason"] or "" for each in policies], start=True),
    ]
    return Table(
        "Signatures of the policies",
        [column for column in columns if any(c not in ("", NOTHING) for c in column.cells)],
    )


def audit_layers_table(content: Content) -> Table:
    """The norm of every policy's residual by layer, its share of the SFT model's, and the cosine of two."""
    audit = content.front["audit"]
    policies = audit["policies"]
    layers = ["outside" if layer is None else str(layer) for layer in audit["layers"]]
    columns = [Column("layer, from 0", layers, start=True)]
    for policy, short in zip(policies, policy_names([policy["name"] for policy in policies]), strict=True):
        digits = decimals(norm for each in policies for norm in each["norms"])
        norms = [number(norm, digits) for norm in policy["norms"]]
        if policy["relative_norms"] is not None:
            shares = map(percent_of, policy["relative_norms"])
            cell = Markup('<span>{}<span class="range"> {}</span></span>')
            norms = [cell.format(norm, share) for norm, share in zip(norms, shares, strict=True)]
        columns.append(Column(Markup("<span>norm of {}</span>").format(name(short)), norms))
    if len(policies) == 2:
        columns.append(Column("cosine", [number(cosines[0][1], 2) for cosines in audit["layer_cosines"]]))
    return Table("Norms of the policies by layer", columns)


def percent_of(share: float | None) -> str:
    """A share that may be small, in percent."""
    return NOTHING if share is None else f"{100 * share:.2g} %"


def predictions_table(content: Content) -> Table:
    """What was predicted and measured."""
    predictions, by_id = content.predictions, {point["id"]: point for point in content.front["points"]}
    points = [by_id[entry["id"]] for entry in predictions]
    columns = [
        _points(content, points),
        Column("id", [str(point["id"]) for point in points]),
    ]
    for reward, measure in content.rewards.items():
        for key in ("predicted", "measured"):
            head = Markup("<span>{} {}</span>").format(name(reward), key)
            columns.append(Column(head, [number(entry[key].get(reward), measure.digits) for entry in predictions]))
    return Table("Predicted and measured scores", columns, list(map(_row, points)))


def pairs_table(head: str, pairs: Sequence[tuple[str, str]]) -> Table:
    """Names beside their values."""
    return Table(head, [Column(top, [name(pair[k]) for pair in pairs], start=True) for k, top in enumerate((head, ""))])


def badly_table(content: Content) -> Table:
    """What a point does badly, whose numbers the page fills in."""
    lines = badly.lines(content, content.front["points"][0])
    empty = [""] * len(lines)
    columns = [Column("measure", [name(line.measure) for line in lines], start=True)]
    columns += [Column("this policy", [Markup("<span></span> <span class='range'></span>")] * len(lines))]
    columns += [Column("SFT model", empty), Column("verdict", empty, start=True)]
    return Table("What the selected policy does badly", columns)


def _points(content: Content, points: Sequence[PointEntry]) -> Column:
    """Which point a row is of, which stays in sight while the others are scrolled.

    A long name is cut; what tells the points of a group apart stands in a part of its own, which is not.
    """
    cells = [
        _link(
            point,
            Markup('<span class="point"><span>{} {}</span> <span class="place">{}{}</span></span>').format(
                symbol(content.groups[point["group"]]),
                bdi(", ".join(content.names(point))),
                content.place(point),
                " ✓" if point["id"] in content.best else "",
            ),
        )
        for point in points
    ]
    return Column("policy", cells, start=True)


def _link(point: PointEntry, text: Markup) -> Markup:
    """A text that selects a point."""
    return Markup('<a href="#b={}">{}</a>').format(point["id"], text)


def _row(point: PointEntry) -> dict[str, str]:
    """The attributes of a row that stands for a point."""
    return {"data-point": str(point["id"])}


def _rows(content: Content, points: Sequence[PointEntry]) -> list[Mapping[str, str]]:
    """Paper has no room for dominated points, and of many points for those that one would hardly choose."""
    kept = content.best
    if len(points) > PRINTED:
        kept = {point["id"] for point in points if point["group"] == SFT}
        kept |= {point["id"] for point in likely_choices(content.front)}
    return [_row(point) | ({} if point["id"] in kept else {"class": "unprinted"}) for point in points]


def _measured(content: Content, measures: Iterable[Measure], points: Sequence[PointEntry]) -> list[Column]:
    columns = []
    for measure in measures:
        unit = f", {measure.unit}" if measure.unit else ""
        head = Markup("<span>{}{}</span>").format(name(measure.name), unit)
        columns.append(Column(head, [_estimate(measure.of(point), measure.digits) for point in points]))
    return columns


def _settings(content: Content, points: Sequence[PointEntry]) -> list[Column]:
    specs = [point["spec"] for point in points]
    columns = [Column(key, [setting(spec[key]) for spec in specs]) for key in ("alpha", "beta")]
    for key in ("schedule", "rule"):
        if any(point["spec"][key] != "linear" for point in content.front["points"]):
            columns.append(Column(key, [name(spec[key]) for spec in specs], start=True))
    if any(point["preference"] not in (None, point["spec"]["weights"]) for point in content.front["points"]):
        columns.append(Column("weights", [weights(spec["weights"]) for spec in specs]))
    return [*columns, Column("id", [str(point["id"]) for point in points])]


def _groups(content: Content, names: Sequence[str]) -> Column:
    groups = [content.groups[name] for name in names]
    cells = [Markup("<span>{} {}</span>").format(symbol(group), bdi(group.label)) for group in groups]
    return Column("group", cells, start=True)


def _estimate(estimate: Mean | Value | None, digits: int) -> str:
    """An estimate with its interval, which is fainter."""
    cell = Markup('<span>{}<span class="range"> {}</span></span>')
    return NOTHING if estimate is None else cell.format(*estimated(estimate, digits))
