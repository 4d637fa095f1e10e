"""The picture of runs beside each other: `comparison.png` and `comparison.pdf`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines.pareto.comparison import Attainment, RunsFile
from rlhf_lines.pareto.comparison_table import difference_name
from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.figures.front import staircase, staircase_height
from rlhf_lines.pareto.schema import LINES, SOUP, label, looks, shortened


PANEL_INCHES = 2.7  # high
SIDE_LOOKS = (("#0072B2", ()), ("#D55E00", (6.0, 1.5)))
SIGNS = ("#D55E00", "#0072B2")  # where b, and where a is attained by more runs


class _Curve(NamedTuple):
    label: str
    attainment: Attainment
    colour: str
    dashes: tuple[float, ...]
    shaded: bool


def plot_comparison(comparison: RunsFile, path: str | Path, *others: str | Path) -> Path:
    """Write the picture of a comparison as PNG or PDF, as the suffixes say, and return `path`.

    For two objectives: what the fronts of half of the runs attain, shaded between what all and what any of them attain;
    and, of the first comparison, where more runs of one side attain a pair of scores. For any number of objectives: the
    difference of hypervolume in every run, and the mean with its interval.

    Args:
        comparison: what `compare_runs` returns.
        path: file to write; its folder must exist.
        others: further files of the same picture.
    """
    curves, first = _curves(comparison), comparison["comparisons"][0]
    panels = [(_draw_attainment, curves)] if curves else []
    if first["attainment_difference"]:
        panels.append((_draw_difference, first))
    panels.append((_draw_runs, comparison["comparisons"]))
    with canvas.saved_figure([path, *others], (canvas.COLUMN_INCHES, PANEL_INCHES * len(panels))) as figure:
        for panel, (draw, drawn) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            draw(panel, comparison, drawn)
            canvas.plain_axes(panel)
    return Path(path)


def _curves(comparison: RunsFile) -> list[_Curve]:
    attainment = comparison["attainment"]
    if attainment is None:
        return []
    if "b" in attainment:
        group = comparison["comparisons"][0]["a"]
        return [
            _Curve(f"{label(group)}, {side}", attainment[side][group], *SIDE_LOOKS[side == "b"], True) for side in "ab"
        ]
    groups = looks(attainment["a"])
    return [
        _Curve(look.label, attainment["a"][name], look.colour, look.dashes, name in (LINES, SOUP))
        for name, look in groups.items()
    ]


def _draw_attainment(panel: Any, comparison: RunsFile, curves: Sequence[_Curve]) -> None:
    import numpy as np

    reference = comparison["reference_point"]
    for depth, curve in enumerate(reversed(curves)):
        outer, inner = curve.attainment["best"], curve.attainment["worst"]
        if curve.shaded:
            x = np.unique([max(float(x), reference[0]) for x, _ in [*outer, *inner]] + [reference[0]])
            low, high = (staircase_height(corners, x, reference[1]) for corners in (inner, outer))
            panel.fill_between(x, low, high, step="pre", color=curve.colour, alpha=0.15, linewidth=0, zorder=1)
        if edge := staircase(curve.attainment["median"], reference):
            look = {"color": curve.colour, "linewidth": 1.2, "linestyle": canvas.line_style(curve.dashes)}
            panel.step(*zip(*edge, strict=True), where="pre", label=curve.label, zorder=3 + depth, **look)
    _name_objectives(panel, comparison)
    panel.set_title("attained by half of the runs (shaded: all to any)", fontsize=canvas.POINTS, color=canvas.INK)
    handles = panel.get_legend_handles_labels()[0][::-1]  # what is listed first lies on top, and was drawn last
    panel.legend(
        handles=handles,
        frameon=False,
        fontsize=canvas.POINTS,
        labelcolor=canvas.INK,
        loc="lower left",
        handlelength=2.6,
    )


def _draw_difference(panel: Any, comparison: RunsFile, entry: Any) -> None:
    from matplotlib.patches import Rectangle

    for x0, y0, x1, y1, share in entry["attainment_difference"]:
        look = {"color": SIGNS[share > 0], "alpha": 0.15 + 0.65 * abs(share), "linewidth": 0}
        panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **look))
    handles = [
        Rectangle((0, 0), 1, 1, color=colour, alpha=0.8, linewidth=0, label=f"more runs of {name}")
        for colour, name in zip(reversed(SIGNS), _sides(entry), strict=True)
    ]
    panel.autoscale_view()
    _name_objectives(panel, comparison)
    panel.set_title(f"attained: {difference_name(entry)}", fontsize=canvas.POINTS, color=canvas.INK)
    panel.legend(handles=handles, frameon=False, fontsize=canvas.POINTS, labelcolor=canvas.INK, loc="lower left")


def _draw_runs(panel: Any, comparison: RunsFile, entries: Sequence[Any]) -> None:
    from matplotlib.transforms import blended_transform_factory

    panel.axvline(0.0, color=canvas.FAINT_INK, linewidth=1.0, linestyle="dotted")
    beside_axis = blended_transform_factory(panel.transAxes, panel.transData)
    for row, entry in enumerate(entries):
        found = entry["hypervolume_difference"]
        values = [run["corrected"] for run in found["runs"]]
        panel.plot(values, [row + 0.14] * len(values), "o", markersize=3, color=SIGNS[1], alpha=0.5, linestyle="none")
        if found["low"] is not None:
            panel.plot([found["low"], found["high"]], [row, row], color=canvas.INK, linewidth=1.0)
        panel.plot(found["corrected"], row, "D", markersize=4, color=canvas.INK)
        name = difference_name(entry)
        panel.text(0.0, row - 0.2, name, transform=beside_axis, fontsize=canvas.POINTS, color=canvas.INK, va="bottom")
    panel.set_ylim(len(entries) - 0.5, -0.6)
    panel.set_yticks([])
    percent = f"{100 * comparison['confidence']:g} %"
    dots = "a dot per run, " if entries[0]["hypervolume_difference"]["runs"] else ""
    panel.set_xlabel(f"difference of hypervolume\n{dots}mean with {percent} interval")


def _name_objectives(panel: Any, comparison: RunsFile) -> None:
    x, y = (shortened(objective, 34) for objective in comparison["objectives"])
    panel.set_xlabel(f"{x}\nmean score, higher is better")
    panel.set_ylabel(f"{y}\nmean score, higher is better")


def _sides(entry: Any) -> tuple[str, str]:
    return ("a", "b") if entry["a"] == entry["b"] else (label(entry["a"]), label(entry["b"]))
