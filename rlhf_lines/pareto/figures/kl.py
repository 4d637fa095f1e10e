"""The picture of reward against KL: what a policy gives for how far it went from the SFT model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.schema import Front, Group, PointEntry, looks
from rlhf_lines.pareto.utility import utilities


def plot_kl(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the picture of reward against KL as PNG or PDF, as the suffix of `path` says, and return its path.

    One panel each for the utility to somebody to whom all objectives are the same (with two objectives or more) and for
    every objective: mean KL to the SFT model in nats to the right, the mean upwards, one marker per point. The points
    of a group whose weights are those of two policies are joined along them. Points that another point of their group
    dominates in the objectives are faint and hollow. Bars are the intervals of the file; a utility has none.

    Args:
        front: what `build_front` returns, with the KL of some points.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: no point has a KL or the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    points = [point for point in front["points"] if point["kl"] is not None]
    if not points:
        raise ValueError("no point of the front has a KL to the SFT model, so there is no cost to draw")
    choices = kl_choices(front)
    groups = list(looks(point["group"] for point in points).values())
    with canvas.saved_panels([path, *others], len(choices), len(groups), beside=0.45) as (figure, panels, columns):
        for panel, reward in zip(panels, choices, strict=True):
            for depth, group in enumerate(reversed(groups)):
                own = [point for point in points if point["group"] == group.name]
                _draw_group(panel, front, own, group, reward, 3 + depth)
            _draw_axes(panel, front, reward)
        _draw_legends(figure, front, points, groups, columns)
    return Path(path)


def kl_choices(front: Front) -> list[str | None]:
    """What may stand above the KL: None is the utility to somebody to whom all objectives are the same."""
    objectives = list(front["objectives"])
    return objectives if len(objectives) == 1 else [None, *objectives]


def utility(front: Front, point: PointEntry, preference: Sequence[float] | None = None) -> float:
    """What a point is worth under a preference w, whose parts sum to 1: w . u, with u as in `utilities`.

    Without one it is worth what it is to somebody to whom all objectives are the same: the mean of u.
    """
    scores = [point["scores"][name]["mean"] for name in front["objectives"]]
    of_objectives = utilities(scores, front["reference_point"], front["ideal_point"])
    return float(of_objectives.mean() if preference is None else of_objectives @ preference)


def along_weights(points: Sequence[PointEntry]) -> tuple[list[PointEntry], bool]:
    """The points of a group in the order of the weights that groups share, and whether these make a line of them.

    They do where they are weights of two policies; a group without shared weights stays in its order.
    """
    preferences = [point["preference"] for point in points]
    if not all(preferences):
        return list(points), False
    joined = len(points) > 1 and max(map(len, preferences)) == 2
    return sorted(points, key=lambda point: point["preference"]), joined


def _draw_group(
    panel: Any, front: Front, points: Sequence[PointEntry], group: Group, reward: str | None, depth: int
) -> None:
    ordered, joined = along_weights(points)
    if joined:
        line = {"color": group.colour, "linewidth": 1.0, "linestyle": canvas.line_style(group.dashes), "alpha": 0.6}
        places = [(point["kl"]["mean"], _height(front, point, reward)["mean"]) for point in ordered]
        panel.plot(*zip(*places, strict=True), **line, marker="none", zorder=depth)
    best, dominated = canvas.split_dominated(front, points)
    for drawn, strength in ((dominated, 0.12), (best, 0.4 if group.name in canvas.COMPARED else 0.25)):
        x, y = [point["kl"] for point in drawn], [_height(front, point, reward) for point in drawn]
        canvas.draw_points(panel, group, x, y, dominated=drawn is dominated, strength=strength, depth=depth)


def _height(front: Front, point: PointEntry, reward: str | None) -> Any:
    if reward is not None:
        return point["scores"][reward]
    return {"mean": utility(front, point), "low": None, "high": None}


def _draw_axes(panel: Any, front: Front, reward: str | None) -> None:
    panel.margins(0.09)
    panel.set_xlabel("KL to SFT, nats\nlower is closer")
    if reward is None:
        panel.set_ylabel("utility, objectives alike\nhigher is better")
    else:
        panel.set_ylim(*canvas.score_limits(front, reward))
        panel.set_ylabel(canvas.score_label(reward))
    canvas.plain_axes(panel)


def _draw_legends(
    figure: Any, front: Front, points: Sequence[PointEntry], groups: Sequence[Group], columns: int
) -> None:
    from matplotlib.lines import Line2D

    joined = {group.name: along_weights([p for p in points if p["group"] == group.name])[1] for group in groups}
    handles = [canvas.group_handle(group, group.label, joined=joined[group.name]) for group in groups]
    figure.legend(handles=handles, **canvas.UPPER_LEGEND, ncols=columns)
    hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "alpha": 0.6, "markersize": 3}
    dominated = Line2D([], [], **canvas.GREY, **hollow)
    figure.legend([dominated], ["dominated"], **canvas.LOWER_LEGEND, ncols=1, title=canvas.bars_text(front))
