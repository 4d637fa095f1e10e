"""Reference and ideal point: where hypervolumes and utilities are measured from, of one run or the same for several."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto.measures import ALL_POINTS_RULE, GIVEN_RULE, REFERENCE_POINT_RULE, reference_point
from rlhf_lines.pareto.objectives import check_reference_point
from rlhf_lines.pareto.utility import ideal_point


Anchor = tuple[float, ...] | None


def fixed_points(
    runs: Sequence[tuple[Sequence[Anchor], NDArray[np.float64]]],
    objectives: Sequence[str],
    given: Sequence[float] | None = None,
) -> tuple[list[float], list[float], str]:
    """Reference point, ideal point, and the rule for the first.

    They are those of the anchors, so that a group that is added changes neither. Where a run has fewer than two unlike
    anchors they are those of all points.

    Args:
        runs: of each, which anchor every point is (`origin.anchors`), and the mean scores `[n, K]`.
        objectives: K names.
        given: the reference point, or None for the rule.

    Raises:
        ValueError: what is given is not one finite number per objective.
    """
    enough = all(len(set(anchors) - {None}) > 1 for anchors, _ in runs)
    means = np.concatenate([means[[not enough or anchor is not None for anchor in anchors]] for anchors, means in runs])
    if given is None:
        rule = REFERENCE_POINT_RULE if enough else ALL_POINTS_RULE
        return reference_point(means), ideal_point(means), rule if len(runs) == 1 else f"{rule}; of all runs"
    check_reference_point(given, objectives)
    return list(map(float, given)), ideal_point(means), GIVEN_RULE


def without_spread(found: Mapping[str, Any]) -> str:
    """A sentence on the objectives in which all anchors are one number; empty where there are none.

    From there hypervolumes are measured then, without a margin: the ends of a front have none, nor has any point that
    gives no more of it. A reference point that was given lies where somebody wanted it.

    Args:
        found: a front, or a comparison of runs.
    """
    names, rule = found["objectives"], found["reference_point_rule"]
    ends = zip(names, found["reference_point"], found["ideal_point"], strict=True)
    flat = {name: low for name, low, high in ends if low == high and rule != GIVEN_RULE}
    if not flat or len(found.get("points", ())) == 1:  # one point has no spread, and no front
        return ""
    others = shlex.join(name for name in names if name not in flat)
    way_out = f"leave {'it' if len(flat) == 1 else 'them'} out" if others else "choose other objectives"
    whom = "every point" if rule.startswith(ALL_POINTS_RULE) else "the SFT model and every policy"
    return (
        f"{' and '.join(f'{name} is {low:z.4g}' for name, low in flat.items())} for {whom}, and hypervolumes are "
        f"measured from there, so neither they nor verdicts tell anything of these fronts: {way_out}, by "
        f"rlhf-lines front RUN_DIR --objectives {others or 'NAME'}."
    )
