"""Picking one point of a front, by a preference or by a minimum for some rewards, and what to tell about it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.errors import unknown_name
from rlhf_lines.pareto.measures import nondominated
from rlhf_lines.pareto.schema import Front, PointEntry
from rlhf_lines.pareto.table import decimals, estimate_text, interval_name, setting
from rlhf_lines.pareto.utility import ideal_point, utilities


SCALES = ("raw", "range")


def pick_point(
    front: Front,
    *,
    preference: Sequence[float] | None = None,
    scale: str = "raw",
    minimum: Mapping[str, float] | None = None,
    maximize: str | None = None,
) -> PointEntry:
    """The entry of `front["points"]` that is best under a preference, or above a minimum.

    The points of all groups are candidates, as far as no other point of the file dominates them. Of several that are
    equally good, the one with the lowest id is returned.

    With `preference` w, one number per reward: the point with the highest `w . s`, where s is its mean score, or,
    with `scale="range"`, `(s - reference) / (ideal - reference)` per reward, so that rewards of different units
    weigh alike. The sum of w does not matter. With `minimum` and `maximize`: the point with the highest mean score
    in one reward among those whose mean scores are at least the minima.

    Args:
        front: what `build_front` returns, or `read_front` reads.
        preference: K numbers of at least 0, not all 0, in the order of `front["rewards"]`.
        scale: `raw` or `range`; for `preference`.
        minimum: lowest mean score by the name of a reward.
        maximize: name of a reward.

    Raises:
        ValueError: neither or both ways are asked for, a reward or scale is unknown, a number is not as described,
            or no point reaches the minima.
    """
    if preference is not None and (minimum is not None or maximize is not None):
        raise ValueError("both a preference and a minimum are given; pick by one of them")
    if preference is None and (not minimum or maximize is None):
        raise ValueError(
            "a point is picked by a preference (such as --preference 0.7 0.3), or by a minimum and the reward to "
            "maximize (such as --min r2=0.4 --maximize r1); give one of the two"
        )
    points = sorted(front["points"], key=lambda point: point["id"])
    means = np.array([[point["scores"][reward]["mean"] for reward in front["rewards"]] for point in points])
    candidates = nondominated(means)
    if preference is not None:
        worth = _worth(front, means, preference, scale)
    else:
        columns = {reward: means[:, k] for k, reward in enumerate(front["rewards"])}
        for reward in (*minimum, maximize):
            if reward not in columns:
                raise ValueError(unknown_name("reward", reward, columns))
        reaching = _reaching(points, columns, minimum)
        candidates, worth = [i for i in candidates if i in reaching], columns[maximize]
    return points[max(candidates, key=lambda i: worth[i])]  # of equals, max returns the first


def merge_arguments(front: Front, point: PointEntry, output_dir: str | Path) -> list[str]:
    """The arguments of `rlhf-lines merge` that make the policy of a point; every setting is written.

    Raises:
        ValueError: the front does not know its policies, or the point is the SFT model, which is not merged.
    """
    _check_sources(front, "RUN_DIR")
    if point["merge_arguments"] is None:
        raise ValueError(
            f"point {point['id']} is the SFT model itself, {front['sft_model']}; there is nothing to merge"
        )
    return [*point["merge_arguments"], "--output_dir", str(output_dir)]


def merge_command(front: Front, point: PointEntry, run_dir: str | Path) -> str:
    """The `rlhf-lines merge` that makes the policy of a point in the run's folder; raises as `merge_arguments`."""
    return shlex.join(["rlhf-lines", "merge", *merge_arguments(front, point, Path(run_dir) / f"point_{point['id']}")])


def picked_text(front: Front, point: PointEntry, run_dir: str | Path) -> str:
    """What to tell about a picked point, without a trailing newline; its last line is the merge command.

    The SFT model needs no merge, and the last line says so.

    Raises:
        ValueError: the front does not know its policies.
    """
    _check_sources(front, run_dir)
    spec = point["spec"]
    options = f" {json.dumps(spec['options'])}" if spec["options"] else ""
    weights = " ".join(f"{weight:g}" for weight in spec["weights"])
    rows = [(reward, point["scores"][reward]) for reward in front["rewards"]]
    rows += [(name, point[name]) for name in ("kl", "perplexity") if point[name] is not None]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"point {point['id']}: {point['group']}, {spec['rule']}{options}, weights {weights}, "
        f"alpha {setting(spec['alpha'])}, beta {setting(spec['beta'])}, schedule {spec['schedule']}",
        *(f"  {name:<{width}}  {estimate_text(value, decimals([value['mean']]))}" for name, value in rows),
        f"  mean [{interval_name(front)}] over {point['prompts']} {front['split']} prompts",
    ]
    if point["single_policy"] is not None:
        lines.append(f"  it is one policy as it was trained: {front['policies'][point['single_policy']]}")
    if point["merge_arguments"] is None:
        last = f"It is the SFT model itself, no merge is needed: {front['sft_model']}"
    else:
        last = merge_command(front, point, run_dir)
    return "\n".join([*lines, "", last])


def _worth(front: Front, means: NDArray[np.float64], preference: Sequence[float], scale: str) -> NDArray[np.float64]:
    """What each of the mean scores `[n, K]` is worth under a preference."""
    weights, rewards = np.asarray(preference, dtype=np.float64), front["rewards"]
    if weights.shape != (len(rewards),):
        raise ValueError(
            f"the preference has {weights.size} numbers; expected {len(rewards)}, one for each of {', '.join(rewards)}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()):
        raise ValueError(f"the preference is {weights.tolist()}; expected finite numbers of at least 0, not all 0")
    if scale not in SCALES:
        raise ValueError(unknown_name("scale", scale, SCALES))
    if scale == "range":
        means = utilities(means, front["reference_point"], ideal_point(means))
    return means @ weights


def _reaching(
    points: Sequence[PointEntry], columns: Mapping[str, NDArray[np.float64]], minimum: Mapping[str, float]
) -> list[int]:
    """The rows that reach all minima; stop at the first minimum that none reaches which reaches those before it."""
    left, before = list(range(len(points))), []
    for reward, low in minimum.items():
        if not math.isfinite(low):
            raise ValueError(f"the minimum of {reward} is {low}; expected a finite number")
        scores = columns[reward]
        highest = max(left, key=lambda i: scores[i])
        left = [i for i in left if scores[i] >= low]
        if not left:
            among = f" among the points with {' and '.join(before)}" if before else ""
            raise ValueError(
                f"no point has a mean {reward} of at least {low:g}{among}: the highest is {float(scores[highest])!r} "
                f"(point {points[highest]['id']}); ask for at most that"
            )
        before.append(f"{reward} of at least {low:g}")
    return left


def _check_sources(front: Front, run_dir: str | Path) -> None:
    if front["sft_model"] is None or not front["policies"]:
        raise ValueError(
            f"the front does not say which policies it was made from; run it again with: rlhf-lines front {run_dir}"
        )
