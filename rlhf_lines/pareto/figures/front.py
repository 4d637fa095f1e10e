"""The picture of a front: `front.png` and `front.pdf`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto import style
from rlhf_lines.pareto.figures.canvas import plain_axes, saved_figure
from rlhf_lines.pareto.style import FAINT_INK, INK
from rlhf_lines.pareto.table import decimals, estimate_text


# The groups that a sweep compares. Hulls and bands of the controls too would cover them.
COMPARED = ("rewarded_soup", "lines")
BAND = ("0.025", "0.975")
PANEL_INCHES = (8.75, 6.25)  # 1400 x 1000 pixels
SMALL_PANEL_INCHES = (5.5, 4.6)
LEGEND_ROW_INCHES = 0.24
_LEGEND = {"alignment": "left", "frameon": False, "labelcolor": INK}
UPPER_LEGEND = {**_LEGEND, "loc": "outside upper left", "fontsize": 10.5, "title_fontsize": 10.5, "handlelength": 3.4}
LOWER_LEGEND = {**_LEGEND, "loc": "outside lower left", "fontsize": 9}


def plot_front(front: Mapping[str, Any], path: str | Path, *others: str | Path) -> Path:
    """Write the picture of a front as PNG or PDF, as the suffix of `path` says, and returns its path.

    Two rewards give one panel, more give one panel for each pair. Only points that no other point of their group
    dominates are joined: the staircase is the edge of the region whose area is the hypervolume. Dominated points are
    drawn faint and hollow. Bars are the intervals of the file. Of LiNeS and the rewarded soup also the convex hull and
    the band between the fronts that 97.5 % and 2.5 % of the resamples attain are drawn, where the file has them. With
    more than two rewards a nondominated point can lie anywhere in a panel, so panels of pairs show points alone.

    Args:
        front: what `build_front` returns.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: the front has fewer than two rewards or the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    rewards = list(front["rewards"])
    if len(rewards) < 2:
        raise ValueError(f"the front has the rewards {rewards}; a picture needs at least two rewards")
    pairs = list(combinations(rewards, 2))
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    groups = style.ordered(point["group"] for point in front["points"])
    width = PANEL_INCHES[0] if columns == 1 else SMALL_PANEL_INCHES[0] * columns
    height = PANEL_INCHES[1] if columns == 1 else SMALL_PANEL_INCHES[1] * rows + 1.2
    # An entry takes about four inches. A panel loses no height to a legend of more than two rows.
    legend_columns = min(len(groups), max(2, int(width / 4)))
    height += LEGEND_ROW_INCHES * max(0, math.ceil(len(groups) / legend_columns) - 2)
    with saved_figure([path, *others], (width, height)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, pair in zip(panels, pairs, strict=False):
            _draw_panel(panel, front, pair, staircase=len(rewards) == 2)
        for panel in panels[len(pairs) :]:
            panel.set_axis_off()
        _draw_legend(figure, front, groups, legend_columns, staircase=len(rewards) == 2)
    return Path(path)


def staircase_height(corners: Sequence[Sequence[float]], x: ArrayLike, floor: float) -> NDArray[np.float64]:
    """The upper edge at `x` `[m]` of the region below some corner `(x, y)`, and `floor` where none is.

    >>> staircase_height([(1.0, 3.0), (2.0, 1.0)], [0.5, 1.0, 1.5, 2.0, 2.5], floor=0.0).tolist()
    [3.0, 3.0, 1.0, 1.0, 0.0]
    """
    x = np.asarray(x, dtype=np.float64)
    heights = np.full(x.shape, float(floor))
    for right, top in corners:
        heights = np.where(x <= right, np.maximum(heights, top), heights)
    return heights


def _draw_panel(panel: Any, front: Mapping[str, Any], pair: tuple[str, str], *, staircase: bool) -> None:
    groups = style.ordered(point["group"] for point in front["points"])
    for depth, group in enumerate(reversed(groups)):  # what is listed first lies on top
        _draw_group(panel, front, group, pair, 3 + depth, staircase=staircase)
    panel.margins(0.09)
    _label_policies(panel, front, pair)
    panel.set_xlabel(score_label(front, pair[0]))
    panel.set_ylabel(score_label(front, pair[1]))
    plain_axes(panel)


def score_label(front: Mapping[str, Any], reward: str) -> str:
    """The label of an axis of scores in three lines: the reward, what the numbers are, what their bars are."""
    prompts = max(point["prompts"] for point in front["points"])
    interval = f"{100 * front['confidence']:g} % interval" if "confidence" in front else "interval"
    return f"{style.shortened(reward, 48)}\nmean score, higher is better\n{interval} over {prompts} prompts"


def _draw_group(
    panel: Any, front: Mapping[str, Any], group: str, pair: tuple[str, str], depth: int, *, staircase: bool
) -> None:
    groups = [point["group"] for point in front["points"]]
    colour, marker = style.colour(group, groups), style.marker(group, groups)
    points = [point for point in front["points"] if point["group"] == group]
    best, dominated = split_dominated(front, points)
    entry = front["fronts"].get(group)
    if entry is not None and staircase:
        if group in COMPARED and entry.get("attainment"):
            _draw_band(panel, entry["attainment"], front["reference_point"], colour)
        if group in COMPARED and entry.get("hull"):
            _draw_hull(panel, points, entry["hull"], pair, colour, depth)
        _draw_staircase(panel, best, pair, front["reference_point"], colour, style.dashes(group, groups), depth)
    bars = {"linestyle": "none", "ecolor": colour, "elinewidth": 1.0, "capsize": 0}
    dots = {"linestyle": "none", "marker": marker, "color": colour}
    for drawn, strength in ((best, 0.45 if group in COMPARED else 0.25), (dominated, 0.12)):
        panel.errorbar(**coordinates(drawn, pair), **bars, alpha=strength, zorder=depth + 0.2)
    x, y = _means(dominated, pair)
    panel.plot(x, y, **dots, markersize=5.5, markerfacecolor="white", alpha=0.4, zorder=depth + 0.3)
    x, y = _means(best, pair)
    panel.plot(x, y, **dots, **solid_marker(marker), zorder=depth + 0.4)


def solid_marker(marker: str) -> dict[str, Any]:
    return {"markersize": 13 if marker == "*" else 7.5, "markeredgecolor": "white", "markeredgewidth": 0.9}


def split_dominated(
    front: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The points that no point of their group dominates, and the others; a group without a front has none."""
    best = {i for entry in front["fronts"].values() for i in entry["nondominated"]}
    alone = {point["id"] for point in points if point["group"] not in front["fronts"]}
    return (
        [point for point in points if point["id"] in best | alone],
        [point for point in points if point["id"] not in best | alone],
    )


def _draw_staircase(
    panel: Any,
    best: Sequence[Any],
    pair: tuple[str, str],
    reference: Sequence[float],
    colour: str,
    dashes: tuple[float, ...],
    depth: int,
) -> None:
    """Draw the edge of what the points dominate, down to the reference point: the area inside is the hypervolume."""
    corners = sorted(zip(*_means(best, pair), strict=True))
    # A point that does not exceed the reference point in both rewards adds no area.
    corners = [(x, y) for x, y in corners if x > reference[0] and y > reference[1]]
    if not corners:
        return
    x = [reference[0], *(x for x, _ in corners), corners[-1][0]]
    y = [corners[0][1], *(y for _, y in corners), reference[1]]
    panel.step(x, y, where="pre", color=colour, linewidth=2.0, zorder=depth, linestyle=line_style(dashes))


def _draw_band(panel: Any, attainment: Mapping[str, Any], reference: Sequence[float], colour: str) -> None:
    """Shades between the fronts that nearly all and hardly any of the resampled fronts attain."""
    outer, inner = (attainment[level] for level in BAND)
    x = np.unique([max(float(x), reference[0]) for x, _ in [*outer, *inner]] + [reference[0]])
    low, high = (staircase_height(corners, x, reference[1]) for corners in (inner, outer))
    panel.fill_between(x, low, high, step="pre", color=colour, alpha=0.15, linewidth=0, zorder=1)


def _draw_hull(
    panel: Any, points: Sequence[Any], hull: Sequence[int], pair: tuple[str, str], colour: str, depth: int
) -> None:
    """Joins the points that are best for some preference, in ascending order of the first reward."""
    by_id = {point["id"]: point for point in points}
    x, y = _means([by_id[i] for i in hull], pair)
    panel.plot(x, y, color=colour, linewidth=0.9, linestyle=line_style((3.0, 2.0)), marker="none", zorder=depth + 0.1)


def line_style(dashes: tuple[float, ...]) -> Any:
    return (0, dashes) if dashes else "solid"


def _means(points: Sequence[Mapping[str, Any]], pair: tuple[str, str]) -> tuple[list[float], list[float]]:
    x, y = ([point["scores"][reward]["mean"] for point in points] for reward in pair)
    return x, y


def coordinates(points: Sequence[Mapping[str, Any]], pair: tuple[str, str]) -> dict[str, list[Any]]:
    """Positions and bar lengths for matplotlib; an interval that misses its own mean has a bar of length 0."""
    drawn: dict[str, list[Any]] = {}
    drawn["x"], drawn["y"] = _means(points, pair)
    for axis, reward in zip("xy", pair, strict=True):
        drawn[f"{axis}err"] = bar_lengths([point["scores"][reward] for point in points])
    return drawn


def bar_lengths(estimates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """The lengths of interval bars below and above the means, as matplotlib takes them."""
    return [
        [max(0.0, estimate["mean"] - estimate["low"]) for estimate in estimates],
        [max(0.0, estimate["high"] - estimate["mean"]) for estimate in estimates],
    ]


def _label_policies(panel: Any, front: Mapping[str, Any], pair: tuple[str, str]) -> None:
    """Names the points that are one policy, towards the dominated side, where the front itself is not."""
    for point in front["points"]:
        name = style.single_policy(front, point)
        if name is not None:
            x, y = (point["scores"][reward]["mean"] for reward in pair)
            low, high = panel.get_xlim()
            place = ((-26, -14), "right") if x > (low + high) / 2 else ((20, -46), "left")
            annotate(panel, name, (x, y), *place)


def annotate(
    panel: Any,
    text: str,
    point: tuple[float, float],
    place: tuple[float, float],
    align: str,
    of: Any = "offset points",
) -> Any:
    """Write `text` about a point of the rewarded soup at `place`, on a white halo, joins the two, and returns it.

    `of` says of which coordinates `place` is, as matplotlib takes them; by default points from the point.
    """
    from matplotlib.patheffects import withStroke

    colour = style.COLOURS["rewarded_soup"]
    from_the_point = of == "offset points"
    corner = (0.5, 0.5) if from_the_point else (1.0 if align == "right" else 0.0, 0.0)
    return panel.annotate(
        text,
        point,
        xytext=place,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 5, "relpos": corner},
        textcoords=of,
        ha=align,
        fontsize=10,
        color=colour,
        zorder=20,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _draw_legend(
    figure: Any, front: Mapping[str, Any], groups: Sequence[str], columns: int, *, staircase: bool
) -> None:
    """Draw the groups with their hypervolumes above the panels, and what the other marks mean below them."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    fronts = front["fronts"]
    digits = decimals([entry["hypervolume"]["value"] for entry in fronts.values()])
    handles = []
    for group in groups:
        text, joined = style.label(group), group in fronts and staircase
        if group in fronts:
            text += f"  {estimate_text(fronts[group]['hypervolume'], digits)}"
        handles.append(group_handle(group, groups, text, joined=joined))
    title = f"hypervolume, {100 * front['confidence']:g} % interval" if "confidence" in front else "hypervolume"
    figure.legend(handles=handles, **UPPER_LEGEND, ncols=columns, title=title)

    grey = {"color": FAINT_INK}
    hollow = Line2D([], [], **grey, linestyle="none", marker="o", markerfacecolor="white", alpha=0.6, markersize=5.5)
    keys = {"dominated within its group": hollow}
    compared = [fronts[group] for group in COMPARED if group in fronts and staircase]
    if any(entry.get("hull") for entry in compared):
        keys["convex hull"] = Line2D([], [], **grey, linewidth=0.9, linestyle=line_style((3.0, 2.0)))
    if any(entry.get("attainment") for entry in compared):
        keys["where 95 % of the resampled fronts run"] = Patch(**grey, alpha=0.25, linewidth=0)
    figure.legend(keys.values(), keys.keys(), **LOWER_LEGEND, ncols=3)


def group_handle(group: str, groups: Sequence[str], text: str, *, joined: bool) -> Any:
    """The entry of a group in a legend: its marker, with its line if its points are joined."""
    from matplotlib.lines import Line2D

    marker = style.marker(group, groups)
    line = {"linestyle": line_style(style.dashes(group, groups)) if joined else "none", "linewidth": 2.0}
    return Line2D([], [], color=style.colour(group, groups), marker=marker, **solid_marker(marker), **line, label=text)
