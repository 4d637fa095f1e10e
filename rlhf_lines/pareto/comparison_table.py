"""A comparison of runs as plain text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rlhf_lines.pareto.comparison import MEASURES, RunsComparison, RunsFile
from rlhf_lines.pareto.schema import shortened
from rlhf_lines.pareto.table import WIDTH, decimals, estimate_text


NAME_WIDTH = 28


def comparison_table(comparison: RunsFile) -> str:
    """The comparison as aligned text of at most 110 columns, without a trailing newline.

    First the differences over all runs, then each difference in every run, or, between two sides, each group of every
    run.
    """
    head = "\n".join(map(_wrapped, heading(comparison)))
    return "\n\n".join([head, _over_runs(comparison), _each_run(comparison)])


def heading(comparison: RunsFile) -> list[str]:
    """What was compared, by which intervals, and the notes, a line each."""
    runs = comparison["runs"]
    sizes = sorted({run["prompts"] for run in runs})
    count = " to ".join(dict.fromkeys(str(size) for size in (sizes[0], sizes[-1])))
    sides = [[run["name"] for run in runs if run["side"] == side] for side in "ab"]
    what = f"{len(runs)} runs: {', '.join(sides[0])}"
    what += f" (a) against {', '.join(sides[1])} (b)" if sides[1] else ""
    percent = f"{100 * comparison['confidence']:g} %"
    over = "other runs and other prompts" if len(sides[0]) > 1 else "other prompts, for these policies"
    shared = "the same in all runs, " if comparison["shared_prompts"] == sizes[0] == sizes[-1] else ""
    reference = ", ".join(f"{value:.4g}" for value in comparison["reference_point"])
    return [
        what,
        f"{count} {comparison['split']} prompts, {shared}higher is better; reference point {reference}, "
        f"{comparison['reference_point_rule']}",
        f"{percent} intervals for {over}, unadjusted; verdicts are adjusted for the number of comparisons (Holm)",
        *(f"note: {note}" for note in comparison["notes"]),
    ]


def difference_name(entry: RunsComparison) -> str:
    """What people read for a difference."""
    if entry["a"] == entry["b"]:
        return f"{shortened(entry['a'], NAME_WIDTH)}: a - b"
    return " - ".join(shortened(entry[side], NAME_WIDTH // 2) for side in ("a", "b"))


def positive_text(entry: RunsComparison, measure: str) -> str:
    """In how many runs the difference is above 0."""
    found = entry[f"{measure}_difference"]
    return "-" if found["positive_runs"] is None else f"{found['positive_runs']} of {len(found['runs'])}"


def _over_runs(comparison: RunsFile) -> str:
    entries = comparison["comparisons"]
    columns = [["difference", *map(difference_name, entries)]]
    for measure in MEASURES:
        found = [entry[f"{measure}_difference"]["over_runs"] for entry in entries]
        digits = decimals(each["value"] for each in found)
        columns.append([measure.replace("_", " "), *(estimate_text(each, digits) for each in found)])
        if entries[0]["hypervolume_difference"]["runs"]:
            columns.append(["> 0 in", *(positive_text(entry, measure) for entry in entries)])
    columns.append(["a is", *(entry["verdict"] for entry in entries)])
    return _aligned(columns)


def _each_run(comparison: RunsFile) -> str:
    entries, runs = comparison["comparisons"], comparison["runs"]
    if entries[0]["hypervolume_difference"]["runs"]:
        rows = [(difference_name(entry), run["name"], entry, i) for entry in entries for i, run in enumerate(runs)]
        cells = {m: [entry[f"{m}_difference"]["runs"][i] for *_, entry, i in rows] for m in MEASURES}
        head = "in each run"
    else:
        rows = [(group, f"{run['side']} {run['name']}", run) for group in runs[0]["groups"] for run in runs]
        cells = {m: [run["groups"][group][m] for group, _, run in rows] for m in MEASURES}
        head = "group"
    columns = [[head, *(shortened(row[0], 44) for row in rows)], ["run", *(shortened(row[1], 24) for row in rows)]]
    for measure in MEASURES:
        digits = decimals(each["value"] for each in cells[measure])
        columns.append([measure.replace("_", " "), *(estimate_text(each, digits) for each in cells[measure])])
    return _aligned(columns, left=2)


def _aligned(columns: Sequence[Sequence[str]], left: int = 1) -> str:
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    )


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
