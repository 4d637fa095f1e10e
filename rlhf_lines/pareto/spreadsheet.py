"""What was measured of points as columns: `front.csv`, a row each; `rlhf-lines export` has the same."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rlhf_lines.pareto.benchmarks import benchmark_metrics
from rlhf_lines.pareto.schema import BY_OBJECTIVE, Front, Measured, PointEntry, nondominated


ENDS = ("mean", "low", "high")
SCALARS = ("tokens", "share_empty", "share_cut", "repetition", "distinct", "log_ratio")


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


def measured_row(
    point: Measured, objectives: Sequence[str], metrics: Sequence[str], asked: Sequence[str] = ()
) -> dict[str, float | None]:
    """Everything that was measured of a point, `NAME_mean`, `NAME_low` and `NAME_high` of each; None where it was not.

    The columns depend on the names alone.

    Args:
        point: of a front, or of another split.
        objectives: names of its scores.
        metrics: names of further scores.
        asked: metrics of benchmarks.
    """
    found, scores = point["metrics"], point["scores"]
    wins: Any = found.get("win_rate") or {}
    of = {f"score_{name}": scores[name] for name in objectives} | {f"score_{name}": found.get(name) for name in metrics}
    of |= {"kl": point["kl"], "perplexity": point["perplexity"]} | {name: found.get(name) for name in SCALARS}
    of |= {"win_rate": wins} | {name: wins.get(name) for name in ("all_better", "all_worse")}
    by_objective = {"win_rate": wins.get("by_objective")}
    by_objective |= {name: found.get(name) for name in BY_OBJECTIVE}
    for name, values in by_objective.items():
        of |= {f"{name}_{objective}": (values or {}).get(objective) for objective in objectives}
    of |= {name: found.get(name) for name in asked}
    return {f"{name}_{end}": estimate[end] if estimate else None for name, estimate in of.items() for end in ENDS}


def measured_columns(objectives: Sequence[str], metrics: Sequence[str], asked: Sequence[str] = ()) -> list[str]:
    """The columns of `measured_row`, of any point."""
    nothing: Any = {"scores": dict.fromkeys(objectives), "metrics": {}, "kl": None, "perplexity": None}
    return list(measured_row(nothing, objectives, metrics, asked))


def _row(front: Front, point: PointEntry, longest: int) -> dict[str, Any]:
    spec = point["spec"]
    weights = [*spec["weights"], *[0.0] * (longest - len(spec["weights"]))]
    best = nondominated(front)
    row: dict[str, Any] = {"point": point["id"], "group": point["group"], "label": point["label"]}
    row["nondominated"] = int(point["id"] in best) if point["group"] in front["fronts"] else None
    row |= measured_row(point, front["objectives"], front["metrics"], list(benchmark_metrics(front)))
    row |= {f"weight_{k}": weight for k, weight in enumerate(weights, 1)}
    row |= {key: spec[key] for key in ("rule", "alpha", "beta", "schedule")}
    row["options"] = json.dumps(spec["options"], sort_keys=True)
    row["lines"] = spec.get("lines", "after")
    return row | {key: point[key] for key in ("prompts", "samples_per_prompt")}
