"""The points of a front as a table with a row each: `front.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from rlhf_lines.pareto.schema import Front, PointEntry


ENDS = ("mean", "low", "high")
SCALARS = ("tokens", "share_empty", "share_cut", "repetition", "distinct", "win_rate", "log_ratio")


def front_csv(front: Front) -> str:
    """Every point with its spec, and mean, low and high of all that was measured of it.

    RFC 4180 with line feeds; what a point does not have is an empty field, floats have the digits that give them back.

    Args:
        front: what `build_front` returns.
    """
    longest = max(len(point["spec"]["weights"]) for point in front["points"])
    rows = [_row(front, point, longest) for point in front["points"]]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _row(front: Front, point: PointEntry, longest: int) -> dict[str, Any]:
    spec, metrics = point["spec"], point["metrics"]
    weights = [*spec["weights"], *[0.0] * (longest - len(spec["weights"]))]
    best = {i for entry in front["fronts"].values() for i in entry["nondominated"]}
    row: dict[str, Any] = {"point": point["id"], "group": point["group"], "label": point["label"]}
    row["nondominated"] = int(point["id"] in best) if point["group"] in front["fronts"] else None
    for objective in front["objectives"]:
        row |= _estimate(f"score_{objective}", point["scores"][objective])
    for name in front["metrics"]:
        row |= _estimate(f"score_{name}", metrics.get(name))
    row |= _estimate("kl", point["kl"]) | _estimate("perplexity", point["perplexity"])
    for name in SCALARS:
        row |= _estimate(name, metrics.get(name))
    for name in ("length_correlation", "at_matched_length"):
        for objective in front["objectives"]:
            row |= _estimate(f"{name}_{objective}", (metrics.get(name) or {}).get(objective))
    row |= {f"weight_{k}": weight for k, weight in enumerate(weights, 1)}
    row |= {key: spec[key] for key in ("rule", "alpha", "beta", "schedule")}
    row["options"] = json.dumps(spec["options"], sort_keys=True)
    return row | {key: point[key] for key in ("prompts", "samples_per_prompt")}


def _estimate(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {f"{name}_{end}": None if estimate is None else estimate[end] for end in ENDS}
