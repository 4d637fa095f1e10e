"""A front as plain text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


WIDTH = 110
NAME_WIDTH = 20


def front_table(front: Mapping[str, Any]) -> str:
    """Returns the front as aligned text of at most 110 columns, without a trailing newline.

    First the hypervolume of each group, then the differences between groups, then one line per point; ``*`` marks the
    points that no other point of their group dominates. Rewards that do not fit beside each other continue in a
    further block.

    Args:
        front: What `build_front` returns.
    """
    confidence = f"{100 * front['confidence']:g} % intervals" if "confidence" in front else "intervals"
    head = f"{front['split']} prompts, {confidence} over prompts, higher is better"
    return "\n\n".join([head, *_hypervolumes(front), *_points(front)])


def _hypervolumes(front: Mapping[str, Any]) -> list[str]:
    volumes = {group: entry["hypervolume"] for group, entry in front["fronts"].items()}
    differences = [entry["hypervolume_difference"] for entry in front["comparisons"]]
    estimates = [*volumes.values(), *differences]
    digits = decimals([estimate["value"] for estimate in estimates])
    sections = []
    if volumes:
        rows = [["hypervolume", "value", "points", "nondominated"]]
        for group, volume in volumes.items():
            size = sum(point["group"] == group for point in front["points"])
            rows.append(
                [
                    _clip(group),
                    estimate_text(volume, digits),
                    str(size),
                    str(len(front["fronts"][group]["nondominated"])),
                ]
            )
        sections.append(_align(rows, left=1))
    if differences:
        rows = [["difference", "value", "P(> 0)"]]
        for entry, difference in zip(front["comparisons"], differences, strict=True):
            pair = f"{_clip(entry['a'])} - {_clip(entry['b'])}"
            rows.append([pair, estimate_text(difference, digits), f"{difference['probability_positive']:.3f}"])
        sections.append(_align(rows, left=1))
    return sections


def _points(front: Mapping[str, Any]) -> list[str]:
    best = {i for entry in front["fronts"].values() for i in entry["nondominated"]}
    fixed = [["", "id", "group", "weights", "alpha", "beta"]]
    for point in front["points"]:
        spec = point["spec"]
        fixed.append(
            [
                "*" if point["id"] in best else "",
                str(point["id"]),
                _clip(point["group"]),
                " ".join(f"{weight:.2f}" for weight in spec.get("weights") or []) or "-",
                _plain(spec.get("alpha")),
                _plain(spec.get("beta")),
            ]
        )
    columns = []
    for reward in front["rewards"]:
        scores = [point["scores"][reward] for point in front["points"]]
        digits = decimals([score["mean"] for score in scores])
        columns.append([_clip(reward), *(estimate_text(score, digits) for score in scores)])
    if any(point["kl"] is not None for point in front["points"]):
        known = [point["kl"]["mean"] for point in front["points"] if point["kl"] is not None]
        digits = decimals(known)
        columns.append(
            ["kl", *("-" if point["kl"] is None else f"{point['kl']['mean']:.{digits}f}" for point in front["points"])]
        )
    return [
        _align([[*row, *(column[i] for column in block)] for i, row in enumerate(fixed)], left=4)
        for block in _blocks(fixed, columns)
    ]


def _blocks(fixed: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Returns the columns in groups that fit beside the fixed columns; a group has at least one column."""
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
    """Returns how many decimals show about four significant digits of the largest value."""
    largest = max((abs(value) for value in values), default=0.0)
    for digits, bound in ((1, 100.0), (2, 10.0), (3, 0.1), (4, 0.01)):
        if largest >= bound:
            return digits
    return 3 if largest == 0.0 else 6


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _clip(text: str) -> str:
    """Returns the text on one line, shortened to the column."""
    text = " ".join(text.split())
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 3] + "..."


def _align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Returns the rows with columns aligned: the first ``left`` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
