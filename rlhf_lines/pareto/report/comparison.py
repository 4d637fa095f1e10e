"""The page of runs beside each other: one HTML file without scripts, which needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.comparison import RunsComparison, RunsDifference, RunsFile
from rlhf_lines.pareto.comparison_table import difference_name, heading, measured, of_each_run, positive_text
from rlhf_lines.pareto.headline import without_equal_kl
from rlhf_lines.pareto.report.tables import Column, Table, name
from rlhf_lines.pareto.report.words import NOTHING, estimated, number, visible
from rlhf_lines.pareto.schema import GroupMeasure, label
from rlhf_lines.pareto.table import MEASURES, decimals, p_text, value_of


VERDICTS = {
    "better": "better: every measure is higher, and the difference is more than noise",
    "worse": "worse: every measure is lower, and the difference is more than noise",
    "higher": "higher by every measure that was compared, and the difference is more than noise",
    "lower": "lower by every measure that was compared, and the difference is more than noise",
    "mixed": "mixed: the measures do not agree",
    "undecided": "undecided: no measure differs by more than noise",
}


def comparison_html(comparison: RunsFile, picture: str | Path) -> str:
    """The comparison as one HTML page; what users and models named is shown as text.

    Args:
        comparison: what `compare_runs` returns.
        picture: the PNG that `plot_comparison` wrote.
    """
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    template = files("rlhf_lines.pareto.report").joinpath("comparison.html").read_text(encoding="utf-8")
    entries = comparison["comparisons"]
    return environment.from_string(template).render(
        title=f"{len(comparison['runs'])} runs compared",
        verdicts=[f"{difference_name(entry)}: {_said(entry)}" for entry in entries],
        heading=heading(comparison),
        over_runs=_over_runs(comparison),
        each_run=_each_run(comparison) if of_each_run(comparison) else None,
        groups=_groups(comparison),
        runs=_runs(comparison),
        picture=base64.b64encode(Path(picture).read_bytes()).decode(),
        picture_text="Differences of hypervolume in each run and over all runs; the tables have the numbers.",
    )


def _said(entry: RunsComparison) -> str:
    return "; ".join(filter(None, [VERDICTS[entry["verdict"]], without_equal_kl(entry)]))


def _over_runs(comparison: RunsFile) -> Table:
    entries = comparison["comparisons"]
    columns = [
        Column("difference", [name(difference_name(entry)) for entry in entries], start=True),
        Column("verdict", [entry["verdict"] for entry in entries], start=True),
    ]
    for measure, found in measured(comparison).items():
        columns += [
            _estimates(comparisons.MEASURES[measure], found),
            Column("error of runs / of prompts", _errors(found)),
            Column("above 0 in", [positive_text(each) for each in found]),
            Column("adjusted p", [p_text(each and each["adjusted_p_value"]) for each in found]),
        ]
    return Table("Differences over all runs", columns)


def _errors(found: Sequence[RunsDifference | None]) -> list[str]:
    digits = decimals(value_of(each) for each in found if each is not None)
    parts = [each and (each["error_of_runs"], each["error_of_prompts"]) for each in found]
    return [" / ".join(number(part, digits) for part in each) if each else NOTHING for each in parts]


def _each_run(comparison: RunsFile) -> Table:
    runs = comparison["runs"]
    rows = [(entry, i) for entry in comparison["comparisons"] for i in range(len(runs))]
    columns = [
        Column("difference", [name(difference_name(entry)) for entry, _ in rows], start=True),
        Column("run", [name(runs[i]["name"]) for _, i in rows], start=True),
    ]
    for measure in measured(comparison):
        found = [entry[f"{measure}_difference"] for entry, _ in rows]
        each = [difference and difference["runs"][i] for difference, (_, i) in zip(found, rows, strict=True)]
        columns.append(_estimates(comparisons.MEASURES[measure], each))
    budgets = [entry["kl_budgets"] and entry["kl_budgets"][i] for entry, i in rows]
    if any(budgets):
        texts = [NOTHING if pair is None else " to ".join(number(k, 2) for k in pair) for pair in budgets]
        columns.append(Column("KL, nats", texts))
    return Table("Differences in each run", columns)


def _groups(comparison: RunsFile) -> Table:
    rows = [(group, run) for group in comparison["runs"][0]["groups"] for run in comparison["runs"]]
    columns = [
        Column("group", [name(label(group)) for group, _ in rows], start=True),
        Column("run", [name(run["name"]) for _, run in rows], start=True),
        Column("points", [str(run["groups"][group]["points"]) for group, run in rows]),
        *(_estimates(comparisons.MEASURES[m], [run["groups"][group][m] for group, run in rows]) for m in MEASURES),
    ]
    return Table("Groups of each run", columns)


def _runs(comparison: RunsFile) -> Table:
    runs = comparison["runs"]
    columns = [
        Column("side", [run["side"] for run in runs], start=True),
        Column("run", [name(run["name"]) for run in runs], start=True),
        Column("folder", [name(run["folder"]) for run in runs], start=True),
        Column("prompts", [str(run["prompts"]) for run in runs]),
        Column("samples per prompt", [str(run["samples_per_prompt"]) for run in runs]),
        Column("policies", [name(", ".join(run["policies"])) for run in runs], start=True),
    ]
    return Table("Runs", columns)


def _estimates(head: str, found: Sequence[GroupMeasure | None]) -> Column:
    digits = decimals(value_of(each) for each in found if each is not None)
    cell = Markup('<span>{}<span class="range"> {}</span></span>')
    return Column(head, [NOTHING if each is None else cell.format(*estimated(each, digits)) for each in found])
