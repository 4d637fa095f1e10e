"""The exact merge of LoRA adapters: stacked factors, one coefficient per rank.

A weighted sum of K residuals of rank r_k is a residual of rank sum_k r_k, whose factors are the given ones:

    sum_k w_k s_k B_k A_k = [s_1 B_1, s_2 B_2, ...] diag(w_1 .. w_1, w_2 .. w_2, ...) [A_1; A_2; ...]

so a merged policy differs from another only by the diagonal, and LiNeS is one more factor per layer on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lines.errors import counted
from rlhf_lines.merge.inputs.adapter import Adapter, Factors
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import widest


@dataclass(frozen=True)
class Stacked:
    """The factors of all policies for one module; R is the sum of `ranks`.

    The merged residual is `B diag(c) A` with c from `coefficients`. All modules have the same `ranks`: where a
    policy has a smaller rank, or does not adapt the module, its segment is filled with zeros. So one diagonal serves a
    whole layer, and the saved adapter has one rank, which every server takes (some ignore or refuse `rank_pattern`).

    Attributes:
        A: `[R, in]`.
        B: `[out, R]`, LoRA scales included, weights not.
        ranks: the width of each policy's segment.
    """

    A: Tensor
    B: Tensor
    ranks: tuple[int, ...]


def stack(adapters: Sequence[Adapter]) -> dict[str, Stacked]:
    """The stacked factors of every module that any of the adapters has.

    Raises:
        ValueError: no adapter, or a module whose weight has two shapes.
    """
    if not adapters:
        raise ValueError("stack got no adapters, expected at least one")
    ranks = tuple(max(factors.A.shape[0] for factors in adapter.modules.values()) for adapter in adapters)
    modules = sorted({module for adapter in adapters for module in adapter.modules})
    return {module: _stack_module(module, adapters, ranks) for module in modules}


def coefficients(
    spec: MergeSpec,
    ranks: Sequence[int],
    layer: int | None,
    num_layers: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The diagonal c of a spec in one layer, `[R]`: lambda(layer) w_k, repeated r_k times.

        linear: c_k = lambda w_k     sum: c_k = lambda K w_k     layerwise: c_k = lambda K w_k factors[k][layer]

    Args:
        spec: a linear spec.
        ranks: `Stacked.ranks`.
        layer: 0-based layer index, None outside the layers (factor alpha).
        num_layers: L.
        dtype: of the result; computed in float64.

    Raises:
        ValueError: a rule that is not linear in the residuals, or a number of weights or factors that does not fit.
    """
    _check_count(spec, len(ranks))
    weights = torch.tensor(linear_weights(spec), dtype=torch.float64)
    if spec.profile is not None:
        spec.profile.check(policies=len(ranks), num_layers=num_layers)
        weights *= torch.tensor(spec.profile.at(layer), dtype=torch.float64)
    weights *= _lines_factor(spec, layer, num_layers)
    return weights.repeat_interleave(torch.tensor(ranks)).to(dtype)


def linear_weights(spec: MergeSpec) -> tuple[float, ...]:
    """The factor of every tau_k before LiNeS and factors by layer.

    Raises:
        ValueError: the rule is not linear in the residuals, so there is no such factor.
    """
    coefficients_of = RULES[spec.rule].coefficients
    if coefficients_of is None:
        raise ValueError(not_linear(spec.rule))
    return tuple(coefficients_of(len(spec.weights), spec.weights))


def not_linear(rule: str) -> str:
    """Why a rule has no exact adapter, and what to do instead."""
    return (
        f"rule {rule!r} is not linear in the residuals, so no adapter holds it exactly; give --rank, which truncates "
        "it and says what that loses, or use --save dense"
    )


