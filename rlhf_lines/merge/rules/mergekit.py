"""How mergekit says the merges of our rules, where it computes the same.

Each function takes the weights, all options of the rule, and the factors of LiNeS: one per layer, or those of the first
and the last layer, between which mergekit interpolates, where the rule has no factors by layer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lines.merge.rules.common import preference_factors
from rlhf_lines.merge.rules.profile import Profile


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods with its parameters: of each policy, and of the merge.

    Attributes:
        starts_from_policy: mergekit's `base_model` is the first policy, not the SFT model.
    """

    name: str
    of_policies: list[dict[str, Any]]
    of_merge: dict[str, Any]
    starts_from_policy: bool = False


def linear(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method:
    """Task arithmetic with the weights of the policies."""
    of_policies = [{"weight": [weight * scale for scale in scales]} for weight in weights]
    return Method("task_arithmetic", of_policies, {"lambda": 1.0, "normalize": False})


def sum_residuals(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method:
    """Task arithmetic with the weights K w_k."""
    return linear(preference_factors(len(weights), weights), options, scales)


def layerwise(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method | None:
    """Task arithmetic with a factor per layer, where what lies outside the layers has the first layer's."""
    profile = Profile.of(options).scaled(preference_factors(len(weights), weights))
    if any(factor != row[0] for factor, row in zip(profile.outside, profile.factors, strict=True)):
        return None  # mergekit gives the parameters outside the layers the first factor
    of_policies = [
        {"weight": [factor * scale for factor, scale in zip(row, scales, strict=True)]} for row in profile.factors
    ]
    return Method("task_arithmetic", of_policies, {"lambda": 1.0, "normalize": False})


def ties(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method | None:
    """TIES of each parameter alone, where the sum of what agrees is taken, or the mean with equal weights."""
    factors = preference_factors(len(weights), weights)
    if (options["granularity"], options["zero_sign"]) != ("tensor", "positive") or options["density"] == 0:
        return None  # density 0 keeps one entry here and none there
    if options["reduction"] == "sum":
        weights, size, normalize = factors, 1.0, False
    elif options["reduction"] == "mean" and len(set(factors)) == 1 and factors[0] > 0:
        weights, size, normalize = [1.0] * len(factors), factors[0], True
    else:
        return None  # mergekit's mean is a weighted one
    of_policies = [{"weight": weight, "density": options["density"]} for weight in weights]
    return Method("ties", of_policies, {"lambda": [size * scale for scale in scales], "normalize": normalize})


def breadcrumbs(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method | None:
    """Breadcrumbs of each parameter alone, where something is removed and both shares fit into the whole."""
    if (options["granularity"], options["order"]) != ("tensor", "remove_first"):
        return None
    if options["keep"] == 1 or options["keep"] + options["remove"] > 1:
        return None  # mergekit removes nothing then, or fewer of the largest
    of_policies = [
        {"weight": factor, "density": options["keep"], "gamma": options["remove"]}
        for factor in preference_factors(len(weights), weights)
    ]
    return Method("breadcrumbs", of_policies, {"lambda": [options["scale"] * scale for scale in scales]})


def slerp(weights: Sequence[float], options: Mapping[str, Any], scales: Sequence[float]) -> Method | None:
    """The arc between whole weights, one angle a parameter, without LiNeS."""
    same = options == {"granularity": "tensor", "of": "weights", "dot_threshold": 0.9995}
    if not same or set(scales) != {1.0} or sum(weights) != 1:
        return None
    return Method("slerp", [{}, {}], {"t": weights[1]}, starts_from_policy=True)
