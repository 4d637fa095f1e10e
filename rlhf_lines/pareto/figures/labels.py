"""Names beside the lines and points that they are of, where they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


DIRECTIONS = 16
DISTANCES = (9.0, 16.0, 26.0, 40.0, 58.0)  # points from an anchor to the nearest side of its label
LEADER = 12.0  # points beyond which a thin line leads from the label to its anchor
OVERLAP, OUTSIDE, COVERED, AWAY = 1e6, 1e6, 40.0, 1.0  # costs: by label, of leaving the panel, by mark, by point


class Label(NamedTuple):
    """A text with the places, in data coordinates, beside any of which it may stand."""

    text: str
    colour: str
    anchors: Sequence[tuple[float, float]]


def draw_labels(panel: Any, labels: Sequence[Label], marks: Sequence[tuple[float, float]], size: float = 8.0) -> None:
    """Write every label beside one of its anchors: inside the panel, beside the other labels, over few marks.

    Labels are placed one after the other, each at the cheapest of its places: those around each of its anchors, in 16
    directions and 5 distances.

    Args:
        panel: axes that have all data and their limits.
        labels: what is written; what comes first has the first choice.
        marks: data coordinates of what should stay in sight, densely along lines.
        size: of the text, in points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    figure = panel.figure
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    scale = figure.dpi / 72.0
    frame = panel.get_window_extent(renderer)
    covered = panel.transData.transform(np.asarray(marks, dtype=float).reshape(-1, 2))
    taken: list[tuple[float, float, float, float]] = []
    for label in labels:
        if not label.anchors:
            continue
        probe = panel.text(0, 0, label.text, fontsize=size)
        box = probe.get_window_extent(renderer)
        probe.remove()
        anchors = panel.transData.transform(np.asarray(label.anchors, dtype=float))
        places = [
            (_cost(corners, distance, taken, covered, frame, scale), corners, anchor, distance)
            for anchor in anchors
            for distance in DISTANCES
            for corners in _around(anchor, distance * scale, box.width, box.height)
        ]
        _, corners, anchor, distance = min(places, key=lambda place: place[0])
        taken.append(corners)
        middle = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
        offset = tuple((middle[k] - anchor[k]) / scale for k in (0, 1))
        arrow = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        written = panel.annotate(
            label.text,
            panel.transData.inverted().transform(anchor),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=label.colour,
            arrowprops=arrow if distance > LEADER else None,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=20,
        )
        written.set_in_layout(False)


def along(corners: Sequence[tuple[float, float]], steps: int = 12) -> list[tuple[float, float]]:
    """Places along a line through the corners, as many on every piece of it."""
    places = list(corners[:1])
    for (x0, y0), (x1, y1) in pairwise(corners):
        places += [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(1, steps + 1)]
    return places


def _around(
    anchor: NDArray[np.float64], distance: float, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Boxes around a place whose nearest side is so far from it, in pixels."""
    boxes = []
    for k in range(DIRECTIONS):
        x, y = math.cos(2 * math.pi * k / DIRECTIONS), math.sin(2 * math.pi * k / DIRECTIONS)
        middle = (anchor[0] + x * (distance + width / 2), anchor[1] + y * (distance + height / 2))
        boxes.append((middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2))
    return boxes


def _cost(
    box: tuple[float, float, float, float],
    distance: float,
    taken: Sequence[tuple[float, float, float, float]],
    covered: NDArray[np.float64],
    frame: Any,
    scale: float,
) -> float:
    left, low, right, high = box
    inside = frame.x0 < left and right < frame.x1 and frame.y0 < low and high < frame.y1
    gap = 2.0 * scale
    overlaps = sum(
        left < other[2] + gap and other[0] - gap < right and low < other[3] + gap and other[1] - gap < high
        for other in taken
    )
    hidden = (covered[:, 0] > left) & (covered[:, 0] < right) & (covered[:, 1] > low) & (covered[:, 1] < high)
    return OVERLAP * overlaps + OUTSIDE * (not inside) + COVERED * int(hidden.sum()) + AWAY * distance