def merge_adapters(adapters: Sequence[Adapter], spec: MergeSpec, *, num_layers: int) -> dict[str, Factors]:
    """The merged policy as one adapter with scale 1 and one rank R for all modules.

        A' = [A_1; A_2; ...],   B' = lambda(l) [w_1 s_1 B_1, w_2 s_2 B_2, ...]

    where R is the sum of the ranks. Rules on factors, which exist for comparison, keep the rank of the policies
    instead. LiNeS multiplies B only; on both factors it would be squared.

    Args:
        adapters: K policies on one base (see `check_same_base`).
        spec: a spec with a rule that is linear in the residuals, or one on factors.
        num_layers: the model's number of layers.

    Raises:
        ValueError: another rule, weights that do not fit, or module names without a layer index.
    """
    if RULES[spec.rule].on_factors:
        return _merge_factors(adapters, spec, num_layers)
    stacked = stack(adapters)
    layers = layer_indices([f"{module}.weight" for module in stacked], num_layers=num_layers)
    merged = {}
    for module, factors in stacked.items():
        layer = layers[f"{module}.weight"]
        diagonal = coefficients(spec, factors.ranks, layer, num_layers, dtype=factors.B.dtype)
        merged[module] = Factors(factors.A, factors.B * diagonal, 1.0)
    return merged


def difference(left: Mapping[str, Factors], right: Mapping[str, Factors]) -> float:
    """The relative L2 distance of two adapters' residuals, ||right - left|| / ||left||, without forming them.

    With B = [s B_left, -s B_right] and A = [A_left; A_right] the squared norm of B A is the sum over (B^T B) * (A A^T).
    """
    squared = sum(_squared_norm([(left[module], 1.0), (right[module], -1.0)]) for module in left)
    total = sum(_squared_norm([(left[module], 1.0)]) for module in left)
    return (max(squared, 0.0) / total) ** 0.5 if total else 0.0


def _merge_factors(adapters: Sequence[Adapter], spec: MergeSpec, num_layers: int) -> dict[str, Factors]:
    _check_count(spec, len(adapters))
    combined = _one_rank(RULES[spec.rule].function(adapters, spec.weights))
    layers = layer_indices([f"{module}.weight" for module in combined], num_layers=num_layers)
    return {
        module: Factors(
            factors.A,
            factors.B * (factors.scale * _lines_factor(spec, layers[f"{module}.weight"], num_layers)),
            1.0,
        )
        for module, factors in combined.items()
    }


def _one_rank(modules: dict[str, Factors]) -> dict[str, Factors]:
    """The same residuals with zeros added, so that all modules have the largest rank."""
    rank = max(factors.A.shape[0] for factors in modules.values())
    pad, padded = torch.nn.functional.pad, {}
    for module, factors in modules.items():
        missing = rank - factors.A.shape[0]
        padded[module] = Factors(pad(factors.A, (0, 0, 0, missing)), pad(factors.B, (0, missing)), factors.scale)
    return padded


def _lines_factor(spec: MergeSpec, layer: int | None, num_layers: int) -> float:
    if layer is None:
        return spec.alpha
    return lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule)[layer].item()


def _check_count(spec: MergeSpec, policies: int) -> None:
    if len(spec.weights) != policies:
        raise ValueError(
            f"the spec has {counted(len(spec.weights), 'weight')} for {counted(policies, 'policy', 'policies')}; "
            "give one weight per policy"
        )


def _squared_norm(terms: Sequence[tuple[Factors, float]]) -> float:
    """||sum_i sign_i s_i B_i A_i||_F^2."""
    A = torch.cat([factors.A.to(torch.float64) for factors, _ in terms])
    B = torch.cat([factors.B.to(torch.float64) * (sign * factors.scale) for factors, sign in terms], dim=1)
    return ((B.T @ B) * (A @ A.T)).sum().item()


def _stack_module(module: str, adapters: Sequence[Adapter], ranks: Sequence[int]) -> Stacked:
    owned = [adapter.modules.get(module) for adapter in adapters]
    present = [factors for factors in owned if factors is not None]
    shapes = {(factors.B.shape[0], factors.A.shape[1]) for factors in present}
    if len(shapes) > 1:
        raise ValueError(f"{module!r} has shapes {sorted(shapes)} in different adapters; residuals need one base")
    (out_features, in_features) = shapes.pop()
    dtype = widest(factors.A.dtype for factors in present)
    A = torch.zeros(sum(ranks), in_features, dtype=dtype)
    B = torch.zeros(out_features, sum(ranks), dtype=dtype)
    start = 0
    for factors, rank in zip(owned, ranks, strict=True):
        if factors is not None:
            rows = slice(start, start + factors.A.shape[0])
            A[rows] = factors.A
            B[:, rows] = factors.B * factors.scale
        start += rank
    return Stacked(A, B, tuple(ranks))
