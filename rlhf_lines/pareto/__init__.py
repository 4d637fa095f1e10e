"""Fronts: which merged policies are worth choosing, how sure we are, and how two methods compare."""

from __future__ import annotations

from rlhf_lines.pareto.attainment import attained_regions
from rlhf_lines.pareto.bootstrap import (
    bootstrap_hypervolumes,
    bootstrap_means,
    interval,
    probability_positive,
)
from rlhf_lines.pareto.corrected import Corrected, ExpectedUtility, Hypervolume, correct
from rlhf_lines.pareto.figures.forgetting import plot_forgetting
from rlhf_lines.pareto.figures.front import plot_front
from rlhf_lines.pareto.figures.validation import plot_validation
from rlhf_lines.pareto.forgetting import damage_undone
from rlhf_lines.pareto.front import Point, build_front
from rlhf_lines.pareto.headline import front_headline
from rlhf_lines.pareto.hull import hull_vertices
from rlhf_lines.pareto.intervals import Estimate, holm, mean_estimate, paired_difference
from rlhf_lines.pareto.measures import REFERENCE_POINT_RULE, hypervolume, nondominated, reference_point
from rlhf_lines.pareto.pick import Picked, Worth, merge_arguments, pick, pick_point, picked_text
from rlhf_lines.pareto.schema import Front, read_front, write_front
from rlhf_lines.pareto.selection import may_be_best, picked_worth
from rlhf_lines.pareto.surrogate import (
    Surrogate,
    design,
    fit_surrogate,
    predict,
    predicted_front,
    surrogate_report,
)
from rlhf_lines.pareto.table import front_table
from rlhf_lines.pareto.utility import UTILITY_RULE, expected_utility, ideal_point, preferences, utilities


__all__ = [
    "REFERENCE_POINT_RULE",
    "UTILITY_RULE",
    "Corrected",
    "Estimate",
    "ExpectedUtility",
    "Front",
    "Hypervolume",
    "Picked",
    "Point",
    "Surrogate",
    "Worth",
    "attained_regions",
    "bootstrap_hypervolumes",
    "bootstrap_means",
    "build_front",
    "correct",
    "damage_undone",
    "design",
    "expected_utility",
    "fit_surrogate",
    "front_headline",
    "front_table",
    "holm",
    "hull_vertices",
    "hypervolume",
    "ideal_point",
    "interval",
    "may_be_best",
    "mean_estimate",
    "merge_arguments",
    "nondominated",
    "paired_difference",
    "pick",
    "pick_point",
    "picked_text",
    "picked_worth",
    "plot_forgetting",
    "plot_front",
    "plot_validation",
    "predict",
    "predicted_front",
    "preferences",
    "probability_positive",
    "read_front",
    "reference_point",
    "surrogate_report",
    "utilities",
    "write_front",
]
