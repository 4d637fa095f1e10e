"""A merge as a mergekit configuration, where mergekit can express it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.lora.low_rank import linear_weights
from rlhf_lines.merge.rules.common import preference_factors
from rlhf_lines.merge.spec import MergeSpec


@dataclass(frozen=True)
class _Method:
    """One of mergekit's methods with its parameters: of each policy, and of the merge.

    Attributes:
        starts_from_policy: mergekit's `base_model` is the first policy, not the SFT model.
    """

    name: str
    of_policies: list[dict[str, Any]]
    of_merge: dict[str, Any]
    starts_from_policy: bool = False


def mergekit_recipe(
    spec: MergeSpec,
    sft_model: str,
    policies: Sequence[str | Adapter],
    *,
    num_layers: int,
    out_dtype: str,
) -> str | None:
    """The same merge as a mergekit configuration, or None where mergekit cannot express it.

    A list of numbers (a gradient) is interpolated over the blocks, block l of L at (l-1)/(L-1), and gives the
    parameters outside them its first value. Two values are LiNeS with the linear schedule, L values any schedule whose
    first block has the factor alpha: no reversed one.

    `linear` and `sum` are `task_arithmetic`. `ties` and `breadcrumbs` are the methods of these names where each
    parameter is trimmed alone and options mean the same; of magnitudes that tie at a threshold we keep all, mergekit
    some. `slerp` of whole weights is `slerp` from the first policy, without LiNeS. mergekit's masks of `dare` are its
    own. It reads `+` and `@` in a path as its own signs.

    Source: mergekit 0.1.5: config.py (gradients), merge_methods/generalized_task_arithmetic.py, slerp.py, sparsify.py.
    """
    paths = [policy.path if isinstance(policy, Adapter) else policy for policy in policies]
    scales = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule).tolist()
    if spec.rule not in _METHODS or scales[0] != spec.alpha:
        return None
    if any(sign in path for path in [sft_model, *paths] for sign in "+@"):
        return None
    if spec.schedule == "linear" or spec.beta == 0:
        scales = [scales[0], scales[-1]]
    method = _METHODS[spec.rule](spec, scales)
    if method is None:
        return None
    names = [
        f"{sft_model}+{path}" if isinstance(policy, Adapter) else path
        for policy, path in zip(policies, paths, strict=True)
    ]
    content = {
        "merge_method": method.name,
        "base_model": names[0] if method.starts_from_policy else sft_model,
        "models": [
            {"model": name, "parameters": parameters} if parameters else {"model": name}
            for name, parameters in zip(names, method.of_policies, strict=True)
        ],
        "parameters": method.of_merge,
        "dtype": "float32",
        "out_dtype": out_dtype,
    }
    # mergekit first merges an adapter into its base, in the dtype of the base unless it is told otherwise.
    flags = " --lora-merge-dtype float32 --lora-merge-cache CACHE_DIR" if names != paths else ""
    return f"# mergekit-yaml mergekit.yaml OUTPUT_DIR{flags}\n" + yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True, width=float("inf")
    )


def _task_arithmetic(spec: MergeSpec, scales: list[float]) -> _Method:
    of_policies = [{"weight": [weight * scale for scale in scales]} for weight in linear_weights(spec)]
    return _Method("task_arithmetic", of_policies, {"lambda": 1.0, "normalize": False})


def _ties(spec: MergeSpec, scales: list[float]) -> _Method | None:
    options = {"density": 0.2, "reduction": "mean", "granularity": "global", "zero_sign": "majority", **spec.options}
    factors = preference_factors(len(spec.weights), spec.weights)
    if (options["granularity"], options["zero_sign"]) != ("tensor", "positive") or options["density"] == 0:
        return None  # density 0 keeps one entry here and none there
    if options["reduction"] == "sum":
        weights, size, normalize = factors, 1.0, False
    elif options["reduction"] == "mean" and len(set(factors)) == 1 and factors[0] > 0:
        weights, size, normalize = [1.0] * len(factors), factors[0], True
    else:
        return None  # mergekit's mean is a weighted one
    of_policies = [{"weight": weight, "density": options["density"]} for weight in weights]
    return _Method("ties", of_policies, {"lambda": [size * scale for scale in scales], "normalize": normalize})


def _breadcrumbs(spec: MergeSpec, scales: list[float]) -> _Method | None:
    options = {"keep": 0.2, "remove": 0.1, "order": "remove_first", "scale": 1.0, "granularity": "row", **spec.options}
    if (options["granularity"], options["order"]) != ("tensor", "remove_first"):
        return None
    if options["keep"] == 1 or options["keep"] + options["remove"] > 1:
        return None  # mergekit removes nothing then, or fewer of the largest
    of_policies = [
        {"weight": factor, "density": options["keep"], "gamma": options["remove"]}
        for factor in preference_factors(len(spec.weights), spec.weights)
    ]
    return _Method("breadcrumbs", of_policies, {"lambda": [options["scale"] * scale for scale in scales]})


def _slerp(spec: MergeSpec, scales: list[float]) -> _Method | None:
    options = {"granularity": "tensor", "of": "residuals", "dot_threshold": 0.9995, **spec.options}
    same = options == {"granularity": "tensor", "of": "weights", "dot_threshold": 0.9995}
    if not same or set(scales) != {1.0} or sum(spec.weights) != 1:
        return None
    return _Method("slerp", [{}, {}], {"t": spec.weights[1]}, starts_from_policy=True)


_METHODS: dict[str, Callable[[MergeSpec, list[float]], _Method | None]] = {
    "linear": _task_arithmetic,
    "sum": _task_arithmetic,
    "ties": _ties,
    "breadcrumbs": _breadcrumbs,
    "slerp": _slerp,
}
