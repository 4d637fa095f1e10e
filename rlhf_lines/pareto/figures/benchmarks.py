"""The picture of the alignment tax: what benchmarks lose or gain against what reward was gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.benchmarks import benchmark_metrics
from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.figures.forgetting import SFT_LINE
from rlhf_lines.pareto.figures.kl import utility
from rlhf_lines.pareto.schema import Front, Group, PointEntry, Value, looks, shortened
from rlhf_lines.pareto.table import interval_name


BETTER = {True: "higher is better", False: "lower is better"}


def plot_benchmarks(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the picture of the alignment tax as PNG or PDF, as the suffix of `path` says, and return its path.

    One panel per metric of a benchmark: to the right the utility to somebody to whom all objectives are the same (of
    one objective its mean score), upwards the metric minus the SFT model's, whose line is across at 0. One marker per
    point that was asked. Points that another point of their group dominates in the objectives are faint and hollow.

    Args:
        front: what `build_front` returns, with `benchmark_changes` of some points.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: no point has changes of a benchmark or the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    points = [point for point in front["points"] if point["benchmark_changes"]]
    if not points:
        raise ValueError("no point of the front was asked a benchmark beside the SFT model; see rlhf-lines evaluate")
    metrics = drawn_metrics(front)
    groups = list(looks(point["group"] for point in points).values())
    with canvas.saved_panels([path, *others], len(metrics), len(groups), beside=0.6) as (figure, panels, columns):
        for panel, metric in zip(panels, metrics, strict=True):
            _draw_panel(panel, front, [p for p in points if metric in p["benchmark_changes"]], groups, metric)
        _draw_legends(figure, front, groups, columns)
    return Path(path)


def drawn_metrics(front: Front) -> list[str]:
    """The metrics of benchmarks of which there are changes, in the order of the benchmarks."""
    known = {name for point in front["points"] for name in point["benchmark_changes"]}
    return [name for name in benchmark_metrics(front) if name in known]


def better_text(front: Front, metric: str) -> str:
    """In which direction a metric is better, where that is known."""
    return BETTER.get(benchmark_metrics(front)[metric], "")


def gained(front: Front, point: PointEntry) -> Any:
    """What a point gained: its utility to somebody to whom all objectives are the same; of one objective its score."""
    if len(front["objectives"]) == 1:
        return point["scores"][front["objectives"][0]]
    return {"mean": utility(front, point), "low": None, "high": None}


def _draw_panel(panel: Any, front: Front, points: Sequence[PointEntry], groups: Sequence[Group], metric: str) -> None:
    panel.axhline(0.0, **SFT_LINE, zorder=2)
    for depth, group in enumerate(reversed(groups), start=3):
        best, dominated = canvas.split_dominated(front, [p for p in points if p["group"] == group.name])
        for drawn, strength in ((dominated, 0.12), (best, 0.4 if group.name in canvas.COMPARED else 0.25)):
            x = [gained(front, point) for point in drawn]
            y = [_as_mean(point["benchmark_changes"][metric]) for point in drawn]
            canvas.draw_points(panel, group, x, y, dominated=drawn is dominated, strength=strength, depth=depth)
    panel.margins(0.09)
    alone = len(front["objectives"]) == 1
    panel.set_xlabel(
        canvas.score_label(front["objectives"][0]) if alone else "utility, objectives alike\nhigher is better"
    )
    notes = ", ".join(filter(None, ["less SFT's", better_text(front, metric)]))
    panel.set_ylabel(f"{shortened(metric, 26)}\n{notes}")
    canvas.plain_axes(panel)


def _as_mean(change: Value) -> Any:
    return {"mean": change["value"], "low": change["low"], "high": change["high"]}


def _draw_legends(figure: Any, front: Front, groups: Sequence[Group], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [canvas.group_handle(group, group.label, joined=False) for group in groups]
    figure.legend(handles=handles, **canvas.UPPER_LEGEND, ncols=columns)
    hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "alpha": 0.6, "markersize": 3}
    keys = {"the SFT model": Line2D([], [], **SFT_LINE), "dominated": Line2D([], [], **canvas.GREY, **hollow)}
    title = f"bars: {interval_name(front)}s over documents"
    figure.legend(keys.values(), keys.keys(), **canvas.LOWER_LEGEND, ncols=2, title=title)
