"""What all figures share: how they are saved, and the looks of marks, labels and legends.

They are drawn without pyplot and its global state, and saved as PNG or PDF, the same bytes every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import whole_file
from rlhf_lines.pareto.schema import LINES, SOUP, Front, Group, Mean, PointEntry, nondominated, shortened
from rlhf_lines.pareto.table import interval_name


INK, FAINT_INK, GRID = "#222222", "#666666", "#E4E4E4"
GREY = {"color": FAINT_INK}  # of marks that belong to no group
COMPARED = (SOUP, LINES)  # hulls of the ablations too would cover them
# Of a column and of both columns of a page, as most venues set them: figures are printed as they are, and no text in
# them is smaller than POINTS.
COLUMN_INCHES, PAGE_INCHES = 3.25, 6.75
PANEL_INCHES = 2.7  # high
POINTS = 8
LEGEND_ROW_INCHES = 0.17
_LEGEND = {"alignment": "left", "frameon": False, "labelcolor": INK, "fontsize": POINTS, "title_fontsize": POINTS}
_LEGEND |= {"handletextpad": 0.5, "columnspacing": 1.2, "labelspacing": 0.3, "borderpad": 0.1}
UPPER_LEGEND = {**_LEGEND, "loc": "outside upper left", "handlelength": 2.6}
LOWER_LEGEND = {**_LEGEND, "loc": "outside lower left", "handlelength": 1.8}
SUFFIXES = (".png", ".pdf")
DPI = 400
# A name with dollar signs is a name, not a formula. Type 42 keeps text in a PDF selectable, as journals ask.
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": POINTS,
    "lines.linewidth": 1.0,
    "text.parse_math": False,
    "pdf.fonttype": 42,
}


@contextmanager
def saved_panels(
    paths: Sequence[str | Path], count: int, groups: int, *, beside: float
) -> Iterator[tuple[Any, Sequence[Any], int]]:
    """As `saved_figure`, with panels up to three abreast: yield the figure, its `count` panels, the legend's columns.

    Args:
        paths: as for `saved_figure`.
        count: of panels.
        groups: entries of the legend.
        beside: inches that the figure is higher than panels and legend.
    """
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    legend_columns = min(groups, 2 if columns == 1 else 3)
    height = PANEL_INCHES * rows + LEGEND_ROW_INCHES * math.ceil(groups / legend_columns) + beside
    with saved_figure(paths, (COLUMN_INCHES if columns == 1 else PAGE_INCHES, height)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[count:]:
            panel.set_axis_off()
        yield figure, panels[:count], legend_columns


@contextmanager
def saved_figure(paths: Sequence[str | Path], inches: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty matplotlib figure of this width and height, and save it when the block ends without an error.

    The suffix of each path says its format. The files hold no date.

    Raises:
        ValueError: a suffix is neither `.png` nor `.pdf`.
        FileNotFoundError: the folder of a path does not exist.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"cannot draw {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot draw {path}: {path.parent} is not a folder; create it or check the path")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=inches, dpi=DPI, facecolor="white", layout="constrained")
        yield figure
        for path in paths:
            suffix = path.suffix.lower()
            dates = {"CreationDate": None} if suffix == ".pdf" else {}
            with whole_file(path) as hidden:
                figure.savefig(hidden, format=suffix[1:], dpi=DPI, metadata=dates)
            figure.set_layout_engine("none")  # the next format keeps the places that were found for the first


def plain_axes(panel: Any) -> None:
    """Give a panel the look that all panels share: a faint grid behind the data and only two spines."""
    panel.grid(color=GRID, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(colors=FAINT_INK, labelsize=POINTS, length=2, width=0.6)
    for name in ("xaxis", "yaxis"):
        getattr(panel, name).label.set(color=INK, fontsize=POINTS, linespacing=1.2)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#AAAAAA")


def score_label(reward: str) -> str:
    """The label of an axis of scores in two lines."""
    return f"{shortened(reward, 26)}\nmean score, higher is better"


def bars_text(front: Front) -> str:
    """What the bars of points are."""
    prompts = max(point["prompts"] for point in front["points"])
    return f"bars: {interval_name(front)}s over {prompts} prompts"


def score_limits(front: Front, reward: str) -> tuple[float, float]:
    """The ends of every axis of a reward, so that figures beside each other can be compared.

    They hold all points with their intervals, and the reference point.
    """
    k = front["rewards"].index(reward)
    scores = [point["scores"][reward] for point in front["points"]]
    ends = [score[end] for score in scores for end in ("low", "mean", "high") if score[end] is not None]
    low, high = min([*ends, front["reference_point"][k]]), max(ends)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def split_dominated(front: Front, points: Sequence[PointEntry]) -> tuple[list[PointEntry], list[PointEntry]]:
    """The points that no point of their group dominates, and the others; a group without a front has none."""
    best = nondominated(front)
    best |= {point["id"] for point in points if point["group"] not in front["fronts"]}
    return [point for point in points if point["id"] in best], [point for point in points if point["id"] not in best]


def bar_lengths(estimates: Sequence[Mean]) -> list[list[float]]:
    """The lengths of bars below and above the means; 0 without an interval and where one misses its own mean."""
    return [
        [0.0 if each[end] is None else max(0.0, sign * (each[end] - each["mean"])) for each in estimates]
        for end, sign in (("low", -1.0), ("high", 1.0))
    ]


def draw_points(
    panel: Any, group: Group, x: Sequence[Mean], y: Sequence[Mean], *, dominated: bool, strength: float, depth: int
) -> None:
    """Draw points with their intervals, as opaque as `strength`; those that are dominated are faint and hollow."""
    hollow = {"markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.6, "alpha": 0.4}
    means = [[estimate["mean"] for estimate in estimates] for estimates in (x, y)]
    bars = {"xerr": bar_lengths(x), "yerr": bar_lengths(y), "ecolor": group.colour, "elinewidth": 0.6}
    panel.errorbar(x=means[0], y=means[1], **bars, linestyle="none", alpha=strength, zorder=depth + 0.2)
    dots = {"linestyle": "none", "marker": group.marker, "color": group.colour}
    look, above = (hollow, 0.3) if dominated else (solid_marker(group), 0.4)
    panel.plot(*means, **dots, **look, zorder=depth + above)


def line_style(dashes: tuple[float, ...]) -> Any:
    """The style of a line, as matplotlib takes it."""
    return (0, dashes) if dashes else "solid"


def solid_marker(group: Group) -> dict[str, Any]:
    """The size and edge of the marker of a nondominated point; a star looks smaller than it is."""
    return {"markersize": 8 if group.marker == "*" else 4, "markeredgecolor": "white", "markeredgewidth": 0.4}


def group_handle(group: Group, text: str, *, joined: bool) -> Any:
    """The entry of a group in a legend: its marker, with its line if its points are joined."""
    from matplotlib.lines import Line2D

    line = {"linestyle": line_style(group.dashes) if joined else "none", "linewidth": 1.2}
    return Line2D([], [], color=group.colour, marker=group.marker, **solid_marker(group), **line, label=text)
