"""Picking one point of a front: by preference, or by a minimum for some rewards."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.errors import unknown_name
from rlhf_lines.pareto.front import nondominated
from rlhf_lines.pareto.table import decimals, estimate_text, trained_policy
from rlhf_lines.pareto.utility import ideal_point, utilities


SCALES = ("raw", "range")


def pick_point(
    front: Mapping[str, Any],
    *,
    preference: Sequence[float] | None = None,
    scale: str = "raw",
    minimum: Mapping[str, float] | None = None,
    maximize: str | None = None,
) -> dict[str, Any]:
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
        columns = {reward: k for k, reward in enumerate(front["rewards"])}
        for reward in (*minimum, maximize):
            if reward not in columns:
                raise ValueError(unknown_name("reward", reward, columns))
        _check_minima(points, means, minimum, columns)
        candidates = [i for i in candidates if all(means[i, columns[name]] >= low for name, low in minimum.items())]
        worth = means[:, columns[maximize]]
    return points[max(candidates, key=lambda i: worth[i])]  # of equals, max returns the first


def _worth(
    front: Mapping[str, Any], means: NDArray[np.float64], preference: Sequence[float], scale: str
) -> NDArray[np.float64]:
    weights = np.asarray(preference, dtype=np.float64)
    rewards = list(front["rewards"])
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


def _check_minima(
    points: Sequence[Mapping[str, Any]],
    means: NDArray[np.float64],
    minimum: Mapping[str, float],
    columns: Mapping[str, int],
) -> None:
    """Stop at the first minimum that no point reaches which reaches those before it."""
    left, before = list(range(len(points))), []
    for reward, low in minimum.items():
        if not math.isfinite(low):
            raise ValueError(f"the minimum of {reward} is {low}; expected a finite number")
        scores = means[:, columns[reward]]
        highest = max(left, key=lambda i: scores[i])
        left = [i for i in left if scores[i] >= low]
        if not left:
            among = f" among the points with {' and '.join(before)}" if before else ""
            raise ValueError(
                f"no point has a mean {reward} of at least {low:g}{among}: the highest is {float(scores[highest])!r} "
                f"(point {points[highest]['id']}); ask for at most that"
            )
        before.append(f"{reward} of at least {low:g}")


def merge_arguments(front: Mapping[str, Any], point: Mapping[str, Any], output_dir: str | Path) -> list[str]:
    """The arguments of `rlhf-lines merge` that make the policy of a point; every setting is written.

    The spec's weights belong to the first policies of the front. A linear rule gives an adapter, any other a dense
    checkpoint.

    Raises:
        ValueError: the front does not know its policies, or the point is the SFT model, which is not merged.
    """
    from rlhf_lines.merge.rules import RULES  # with torch, which nothing else here needs

    _check_sources(front, "RUN_DIR")
    spec = point["spec"]
    if not any(spec["weights"]):
        raise ValueError(
            f"point {point['id']} is the SFT model itself, {front['sft_model']}; there is nothing to merge"
        )
    options = ["--rule_options", json.dumps(spec["options"])] if spec.get("options") else []
    return [
        *("--sft_model", str(front["sft_model"])),
        *("--policies", *map(str, front["policies"][: len(spec["weights"])])),
        *("--weights", *map(_plain, spec["weights"])),
        *("--rule", spec["rule"], *options),
        *("--alpha", spec["alpha"] if spec["alpha"] == "auto" else _plain(spec["alpha"])),
        *("--beta", _plain(spec["beta"]), "--schedule", spec["schedule"]),
        *("--save", "adapter" if RULES[spec["rule"]].makes_adapter else "dense"),
        *("--output_dir", str(output_dir)),
    ]


def picked_text(front: Mapping[str, Any], point: Mapping[str, Any], run_dir: str | Path) -> str:
    """What to tell about a picked point, without a trailing newline; its last line is the merge command.

    The SFT model needs no merge, and the last line says so.

    Raises:
        ValueError: the front does not know its policies.
    """
    _check_sources(front, run_dir)
    spec = point["spec"]
    settings = f"alpha {_setting(spec['alpha'])}, beta {_setting(spec['beta'])}, schedule {spec['schedule']}"
    options = f" {json.dumps(spec['options'])}" if spec.get("options") else ""
    weights = " ".join(f"{weight:g}" for weight in spec["weights"])
    lines = [f"point {point['id']}: {point['group']}, {spec['rule']}{options}, weights {weights}, {settings}"]
    rows = [(reward, point["scores"][reward]) for reward in front["rewards"]]
    rows += [(name, point[name]) for name in ("kl", "perplexity") if point.get(name) is not None]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {estimate_text(value, decimals([value['mean']]))}" for name, value in rows]
    lines.append(f"  mean [{100 * front['confidence']:g} % interval] over {point['prompts']} {front['split']} prompts")
    if not any(spec["weights"]):
        return "\n".join([*lines, "", f"It is the SFT model itself, no merge is needed: {front['sft_model']}"])
    arguments = merge_arguments(front, point, Path(run_dir) / f"point_{point['id']}")
    policy = trained_policy(point)
    lines += [f"  it is one policy as it was trained: {front['policies'][policy]}"] if policy is not None else []
    return "\n".join([*lines, "", shlex.join(["rlhf-lines", "merge", *arguments])])


def _check_sources(front: Mapping[str, Any], run_dir: str | Path) -> None:
    if "policies" not in front or "sft_model" not in front:
        raise ValueError(
            f"the front does not say which policies it was made from; run it again with: rlhf-lines front {run_dir}"
        )


def _plain(number: float) -> str:
    """All digits of a number without an exponent: argparse takes `-1e-05` for a flag."""
    return format(Decimal(repr(float(number))), "f")


def _setting(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
