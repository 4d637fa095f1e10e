"""Merge rules: how the residuals of K policies become one residual.

A rule is a function `(residuals, weights, **options) -> residual`. `residuals` are aligned (same names, same shapes,
float32 or wider) and must not be changed, `weights` is None or one finite float per residual, options are
keyword-only. To add a rule: write its file, enter it in `RULES`, and in `PER_TENSOR_RULES` if it treats every tensor
on its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.precision import wide
from rlhf_lines.merge.rules.linear import linear
from rlhf_lines.merge.rules.sum import sum_residuals
from rlhf_lines.suggestion import unknown_name


RULES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "linear": linear,  # arXiv 2306.04488, rewarded soups
    "sum": sum_residuals,  # arXiv 2212.04089, task arithmetic
}

# These combine the factors of adapters (merge/factor_rules.py) and have no options; no residual shows A and B.
ADAPTER_RULES = ("factor_average", "peft_linear")

PER_TENSOR_RULES = frozenset({"linear", "sum"})


def check_rule(rule: str, options: Mapping[str, object]) -> None:
    """Stop with a ValueError if the rule or one of its options is unknown."""
    if rule not in (*RULES, *ADAPTER_RULES):
        raise ValueError(unknown_name("rule", rule, (*RULES, *ADAPTER_RULES)))
    parameters = inspect.signature(RULES[rule]).parameters.values() if rule in RULES else ()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f"option of rule {rule!r}", option, known))


def merge_residuals(
    residuals: Sequence[Mapping[str, Tensor]],
    rule: str = "linear",
    *,
    weights: Sequence[float] | None = None,
    **options: object,
) -> dict[str, Tensor]:
    """The merged residual tau_M of K residuals, unscaled (LiNeS comes afterwards).

    Weights may be any finite numbers: a residual form cannot rescale the base, so weights that do not sum to one
    extrapolate, and all-zero weights give the SFT model. None means 1/K each for `linear` and a plain sum for `sum`. A
    rule that is not linear in the residuals gets its weights by scaling tau_k by K w_k before it.

    Args:
        residuals: one mapping from parameter name to tensor per policy; a missing name counts as zero.
        rule: a name in `RULES`.
        weights: one per residual.
        **options: options of the rule.

    Returns:
        A new residual in float32, float64 where an input is float64. The inputs are not changed.

    Raises:
        ValueError: unknown rule or option, weights that do not fit, or shapes that differ.
    """
    check_rule(rule, options)
    if rule in ADAPTER_RULES:
        raise ValueError(f"rule {rule!r} combines the factors of adapters, which residuals do not show; use linear")
    if not residuals:
        raise ValueError("merge_residuals got no residuals, expected at least one")
    if weights is not None:
        weights = [float(weight) for weight in weights]
        if len(weights) != len(residuals):
            raise ValueError(f"{len(weights)} weights for {len(residuals)} residuals; give one weight per residual")
        for weight in weights:
            if not math.isfinite(weight):
                raise ValueError(f"weights are {weights}, expected finite numbers")
    return RULES[rule](_align(residuals), weights, **options)


def _align(residuals: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The residuals with the union of their names, missing ones zero, in the widest dtype of each name."""
    aligned: list[dict[str, Tensor]] = [{} for _ in residuals]
    for name in dict.fromkeys(name for residual in residuals for name in residual):
        present = [wide(residual[name], name) for residual in residuals if name in residual]
        shapes = [tuple(tensor.shape) for tensor in present]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{name!r} has shapes {' and '.join(map(str, shapes))}; residuals of one base have equal shapes"
            )
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        for residual, row in zip(residuals, aligned, strict=True):
            row[name] = residual[name].to(dtype) if name in residual else torch.zeros_like(present[0], dtype=dtype)
    return aligned
