"""A merge as a mergekit configuration, where mergekit can express it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec


def mergekit_config(
    spec: MergeSpec,
    sft_model: str,
    policies: Sequence[str | Adapter],
    *,
    num_layers: int,
    out_dtype: str,
) -> str | None:
    """The same merge as a mergekit configuration, or None where mergekit cannot express it.

    A list of numbers (a gradient) is interpolated over the layers, layer l of L at (l-1)/(L-1), and gives the
    parameters outside them its first value. Two values are LiNeS with the linear schedule, L values any schedule whose
    first layer has the factor alpha: no reversed one.

    `linear` and `sum` are `task_arithmetic`, as is `layerwise` where the factors outside the layers are the first
    layer's. `ties` and `breadcrumbs` are the methods of these names where each
    parameter is trimmed alone and options mean the same; of magnitudes that tie at a threshold we keep all, mergekit
    some. `slerp` of whole weights is `slerp` from the first policy, without LiNeS. mergekit's masks of `dare` are its
    own. It reads `+` and `@` in a path as its own signs.

    Source: mergekit 0.1.5: config.py (gradients), merge_methods/generalized_task_arithmetic.py, slerp.py, sparsify.py.
    """
    paths = [policy.path if isinstance(policy, Adapter) else policy for policy in policies]
    scales = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule).tolist()
    rule = RULES[spec.rule]
    if rule.mergekit is None or scales[0] != spec.alpha or spec.lines == "before":
        return None
    if any(sign in path for path in [sft_model, *paths] for sign in "+@"):
        return None
    if not rule.by_layer and (spec.schedule == "linear" or spec.beta == 0):
        scales = [scales[0], scales[-1]]
    method = rule.mergekit(spec.weights, rule.options | spec.options, scales)
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
