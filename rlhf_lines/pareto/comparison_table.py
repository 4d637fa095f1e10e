"""A comparison of runs as plain text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.comparison import RunsComparison, RunsDifference, RunsFile
from rlhf_lines.pareto.schema import GroupMeasure, label, shortened
from rlhf_lines.pareto.table import (
    MEASURES,
    WIDTH,
    align,
    decimals,
    estimate_text,
    few_prompts_text,
    in_blocks,
    not_at_equal_kl,
    p_text,
    value_of,
)


NAME_WIDTH = 28


def comparison_table(comparison: RunsFile) -> str:
    """The comparison as aligned text of at most 110 columns, without a trailing newline.

    First the differences over all runs, then each difference in every run, or, between two sides, each group of every
    run.
    """
    head = "\n".join(map(_wrapped, heading(comparison)))
    each = _each_run(comparison) if of_each_run(comparison) else _groups(comparison)
    return "\n\n".join([head, *_over_runs(comparison), *each])


def heading(comparison: RunsFile) -> list[str]:
    """What was compared, by which intervals, and the notes, a line each."""
    runs = comparison["runs"]
    sizes = sorted({run["prompts"] for run in runs})
    count = " to ".join(dict.fromkeys(str(size) for size in (sizes[0], sizes[-1])))
    sides = [[run["name"] for run in runs if run["side"] == side] for side in "ab"]
    what = f"{len(runs)} runs: {', '.join(sides[0])}"
    what += f" (a) against {', '.join(sides[1])} (b)" if sides[1] else ""
    percent = f"{100 * comparison['confidence']:zg} %"
    over = "other runs and other prompts" if len(sides[0]) > 1 else "other prompts, for these policies"
    shared = "the same in all runs, " if comparison["shared_prompts"] == sizes[0] == sizes[-1] else ""
    reference = ", ".join(f"{value:z.4g}" for value in comparison["reference_point"])
    return [
        what,
        f"{count} {comparison['split']} prompts, {shared}higher is better; reference point {reference}, "
        f"{comparison['reference_point_rule']}",
        f"{percent} intervals for {over}; p is adjusted (Holm) by each measure for "
        f"{comparisons.adjusted_for(comparison['comparisons'])}; intervals are not; verdicts are by all measures",
        *filter(None, [few_prompts_text(sizes[0])]),
        *(f"note: {note}" for note in comparison["notes"]),
    ]


def difference_name(entry: RunsComparison) -> str:
    """What people read for a difference."""
    if entry["a"] == entry["b"]:
        return f"{label(entry['a'])}: a - b"
    return " - ".join(shortened(label(entry[side]), NAME_WIDTH // 2) for side in ("a", "b"))


def of_each_run(comparison: RunsFile) -> bool:
    """Whether there are differences in single runs: between two sides there are none."""
    return bool(comparison["comparisons"][0]["hypervolume_difference"]["runs"])


def measured(comparison: RunsFile) -> dict[str, list[RunsDifference | None]]:
    """By measure, the differences of all comparisons; only measures that some of them have."""
    entries = comparison["comparisons"]
    found = {m: [entry[f"{m}_difference"] for entry in entries] for m in comparisons.MEASURES}
    return {m: each for m, each in found.items() if any(each)}


def positive_text(difference: RunsDifference | None) -> str:
    """In how many runs a difference is above 0."""
    if difference is None or difference["positive_runs"] is None:
        return "-"
    return f"{difference['positive_runs']} of {len(difference['runs'])}"


def _over_runs(comparison: RunsFile) -> list[str]:
    entries, counted = comparison["comparisons"], of_each_run(comparison)
    fixed = [["difference", "verdict"], *([difference_name(entry), entry["verdict"]] for entry in entries)]
    columns = []
    for measure, found in measured(comparison).items():
        parts = [
            [comparisons.MEASURES[measure], *_texts(found)],
            ["p", *(p_text(each and each["adjusted_p_value"]) for each in found)],
            *([["> 0 in", *map(positive_text, found)]] if counted else []),
        ]
        columns.append(align(list(zip(*parts, strict=True)), left=0).splitlines())
    reasons = not_at_equal_kl({difference_name(entry): entry["no_equal_kl"] for entry in entries})
    return [*in_blocks(fixed, columns, left=2), *map(_wrapped, reasons)]


def _each_run(comparison: RunsFile) -> list[str]:
    runs = comparison["runs"]
    rows = [(difference_name(entry), run["name"]) for entry in comparison["comparisons"] for run in runs]
    fixed = [["in each run", "run"], *([shortened(name, 44), shortened(run, 24)] for name, run in rows)]
    columns = []
    for measure, found in measured(comparison).items():
        each = [run for difference in found for run in (difference["runs"] if difference else [None] * len(runs))]
        columns.append([comparisons.MEASURES[measure], *_texts(each)])
    return in_blocks(fixed, columns, left=2)


def _groups(comparison: RunsFile) -> list[str]:
    runs = comparison["runs"]
    rows = [(group, run) for group in runs[0]["groups"] for run in runs]
    fixed = [["group", "run"], *([label(g), shortened(f"{run['side']} {run['name']}", 24)] for g, run in rows)]
    columns = [[comparisons.MEASURES[m], *_texts([run["groups"][g][m] for g, run in rows])] for m in MEASURES]
    return in_blocks(fixed, columns, left=2)


def _texts(estimates: Sequence[GroupMeasure | None]) -> list[str]:
    digits = decimals(value_of(each) for each in estimates if each is not None)
    return ["-" if each is None else estimate_text(each, digits) for each in estimates]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
