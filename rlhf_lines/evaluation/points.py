"""Which points of a front a benchmark asks."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.errors import unknown_name
from rlhf_lines.pareto.origin import is_routed
from rlhf_lines.pareto.schema import CONTROLS, SFT, Front, PointEntry, groups_of, nondominated


FRONT, ALL = "front", "all"
ROUTED = "weights that a router chooses for every prompt of the sweep, and a benchmark asks one model"


def chosen_points(front: Front, points: Sequence[str] = (FRONT,), groups: Sequence[str] = ()) -> list[PointEntry]:
    """The points that are asked, by id, the SFT model first, which is always among them: others are less or more.

    A point whose weights a router chooses by the prompt is no model that a benchmark could ask, and is left out.

    Args:
        front: of the run.
        points: `front`, those that no other point of their group dominates; `all`; or ids.
        groups: look at these groups only; left out, at all but the controls `scaled` and `reversed` for `front`, and
            at all for `all`.

    Raises:
        ValueError: a group or a point is unknown or has a router, or both ids and groups are given.
    """
    models = [point for point in front["points"] if not is_routed(point["spec"])]
    routed = {point["group"] for point in front["points"] if is_routed(point["spec"])}
    known = [name for name in groups_of(front) if name not in routed]
    for name in groups:
        if name in routed:
            raise ValueError(f"group {name} has {ROUTED}: leave it out")
        if name not in known:
            raise ValueError(unknown_name("group", name, known))
    sft = [point for point in front["points"] if point["group"] == SFT]
    if list(points) in ([FRONT], [ALL]):
        among = groups or [name for name in known if points[0] == ALL or name not in CONTROLS]
        others = [point for point in models if point["group"] in among]
        if points[0] == FRONT:
            dominated = _dominated(front)
            others = [point for point in others if point["id"] not in dominated]
    else:
        if groups:
            raise ValueError(f"points are given by id ({' '.join(points)}): leave out --group {' '.join(groups)}")
        others = [_by_id(front, text) for text in points]
    return list({point["id"]: point for point in [*sft, *sorted(others, key=lambda point: point["id"])]}.values())


def _dominated(front: Front) -> set[int]:
    """The ids of the points that another point of their group dominates; a group without a front has none."""
    best = nondominated(front)
    return {p["id"] for p in front["points"] if p["group"] in front["fronts"] and p["id"] not in best}


def _by_id(front: Front, text: str) -> PointEntry:
    by_id = {str(point["id"]): point for point in front["points"]}
    if text not in by_id:
        raise ValueError(
            f"--points has {text!r}, expected {FRONT}, {ALL}, or ids of the front's points, of which there are "
            f"{len(by_id)} (rlhf-lines front RUN_DIR --all lists them)"
        )
    if is_routed(by_id[text]["spec"]):
        raise ValueError(f"point {text} has {ROUTED}: leave it out")
    return by_id[text]
