"""The picture of a front: `front.png` and `front.pdf`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.figures.labels import Label, along, draw_labels
from rlhf_lines.pareto.schema import SOUP, Front, Group, PointEntry, looks


HULL_DASHES = (3.0, 2.0)
LEGEND_COLUMNS = 3
ROW = 0.7  # of the distance of two rows, that the points of a group take


def plot_front(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the picture of a front as PNG or PDF, as the suffix of `path` says, and return its path.

    Two objectives give one panel of a column's width, in which every line bears its name; more give one panel for each
    pair, over both columns, and one gives a row for each group. Axes of a reward have the same ends in all figures.
    Only points that no other point of their group dominates are joined: the staircase is the edge of the region whose
    area is the hypervolume. Dominated points are drawn faint and hollow. Bars are the intervals of the file. Of LiNeS
    and the rewarded soup also the convex hull is drawn. With more than two objectives a nondominated point can lie
    anywhere in a panel, so panels of pairs show points alone.

    Args:
        front: what `build_front` returns.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    rewards = front["rewards"]
    pairs = list(combinations(rewards, 2)) or [(rewards[0],)]
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    groups = list(looks(point["group"] for point in front["points"]).values())
    several = len(pairs) > 1
    width = canvas.PAGE_INCHES if several else canvas.COLUMN_INCHES
    height = (canvas.PANEL_INCHES - 0.4 * several) * rows + 0.45
    height += canvas.LEGEND_ROW_INCHES * math.ceil(len(groups) / LEGEND_COLUMNS) * several
    if len(rewards) == 1:
        height = 0.9 + 0.42 * len(groups)
    with canvas.saved_figure([path, *others], (width, height)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, pair in zip(panels, pairs, strict=False):
            if len(rewards) == 1:
                _draw_rows(panel, front, groups, rewards[0])
            else:
                _draw_panel(panel, front, groups, pair, flat=len(rewards) == 2)
        for panel in panels[len(pairs) :]:
            panel.set_axis_off()
        _draw_keys(figure, front, groups, flat=len(rewards) == 2)
        if len(rewards) == 2:
            draw_labels(panels[0], *_labels(front, groups))
    return Path(path)


def _labels(front: Front, groups: Sequence[Group]) -> tuple[list[Label], list[tuple[float, float]]]:
    """The names of the groups and of the single policies beside their points, and what they should not cover."""
    pair, labels, marks = front["rewards"], [], []
    for group in groups:
        points = [point for point in front["points"] if point["group"] == group.name]
        best, _ = canvas.split_dominated(front, points)
        own = places(points, pair)
        marks += own * 3  # a mark is worse to hide than a piece of a line
        marks += along(staircase(places(best, pair), front["reference_point"]))
        labels.append(Label(group.label, group.colour, places(best, pair) or own))
    for point in front["points"]:
        if point["group"] == SOUP and point["single_policy"] is not None:
            labels.append(Label(f"{point['label']} alone", canvas.FAINT_INK, places([point], pair)))
    return labels, marks


def places(points: Iterable[PointEntry], pair: Sequence[str]) -> list[tuple[float, float]]:
    """Where points stand in two rewards: their mean scores."""
    return [tuple(point["scores"][reward]["mean"] for reward in pair) for point in points]


def hull_places(front: Front, group: str, pair: Sequence[str]) -> list[tuple[float, float]]:
    """The places of the points of a group that are best for some preference, ascending in the first reward."""
    by_id = {point["id"]: point for point in front["points"]}
    return places((by_id[i] for i in front["fronts"][group]["hull"]), pair)


def staircase(corners: Sequence[tuple[float, float]], reference: Sequence[float]) -> list[tuple[float, float]]:
    """The edge of what the corners dominate, down to the reference point: the area inside is the hypervolume.

    A corner that does not exceed the reference point in both rewards adds no area and is left out.

    >>> staircase([(2.0, 1.0), (1.0, 3.0), (5.0, -1.0)], (0.0, 0.0))
    [(0.0, 3.0), (1.0, 3.0), (2.0, 1.0), (2.0, 0.0)]
    """
    low, floor = reference
    inside = [(x, y) for x, y in sorted(corners) if x > low and y > floor]
    return [(low, inside[0][1]), *inside, (inside[-1][0], floor)] if inside else []


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


def _draw_panel(panel: Any, front: Front, groups: Sequence[Group], pair: tuple[str, str], *, flat: bool) -> None:
    for depth, group in enumerate(reversed(groups)):  # what is listed first lies on top
        _draw_group(panel, front, group, pair, 3 + depth, flat=flat)
    panel.set_xlim(*canvas.score_limits(front, pair[0]))
    panel.set_ylim(*canvas.score_limits(front, pair[1]))
    panel.set_xlabel(canvas.score_label(pair[0]))
    panel.set_ylabel(canvas.score_label(pair[1]))
    canvas.plain_axes(panel)


def _draw_rows(panel: Any, front: Front, groups: Sequence[Group], reward: str) -> None:
    """Draw the scores of one objective, a row for each group, in which points stand below one another."""
    for row, group in enumerate(groups):
        points = [point for point in front["points"] if point["group"] == group.name]
        height = {point["id"]: row + ROW * ((i + 0.5) / len(points) - 0.5) for i, point in enumerate(points)}
        best, dominated = canvas.split_dominated(front, points)
        for drawn, strength in ((best, 0.45), (dominated, 0.12)):
            x = [point["scores"][reward] for point in drawn]
            y = [dict.fromkeys(("mean", "low", "high"), height[point["id"]]) for point in drawn]
            canvas.draw_points(panel, group, x, y, dominated=drawn is dominated, strength=strength, depth=3)
    panel.set_yticks(range(len(groups)), [group.label for group in groups])
    panel.invert_yaxis()
    panel.set_xlim(*canvas.score_limits(front, reward))
    panel.set_xlabel(canvas.score_label(reward))
    canvas.plain_axes(panel)


def _draw_group(panel: Any, front: Front, group: Group, pair: tuple[str, str], depth: int, *, flat: bool) -> None:
    compared = group.name in canvas.COMPARED
    points = [point for point in front["points"] if point["group"] == group.name]
    best, dominated = canvas.split_dominated(front, points)
    entry = front["fronts"].get(group.name)
    if entry is not None and flat:
        if compared:
            hull = {"color": group.colour, "linewidth": 0.6, "linestyle": canvas.line_style(HULL_DASHES)}
            x, y = zip(*hull_places(front, group.name, pair), strict=True)
            panel.plot(x, y, **hull, marker="none", zorder=depth + 0.1)
        if edge := staircase(places(best, pair), front["reference_point"]):
            line = {"color": group.colour, "linewidth": 1.2, "linestyle": canvas.line_style(group.dashes)}
            panel.step(*zip(*edge, strict=True), where="pre", **line, zorder=depth)
    for drawn, strength in ((best, 0.45 if compared else 0.25), (dominated, 0.12)):
        x, y = ([point["scores"][reward] for point in drawn] for reward in pair)
        canvas.draw_points(panel, group, x, y, dominated=drawn is dominated, strength=strength, depth=depth)


def _draw_keys(figure: Any, front: Front, groups: Sequence[Group], *, flat: bool) -> None:
    """Draw below the panels what marks mean, and above several panels, whose points no line joins, the groups."""
    from matplotlib.lines import Line2D

    if len(front["rewards"]) > 2:
        handles = [canvas.group_handle(group, group.label, joined=False) for group in groups]
        figure.legend(handles=handles, **canvas.UPPER_LEGEND, ncols=min(len(groups), LEGEND_COLUMNS))
    fronts = front["fronts"]
    hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "alpha": 0.6, "markersize": 3}
    keys: dict[str, Any] = {"dominated": Line2D([], [], **canvas.GREY, **hollow)}
    if flat and any(group in fronts for group in canvas.COMPARED):
        keys["convex hull"] = Line2D([], [], **canvas.GREY, linewidth=0.6, linestyle=canvas.line_style(HULL_DASHES))
    figure.legend(keys.values(), keys.keys(), **canvas.LOWER_LEGEND, ncols=3, title=canvas.bars_text(front))
