"""The picture of a front: ``front.png``."""

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.table import decimals, estimate_text


# Okabe and Ito's palette: told apart under the common forms of colour blindness.
COLOURS = {"lines": "#0072B2", "rewarded_soup": "#D55E00", "sft": "#000000"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = {"lines": "o", "rewarded_soup": "s", "sft": "*"}
OTHER_MARKERS = ("^", "D", "v", "P")
LABELS = {"lines": "LiNeS", "rewarded_soup": "rewarded soup", "sft": "SFT"}
DRAWING_ORDER = ("rewarded_soup", "lines")
INK, FAINT_INK, GRID = "#222222", "#666666", "#E4E4E4"
DPI = 160
PANEL_INCHES = (8.75, 6.25)  # 1400 x 1000 pixels
SMALL_PANEL_INCHES = (5.5, 4.6)


def plot_front(front: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the picture of a front as PNG and returns its path.

    Two rewards give one panel, more give one panel for each pair. Only points that no other point of their group
    dominates are joined: the staircase is the edge of the shaded region, whose area is the hypervolume. Dominated
    points are drawn faint and hollow. Bars are the intervals of the file. With more than two rewards a nondominated
    point can lie anywhere in a panel, so panels of pairs show points without a staircase.

    Args:
        front: What `build_front` returns.
        path: File to write; its folder must exist.

    Raises:
        ValueError: If the front has fewer than two rewards.
    """
    rewards = list(front["rewards"])
    if len(rewards) < 2:
        raise ValueError(f"the front has the rewards {rewards}; a picture needs at least two rewards")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = list(combinations(rewards, 2))
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    inches = PANEL_INCHES if len(pairs) == 1 else (SMALL_PANEL_INCHES[0] * columns, SMALL_PANEL_INCHES[1] * rows + 1.2)
    with rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.parse_math": False}):
        figure = Figure(figsize=inches, dpi=DPI, facecolor="white", layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, pair in zip(panels, pairs, strict=False):
            _draw_panel(panel, front, pair, staircase=len(rewards) == 2)
        for panel in panels[len(pairs) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        title = f"hypervolume, {100 * front['confidence']:g} % interval" if "confidence" in front else "hypervolume"
        style = {"title": title, "alignment": "left", "frameon": False, "title_fontsize": 10.5, "fontsize": 10.5}
        style |= {"labelcolor": INK, "handletextpad": 0.6}
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(handles), 3), **style)
        canvas.print_png(str(path))
    return Path(path)


def _draw_panel(panel: Any, front: Mapping[str, Any], pair: tuple[str, str], *, staircase: bool) -> None:
    groups = list(dict.fromkeys(point["group"] for point in front["points"]))
    groups.sort(key=lambda group: (DRAWING_ORDER.index(group) if group in DRAWING_ORDER else -1, group))
    others = [group for group in groups if group not in COLOURS]
    for depth, group in enumerate(groups):
        if group in COLOURS:
            colour, marker = COLOURS[group], MARKERS[group]
        else:
            colour = OTHER_COLOURS[others.index(group) % len(OTHER_COLOURS)]
            marker = OTHER_MARKERS[others.index(group) % len(OTHER_MARKERS)]
        _draw_group(panel, front, group, pair, colour, marker, 3 + depth, staircase=staircase)
    _label_policies(panel, front, pair)

    x, y = pair
    panel.set_xlabel(f"score: {x} (higher is better)", color=INK)
    panel.set_ylabel(f"score: {y} (higher is better)", color=INK)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(0.09)
    panel.tick_params(colors=FAINT_INK, labelsize=10)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#AAAAAA")


def _draw_group(
    panel: Any,
    front: Mapping[str, Any],
    group: str,
    pair: tuple[str, str],
    colour: str,
    marker: str,
    depth: int,
    *,
    staircase: bool,
) -> None:
    points = [point for point in front["points"] if point["group"] == group]
    entry = front["fronts"].get(group)
    best_ids = {point["id"] for point in points} if entry is None else set(entry["nondominated"])
    best = [point for point in points if point["id"] in best_ids]
    dominated = [point for point in points if point["id"] not in best_ids]
    size = 13 if marker == "*" else 7.5
    label = LABELS.get(group, group)
    if entry is not None:
        digits = decimals([other["hypervolume"]["value"] for other in front["fronts"].values()])
        label += f"  {estimate_text(entry['hypervolume'], digits)}"

    if entry is not None and staircase:
        _draw_staircase(panel, best, pair, front["reference_point"], colour, depth)
    bars = {"linestyle": "none", "ecolor": colour, "elinewidth": 1.0, "capsize": 0}
    dots = {"linestyle": "none", "marker": marker, "color": colour}
    for drawn, strength in ((best, 0.45), (dominated, 0.2)):
        panel.errorbar(**_coordinates(drawn, pair), **bars, alpha=strength, zorder=depth + 0.2)
    x, y = _means(dominated, pair)
    panel.plot(x, y, **dots, markersize=5.5, markerfacecolor="white", alpha=0.4, zorder=depth + 0.3)
    x, y = _means(best, pair)
    panel.plot(
        x, y, **dots, markersize=size, markeredgecolor="white", markeredgewidth=0.9, zorder=depth + 0.4, label=label
    )


def _draw_staircase(
    panel: Any, best: list[Any], pair: tuple[str, str], reference: list[float], colour: str, depth: int
) -> None:
    """Draws the region that the points dominate, down to the reference point: its area is the hypervolume."""
    corners = sorted(zip(*_means(best, pair), strict=True))
    # A point that does not exceed the reference point in both rewards adds no area.
    corners = [(x, y) for x, y in corners if x > reference[0] and y > reference[1]]
    if not corners:
        return
    x = [reference[0], *(x for x, _ in corners), corners[-1][0]]
    y = [corners[0][1], *(y for _, y in corners), reference[1]]
    panel.step(x, y, where="pre", color=colour, linewidth=2.0, zorder=depth)
    panel.fill_between(x, y, reference[1], step="pre", color=colour, alpha=0.06, linewidth=0, zorder=1)


def _means(points: list[Mapping[str, Any]], pair: tuple[str, str]) -> tuple[list[float], list[float]]:
    x, y = ([point["scores"][reward]["mean"] for point in points] for reward in pair)
    return x, y


def _coordinates(points: list[Mapping[str, Any]], pair: tuple[str, str]) -> dict[str, list[Any]]:
    """Returns positions and bar lengths for matplotlib; an interval that misses its own mean has a bar of length 0."""
    drawn: dict[str, list[Any]] = {}
    drawn["x"], drawn["y"] = _means(points, pair)
    for axis, reward in zip("xy", pair, strict=True):
        scores = [point["scores"][reward] for point in points]
        drawn[f"{axis}err"] = [
            [max(0.0, score["mean"] - score["low"]) for score in scores],
            [max(0.0, score["high"] - score["mean"]) for score in scores],
        ]
    return drawn


def _label_policies(panel: Any, front: Mapping[str, Any], pair: tuple[str, str]) -> None:
    """Names the points that are one policy: one-hot weights in the unscaled group."""
    from matplotlib.patheffects import withStroke

    for point in front["points"]:
        weights = list(point["spec"].get("weights") or [])
        one_hot = sorted(weights) == [0.0] * (len(weights) - 1) + [1.0]
        if point["group"] != "rewarded_soup" or not one_hot:
            continue
        x, y = (point["scores"][name]["mean"] for name in pair)
        low, high = panel.get_xlim()
        on_the_right = x > (low + high) / 2
        panel.annotate(
            f"policy {weights.index(1.0) + 1}",
            (x, y),
            # Towards the dominated side, where the front itself is not.
            xytext=(-12, -22) if on_the_right else (20, -52),
            arrowprops={"arrowstyle": "-", "color": COLOURS["rewarded_soup"], "linewidth": 0.8, "shrinkB": 5},
            textcoords="offset points",
            ha="right" if on_the_right else "left",
            fontsize=10,
            color=COLOURS["rewarded_soup"],
            zorder=20,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
