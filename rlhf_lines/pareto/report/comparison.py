"""The page of runs beside each other: one HTML file without scripts, which needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from rlhf_lines.pareto.comparison import MEASURES, RunsComparison, RunsFile
from rlhf_lines.pareto.comparison_table import difference_name, heading, positive_text
from rlhf_lines.pareto.report.tables import Column, Table, name
from rlhf_lines.pareto.report.words import NOTHING, estimated, number, visible
from rlhf_lines.pareto.schema import Value
from rlhf_lines.pareto.table import decimals


VERDICTS = {
    "better": "better: every measure is higher, and the difference is more than noise",
    "worse": "worse: every measure is lower, and the difference is more than noise",
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
        verdicts=[f"{difference_name(entry)}: {VERDICTS[entry['verdict']]}" for entry in entries],
        heading=heading(comparison),
        over_runs=_over_runs(entries),
        each_run=_each_run(comparison) if entries[0]["hypervolume_difference"]["runs"] else None,
        groups=_groups(comparison),
        runs=_runs(comparison),
        picture=base64.b64encode(Path(picture).read_bytes()).decode(),
        picture_text="Differences of hypervolume in each run and over all runs; the tables have the numbers.",
    )


def _over_runs(entries: Sequence[RunsComparison]) -> Table:
    columns = [Column("difference", [name(difference_name(entry)) for entry in entries], start=True)]
    for measure in MEASURES:
        found = [entry[f"{measure}_difference"]["over_runs"] for entry in entries]
        digits = decimals(each["value"] for each in found)
        parts = [(each["error_of_runs"], each["error_of_prompts"]) for each in found]
        errors = [" / ".join(NOTHING if part is None else number(part, digits) for part in each) for each in parts]
        columns += [
            Column(measure.replace("_", " "), [_estimate(each, digits) for each in found]),
            Column("error of runs / of prompts", errors),
            Column("above 0 in", [positive_text(entry, measure) for entry in entries]),
            Column("adjusted p", [_p_text(each["adjusted_p_value"]) for each in found]),
        ]
    columns.append(Column("a is", [entry["verdict"] for entry in entries], start=True))
    return Table("Differences over all runs", columns)


def _each_run(comparison: RunsFile) -> Table:
    rows = [(entry, i) for entry in comparison["comparisons"] for i in range(len(comparison["runs"]))]
    columns = [
        Column("difference", [name(difference_name(entry)) for entry, _ in rows], start=True),
        Column("run", [name(comparison["runs"][i]["name"]) for _, i in rows], start=True),
        *(_measure(m, [entry[f"{m}_difference"]["runs"][i] for entry, i in rows]) for m in MEASURES),
    ]
    return Table("Differences in each run", columns)


def _groups(comparison: RunsFile) -> Table:
    rows = [(group, run) for group in comparison["runs"][0]["groups"] for run in comparison["runs"]]
    columns = [
        Column("group", [name(group) for group, _ in rows], start=True),
        Column("run", [name(run["name"]) for _, run in rows], start=True),
        Column("points", [str(run["groups"][group]["points"]) for group, run in rows]),
        *(_measure(m, [run["groups"][group][m] for group, run in rows]) for m in MEASURES),
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


def _measure(measure: str, values: Sequence[Value]) -> Column:
    digits = decimals(each["value"] for each in values)
    return Column(measure.replace("_", " "), [_estimate(each, digits) for each in values])


def _estimate(estimate: Value, digits: int) -> str:
    return Markup('<span>{}<span class="range"> {}</span></span>').format(*estimated(estimate, digits))


def _p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else number(p_value, 3)
