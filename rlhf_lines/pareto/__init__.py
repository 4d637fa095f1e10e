"""Fronts: which merged policies are worth choosing, how sure we are, and how two methods compare."""

from rlhf_lines.pareto.front import (
    REFERENCE_POINT_RULE,
    Point,
    build_front,
    hypervolume,
    nondominated,
    read_front,
    reference_point,
    write_front,
)
from rlhf_lines.pareto.plot import plot_front
from rlhf_lines.pareto.statistics import (
    Estimate,
    bootstrap_hypervolumes,
    bootstrap_means,
    interval,
    paired_difference,
    probability_positive,
)
from rlhf_lines.pareto.table import front_table


__all__ = [
    "REFERENCE_POINT_RULE",
    "Estimate",
    "Point",
    "bootstrap_hypervolumes",
    "bootstrap_means",
    "build_front",
    "front_table",
    "hypervolume",
    "interval",
    "nondominated",
    "paired_difference",
    "plot_front",
    "probability_positive",
    "read_front",
    "reference_point",
    "write_front",
]
