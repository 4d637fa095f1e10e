"""Model Breadcrumbs: neither the largest entries nor the smallest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.rules.common import number, preference_factors, share
from rlhf_lines.merge.rules.linear import weighted_sum
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


def breadcrumbs(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    keep: float = 0.2,
    remove: float = 0.1,
    order: str = "remove_first",
    scale: float = 1.0,
    granularity: str = "row",
) -> Merged:
    """The sum of residuals without their outliers and without their small entries.

        tau_M = scale sum_k m_k tau_k,   m_k = 1 where the rank of |tau_k|, from 0 for the largest of n, is in
        [int(remove n), int(remove n) + int(keep n))        remove_first
        [int(remove n), int(keep n))                        keep_first

    Preference weights scale tau_k by K w_k first. Both shares are of all n entries, rounded down: nothing is removed
    from fewer than 1 / remove entries.

    mergekit's `breadcrumbs` with `density` and `gamma` is `keep=density, remove=gamma, granularity="tensor"`, where
    density + gamma <= 1, with two exceptions that are its own: a parameter of fewer than 1 / gamma entries loses its
    whole residual there, and density 1 switches everything off.

    Source: arXiv 2312.06795, section 3; rezazzr/breadcrumbs `TaskVectorMiddleKeep` for rows, rounding and both orders.

    Args:
        residuals: K residuals.
        weights: K preference weights, or None for equal ones.
        keep: the share that is kept.
        remove: the share of the largest that is not.
        order: `remove_first` takes the largest away and then keeps the largest of the rest; `keep_first` keeps the
            largest and then takes the largest of these away.
        scale: the coefficient of the sum; `alpha` of LiNeS with `beta=0` does the same.
        granularity: what is ranked together: each `row` of the last dimension as it is stored, one output of a linear
            map but one input of GPT-2's Conv1D (the authors' code; entries of equal magnitude rank by index, and a
            parameter without dimensions stays as it is), the whole `tensor`, or all parameters of a policy, `global`.
            For the last two, entries equal to the smallest or the largest one kept are kept too.

    Raises:
        ValueError: an option outside its range.
    """
    share("keep", keep)
    share("remove", remove)
    one_of("order", order, ("remove_first", "keep_first"))
    number("scale", scale, low=0)
    one_of("granularity", granularity, ("row", "tensor", "global"))

    def ranks(size: int) -> tuple[int, int]:
        first, kept = int(remove * size), int(keep * size)
        return first, min(first + kept, size) if order == "remove_first" else kept

    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    mask = _row_mask(ranks) if granularity == "row" else _threshold_mask(residuals, ranks, granularity)
    merged = weighted_sum(residuals.changed(mask), [scale] * residuals.count)
    return replace(merged, unit="row" if granularity == "row" else "element")


def _row_mask(ranks: Callable[[int], tuple[int, int]]) -> Callable[[Chunk], list[Tensor]]:
    def mask(chunk: Chunk) -> list[Tensor]:
        if not chunk.shape:
            return chunk.residuals
        first, stop = ranks(chunk.shape[-1])
        return [tau * _ranked_between(chunk.rows(tau).abs(), first, stop).view(-1) for tau in chunk.residuals]

    return mask


def _ranked_between(sizes: Tensor, first: int, stop: int) -> Tensor:
    """True for the entries of `[rows, n]` whose rank in their row, from 0 for the largest, is in [first, stop)."""
    if first >= stop:
        return torch.zeros_like(sizes, dtype=torch.bool)
    # numpy sorts floats with vector instructions: 0.2 ms for 2^16 of them, where torch takes 5.
    ascending = torch.from_numpy(np.sort(sizes.numpy())) if sizes.device.type == "cpu" else sizes.sort(dim=1).values
    columns = sizes.shape[1]
    smallest, largest = ascending[:, columns - stop, None], ascending[:, columns - first - 1, None]
    between = (sizes >= smallest) & (sizes <= largest)
    if (between.sum(dim=1) == stop - first).all():
        return between
    chosen = sizes.sort(dim=1, descending=True, stable=True).indices[:, first:stop]
    return torch.zeros_like(between).scatter_(1, chosen, True)


def _threshold_mask(
    residuals: Residuals, ranks: Callable[[int], tuple[int, int]], granularity: str
) -> Callable[[Chunk], list[Tensor]]:
    def bounds(names: list[str]) -> list[list[float]]:
        """For each policy the smallest and the largest magnitude kept."""
        size = residuals.size(names)
        first, stop = ranks(size)
        if first >= stop:
            return [[math.inf, -math.inf]] * residuals.count
        return order_statistics(residuals, [[size - stop, size - first - 1]] * residuals.count, names=names)

    if granularity == "global":
        by_name = dict.fromkeys(residuals.shapes, bounds(list(residuals.shapes)))
    else:
        by_name = {name: bounds([name]) for name in residuals.shapes}

    def mask(chunk: Chunk) -> list[Tensor]:
        kept = []
        for tau, (smallest, largest) in zip(chunk.residuals, by_name[chunk.name], strict=True):
            size = tau.abs()
            kept.append(tau * ((size >= smallest) & (size <= largest)))
        return kept

    return mask
