"""How groups of points look and what they are called, in pictures and in the report.

Every group has a colour, a marker and a line style of its own, so that colour is never the only difference. Colours are
Okabe and Ito's (Color Universal Design, 2008), told apart under the common forms of colour blindness; those for further
groups are from Tol's muted scheme (SRON/EPS/TN/09-002).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any


# The order in which groups are listed; others follow by name.
ORDER = ("lines", "rewarded_soup", "uniform", "reversed", "morlhf", "sft")
LABELS = {
    "lines": "LiNeS",
    "rewarded_soup": "rewarded soup",
    "uniform": "uniform scaling",
    "reversed": "reversed LiNeS",
    "morlhf": "MORLHF",
    "sft": "SFT",
}
COLOURS = {
    "lines": "#0072B2",
    "rewarded_soup": "#D55E00",
    "uniform": "#009E73",
    "reversed": "#CC79A7",
    "morlhf": "#E69F00",
    "sft": "#000000",
}
OTHER_COLOURS = ("#56B4E9", "#882255", "#999933", "#332288")
MARKERS = {"lines": "o", "rewarded_soup": "s", "uniform": "^", "reversed": "v", "morlhf": "D", "sft": "*"}
OTHER_MARKERS = ("P", "X", "p", "<")
# On and off in points, as matplotlib and SVG's stroke-dasharray take them; () is solid.
DASHES: dict[str, tuple[float, ...]] = {
    "lines": (),
    "rewarded_soup": (6.0, 1.5),
    "uniform": (5.0, 1.5, 1.0, 1.5),
    "reversed": (1.5, 1.2),
    "morlhf": (3.0, 1.2, 1.0, 1.2, 1.0, 1.2),
    "sft": (2.5, 2.5),
}
OTHER_DASHES = ((8.0, 1.5, 1.0, 1.5), (4.0, 3.0), (1.0, 2.5), (8.0, 1.5, 3.0, 1.5))
LABEL_WIDTH = 28
INK, FAINT_INK, GRID = "#222222", "#666666", "#E4E4E4"


def label(group: str) -> str:
    """What people read for a group: its name, on one line and shortened, if it is none of ours.

    >>> label("lines"), label("ties")
    ('LiNeS', 'ties')
    """
    return LABELS.get(group) or shortened(group)


def shortened(text: str, width: int = LABEL_WIDTH) -> str:
    """`text` on one line with at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def policy_names(front: Mapping[str, Any]) -> list[str]:
    """The names of the policies of a front: those of their folders, with the parent's where they repeat.

    The list is empty if the front does not say which policies were merged.

    >>> policy_names({"policies": ["runs/helpful", "runs/harmless/"]})
    ['helpful', 'harmless']
    >>> policy_names({"policies": ["helpful/final", "harmless/final"]})
    ['helpful/final', 'harmless/final']
    """
    paths = [PurePosixPath(str(path).replace("\\", "/")) for path in front.get("policies") or []]
    repeated = len({path.name for path in paths}) < len(paths)
    return [shortened("/".join(path.parts[-2:]) if repeated else path.name) for path in paths]


def single_policy(front: Mapping[str, Any], point: Mapping[str, Any]) -> str | None:
    """The name of the policy that a point of the rewarded soup is, None if it is a mixture or of another group.

    >>> front = {"policies": ["runs/helpful", "runs/harmless"]}
    >>> single_policy(front, {"group": "rewarded_soup", "spec": {"weights": [0.0, 1.0]}})
    'harmless'
    >>> single_policy({}, {"group": "rewarded_soup", "spec": {"weights": [0.0, 1.0]}})
    'policy 2'
    """
    weights = list(point["spec"].get("weights") or [])
    if point["group"] != "rewarded_soup" or sorted(weights) != [0.0] * (len(weights) - 1) + [1.0]:
        return None
    k, names = weights.index(1.0), policy_names(front)
    return names[k] if k < len(names) else f"policy {k + 1}"


def ordered(groups: Iterable[str]) -> list[str]:
    """The distinct groups in the order in which they are listed.

    >>> ordered(["sft", "ties", "lines", "ties"])
    ['lines', 'sft', 'ties']
    """
    return sorted(set(groups), key=lambda group: (ORDER.index(group) if group in ORDER else len(ORDER), group))


def colour(group: str, groups: Iterable[str]) -> str:
    """The colour of `group` as `#RRGGBB`; a group that is none of ours takes its turn among `groups`."""
    return _own_or_next(group, groups, COLOURS, OTHER_COLOURS)


def marker(group: str, groups: Iterable[str]) -> str:
    """The marker of `group`, as matplotlib names it; see `colour`."""
    return _own_or_next(group, groups, MARKERS, OTHER_MARKERS)


def dashes(group: str, groups: Iterable[str]) -> tuple[float, ...]:
    """Lengths on and off along the lines of `group`, in points; none is a solid line; see `colour`."""
    return _own_or_next(group, groups, DASHES, OTHER_DASHES)


def _own_or_next(group: str, groups: Iterable[str], own: dict[str, Any], others: Sequence[Any]) -> Any:
    if group in own:
        return own[group]
    names = sorted({name for name in groups if name not in own} | {group})
    return others[names.index(group) % len(others)]
