"""Fisher merging: every entry is averaged with the precision that each policy has on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.inputs.statistics import FISHER
from rlhf_lines.merge.rules.common import (
    check_statistics_shapes,
    common_names,
    mean_shares,
    number,
    total,
    weighted_total,
    yes_or_no,
)
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals
from rlhf_lines.merge.tensors.sums import parameter_sums


def fisher(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    floor: float = 1e-3,
    floor_on: str = "all",
    add: float = 0.0,
    relative: bool = True,
    normalize: str | None = None,
) -> Merged:
    """The mean of the residuals, entry by entry in proportion to c_k F_k.

        tau_M = sum_k c_k F'_k tau_k / sum_k c_k F'_k,     F'_k = max(F_k, floor) + add

    F_k is the diagonal of policy k's Fisher information (`rlhf-lines fisher`), c_k its preference weight, equal without
    weights; only the ratios of the c_k count. The same mean of whole weights is theta_SFT + tau_M.

    Where every c_k F'_k is zero, and for parameters that any policy's statistics lack (a Fisher of the adapted
    parameters alone), F counts as equal, which gives the weighted mean.

    One pass over the statistics for norms and zeros, one or two more for the median, and one to merge.

    Source: arXiv 2111.09832, equation 3 (section 3). Public codes differ in what they do about small and large F:

        code                            floor    floor_on   add     normalize
        mmatena/model_merging           1e-6     first      0       model
        MergeLM, FusionBench            0        all        1e-6    model (they add 1e-6 to the norms too)
        bloomberg, MergeBench           0        all        1e-10   null (bloomberg also tensor and model)
        wise-ft                         1e-6     all        0       null

    each with `"relative": false`. The default floor is a thousandth of the typical F instead: F of language models is
    of order 1e-8, below any of these constants, so that 1e-6 for all policies gives the plain mean; and the floor holds
    for all policies, so that their order does not matter.

    Args:
        residuals: K residuals with their Fisher diagonals, tensors of the parameters' shapes.
        weights: the c_k, at least 0, or None for equal ones.
        floor: smallest F'_k.
        floor_on: `all` policies, or the `first` alone.
        add: constant added to F_k, and to the norms of `normalize`.
        relative: whether floor and add are in units of the median of F over its positive entries, of the policy
            where it is smallest; otherwise they are absolute.
        normalize: `model` divides c_k by ||F_k||_2 + add over all parameters, `tensor` over each parameter alone, None
            does not. A norm of zero counts as one.

    Raises:
        ValueError: an option outside its range, a negative weight, or statistics that are missing, of another shape,
            negative or not numbers.
    """
    number("floor", floor, low=0)
    number("add", add, low=0)
    yes_or_no("relative", relative)
    one_of("floor_on", floor_on, ("all", "first"))
    if normalize is not None:
        one_of("normalize", normalize, ("model", "tensor"))
    coefficients = mean_shares("fisher", residuals.count, weights)
    names = common_names(residuals, "fisher", FISHER)
    check_statistics_shapes(residuals, names, FISHER)
    squares, positive = _measure(residuals, names)
    if relative and (floor or add):
        typical = _median(residuals, names, positive)
        floor, add = floor * typical, add * typical
    by_name = {name: _normalized(coefficients, squares, name, normalize, add) for name in names}

    def compute(chunk: Chunk) -> Tensor:
        if chunk.name not in by_name:
            return weighted_total(chunk.residuals, coefficients)
        precisions = _diagonals(residuals, chunk)
        for k, (precision, coefficient) in enumerate(zip(precisions, by_name[chunk.name], strict=True)):
            raised = precision.clamp(min=floor) if floor_on == "all" or k == 0 else precision
            precisions[k] = (raised + add) * coefficient
        summed = total(precisions)
        merged = torch.zeros_like(summed)
        for tau, precision in zip(chunk.residuals, precisions, strict=True):
            merged += tau * (precision / summed)
        if (summed == 0).any():
            merged = torch.where(summed == 0, weighted_total(chunk.residuals, coefficients), merged)
        return merged

    return Merged(residuals, compute)


def _measure(residuals: Residuals, names: list[str]) -> tuple[dict[str, list[float]], list[int]]:
    """Parameter name to the K sums of F_k^2 over it, and how many entries of each F_k are above zero."""
    count = residuals.count

    def values(chunk: Chunk) -> Iterator[Tensor]:
        diagonals = _diagonals(residuals, chunk)
        for k, diagonal in enumerate(diagonals):
            if not bool((diagonal >= 0).all()) or bool(diagonal.isinf().any()):
                raise ValueError(
                    f"the Fisher diagonal of policy {k + 1} has values below 0 or not finite in {chunk.name!r}; "
                    "compute it again with `rlhf-lines fisher`"
                )
            yield diagonal.to(torch.float64).square()
        for diagonal in diagonals:
            yield diagonal > 0

    sums = {name: found or [0.0] * 2 * count for name, found in parameter_sums(residuals, values, names=names).items()}
    positive = [int(sum(found[count + k] for found in sums.values())) for k in range(count)]
    return {name: found[:count] for name, found in sums.items()}, positive


def _median(residuals: Residuals, names: list[str], positive: list[int]) -> float:
    """The median of the positive entries of F_k, of the policy where it is smallest; 0 if all are zero."""
    size = residuals.size(names)
    ranks = [[size - count + (count - 1) // 2] if count else [] for count in positive]
    medians = order_statistics(residuals, ranks, lambda chunk: _diagonals(residuals, chunk), names=names)
    return min((median for found in medians for median in found), default=0.0)


def _normalized(
    coefficients: list[float], squares: Mapping[str, list[float]], name: str, normalize: str | None, add: float
) -> list[float]:
    """The coefficients of a parameter, divided by the norms of the F_k where the rule is told to."""
    if normalize is None:
        return coefficients
    columns = zip(*([squares[name]] if normalize == "tensor" else squares.values()), strict=True)
    norms = [math.sqrt(math.fsum(column)) for column in columns]
    divided = [c / ((norm + add) or 1.0) for c, norm in zip(coefficients, norms, strict=True)]
    # Near one again, so that products with F stay far from the smallest float32.
    largest = max(divided) or 1.0
    return [value / largest for value in divided]


def _diagonals(residuals: Residuals, chunk: Chunk) -> list[Tensor]:
    span, like = chunk.span, chunk.residuals[0]
    return [tensors.read(span.name, span.start, span.stop).to(like) for tensors in residuals.statistics]
