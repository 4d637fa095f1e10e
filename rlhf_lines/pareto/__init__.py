"""Fronts: which merged policies are worth choosing, how sure we are, and how two methods compare."""

from __future__ import annotations

from rlhf_lines.lazily import exports


_MODULES = {
    "rlhf_lines.pareto.bootstrap": ["bootstrap_hypervolumes", "bootstrap_means", "interval", "probability_positive"],
    "rlhf_lines.pareto.corrected": ["Corrected", "ExpectedUtility", "Hypervolume", "correct"],
    "rlhf_lines.pareto.figures.benchmarks": ["plot_benchmarks"],
    "rlhf_lines.pareto.figures.forgetting": ["plot_forgetting"],
    "rlhf_lines.pareto.figures.front": ["plot_front"],
    "rlhf_lines.pareto.figures.kl": ["plot_kl"],
    "rlhf_lines.pareto.figures.validation": ["plot_validation"],
    "rlhf_lines.pareto.forgetting": ["damage_undone"],
    "rlhf_lines.pareto.front": ["Point", "build_front"],
    "rlhf_lines.pareto.headline": ["front_headline"],
    "rlhf_lines.pareto.hull": ["hull_vertices"],
    "rlhf_lines.pareto.intervals": ["Estimate", "holm", "mean_estimate", "paired_difference"],
    "rlhf_lines.pareto.measures": ["REFERENCE_POINT_RULE", "hypervolume", "nondominated", "reference_point"],
    "rlhf_lines.pareto.picked": [
        "Picked",
        "Worth",
        "merge_arguments",
        "named_elsewhere",
        "pick",
        "pick_point",
        "picked_text",
    ],
    "rlhf_lines.pareto.schema": ["Front", "read_front", "write_front"],
    "rlhf_lines.pareto.selection": ["difference_of_best", "may_be_best", "picked_worth"],
    "rlhf_lines.pareto.surrogate": [
        "Surrogate",
        "design",
        "fit_surrogate",
        "predict",
        "predicted_front",
        "surrogate_report",
    ],
    "rlhf_lines.pareto.table": ["front_table"],
    "rlhf_lines.pareto.utility": ["UTILITY_RULE", "expected_utility", "ideal_point", "preferences", "utilities"],
}

__all__ = [name for names in _MODULES.values() for name in names]
__getattr__ = exports(__name__, _MODULES)
