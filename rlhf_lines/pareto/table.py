"""A front as plain text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lines.pareto.style import policy_names


WIDTH = 110
NAME_WIDTH = 20


def front_table(front: Mapping[str, Any]) -> str:
    """The front as aligned text of at most 110 columns, without a trailing newline.

    First hypervolume and expected utility of each group, then the differences between groups, then one line per point;
    `*` marks the points that no other point of their group dominates. A point that is one policy as it was trained
    has that policy's name in place of weights. Columns that do not fit beside each other continue in a further block.

    Args:
        front: what `build_front` returns.
    """
    confidence = f"{100 * front['confidence']:g} % intervals" if "confidence" in front else "intervals"
    head = f"{front['points'][0]['prompts']} {front['split']} prompts, {confidence} over prompts, higher is better"
    if any(point.get("perplexity") for point in front["points"]):
        head += "\nppl: perplexity of the control texts, lower is better"
    return "\n\n".join([head, *_groups(front), *_differences(front), *_points(front)])


def trained_policy(point: Mapping[str, Any]) -> int | None:
    """Which policy a point is, as it was trained: one weight is 1, the others 0, nothing is scaled; or None.

    >>> trained_policy({"spec": {"rule": "linear", "weights": [0.0, 1.0], "alpha": 1.0, "beta": 0.0}})
    1
    """
    spec = point["spec"]
    weights = list(spec.get("weights") or [])
    one_hot = sorted(weights) == [0.0] * (len(weights) - 1) + [1.0]
    unscaled = spec.get("rule") in ("linear", "sum") and (spec.get("alpha"), spec.get("beta")) == (1.0, 0.0)
    return weights.index(1.0) if one_hot and unscaled else None


def _groups(front: Mapping[str, Any]) -> list[str]:
    if not front["fronts"]:
        return []
    schedules: dict[str, dict[str, None]] = {}
    for point in front["points"]:
        schedules.setdefault(point["group"], {})[point["spec"].get("schedule") or "linear"] = None
    columns = [["group", *(_clip(group) for group in front["fronts"])]]
    for measure in ("hypervolume", "expected_utility"):
        columns.append(_estimates(measure, [entry[measure] for entry in front["fronts"].values()]))
    sizes = [sum(point["group"] == group for point in front["points"]) for group in front["fronts"]]
    columns.append(["points", *map(str, sizes)])
    columns.append(["nondominated", *(str(len(entry["nondominated"])) for entry in front["fronts"].values())])
    if any(list(schedules[group]) != ["linear"] for group in front["fronts"]):
        columns.append(["schedule", *(_clip(", ".join(schedules[group])) for group in front["fronts"])])
    return [_align(list(zip(*columns, strict=True)), left=1)]


def _differences(front: Mapping[str, Any]) -> list[str]:
    if not front["comparisons"]:
        return []
    columns = [["difference", *(f"{_clip(entry['a'])} - {_clip(entry['b'])}" for entry in front["comparisons"])]]
    for measure in ("hypervolume", "expected_utility"):
        differences = [entry[f"{measure}_difference"] for entry in front["comparisons"]]
        columns.append(_estimates(measure, differences))
        columns.append(["P(> 0)", *(f"{difference['probability_positive']:.3f}" for difference in differences)])
    return [_align(list(zip(*columns, strict=True)), left=1)]


def _estimates(measure: str, estimates: Sequence[Mapping[str, float]]) -> list[str]:
    digits = decimals([estimate["value"] for estimate in estimates])
    return [measure.replace("_", " "), *(estimate_text(estimate, digits) for estimate in estimates)]


def _points(front: Mapping[str, Any]) -> list[str]:
    best = {i for entry in front["fronts"].values() for i in entry["nondominated"]}
    fixed = [[" id", "group", "weights", "alpha", "beta"]]
    for point in front["points"]:
        spec = point["spec"]
        fixed.append(
            [
                f"{'*' if point['id'] in best else ' '}{point['id']}",
                _clip(point["group"]),
                _weights(front, point),
                _plain(spec.get("alpha")),
                _plain(spec.get("beta")),
            ]
        )
    columns = []
    for reward in front["rewards"]:
        scores = [point["scores"][reward] for point in front["points"]]
        digits = decimals([score["mean"] for score in scores])
        columns.append([_clip(reward), *(estimate_text(score, digits) for score in scores)])
    for key, name in (("kl", "kl"), ("perplexity", "ppl")):
        means = [point[key]["mean"] if point.get(key) else None for point in front["points"]]
        digits = decimals([mean for mean in means if mean is not None])
        if any(mean is not None for mean in means):
            columns.append([name, *("-" if mean is None else f"{mean:.{digits}f}" for mean in means)])
    return [
        _align([[*row, *(column[i] for column in block)] for i, row in enumerate(fixed)], left=3)
        for block in _blocks(fixed, columns)
    ]


def _blocks(fixed: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """The columns in groups that fit beside the fixed columns; a group has at least one column."""
    used = sum(2 + max(len(row[i]) for row in fixed) for i in range(len(fixed[0]))) - 2
    blocks: list[list[Sequence[str]]] = [[]]
    free = WIDTH - used
    for column in columns:
        width = 2 + max(map(len, column))
        if width > free and blocks[-1]:
            blocks.append([])
            free = WIDTH - used
        blocks[-1].append(column)
        free -= width
    return blocks


def estimate_text(estimate: Mapping[str, float], digits: int) -> str:
    value = estimate["mean"] if "mean" in estimate else estimate["value"]
    return f"{value:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def decimals(values: Sequence[float]) -> int:
    """How many decimals show about four significant digits of the largest value."""
    largest = max((abs(value) for value in values), default=0.0)
    for digits, bound in ((1, 100.0), (2, 10.0), (3, 0.1), (4, 0.01)):
        if largest >= bound:
            return digits
    return 3 if largest == 0.0 else 6


def _weights(front: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    policy, names = trained_policy(point), policy_names(front)
    if policy is not None and policy < len(names):
        return _clip(names[policy])
    return " ".join(f"{weight:.2f}" for weight in point["spec"].get("weights") or []) or "-"


def _plain(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2f}"


def _clip(text: str) -> str:
    """The text on one line, shortened to the column."""
    text = " ".join(text.split())
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 3] + "..."


def _align(rows: Sequence[Sequence[str]], left: int) -> str:
    """The rows with columns aligned: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
