"""WIDEN: columns that a policy changed most count fully."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lines.merge.layers import is_embedding
from rlhf_lines.merge.rules.common import number, preference_factors
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals
from rlhf_lines.merge.tensors.sums import SERIAL


def widen(
    residuals: Residuals, weights: Sequence[float] | None, *, ratio: float = 1.0, calibration: float = 1.0
) -> Merged:
    """The sum of the residuals, column by column with the scores of how much each policy changed the column.

    For a matrix `[out, in]` whose columns are w_0 in the SFT model and w_k = w_0 + t_k in policy k:

        m_k = | ||w_k|| - ||w_0|| |,   d_k = 1 - cos(w_k, w_0)
        p_k = position of m_k among the columns of policy k, ascending, over their number       (q_k alike from d_k)
        s(p)_k = calibration where p_k > ratio mean(p_k), else exp(p_k) / sum_j exp(p_j)
        tau_M = sum_k t_k (s(p)_k + s(q)_k) / 2

    The columns of an embedding `[vocabulary, hidden]` are its rows, and so are those of a matrix that is stored
    `[in, out]` (Conv1D of GPT-2; the authors' code takes stored columns). Vectors are scored entry by entry with p_k
    = |tau_k|; a parameter of three or more dimensions is a matrix of its last one. Scores do not sum to one. Preference
    weights scale tau_k by K w_k first.

    One pass over the matrices for norms and cosines, in float64, then one to merge.

    Source: arXiv 2408.03092, section 3.2; yule-BUAA/MergeLLM. There m and d are differences of nearly equal numbers:
    in float32 a d below 6e-8 is rounding alone, and residuals of RLHF are that small. Here, with <,> over a column,

        m_k = |2 <w_0, t_k> + <t_k, t_k>| / (||w_k|| + ||w_0||)
        d_k = (<w_0, w_0> <t_k, t_k> - <w_0, t_k>^2) / (||w_k|| ||w_0|| (||w_k|| ||w_0|| + <w_k, w_0>))

    which are exactly 0 for columns that did not change. Columns of equal rank value keep their order. A column that is
    zero before or after, but not both, counts as turned by a right angle, d = 1; theirs divides by zero.

    Args:
        residuals: K residuals, with the SFT model's values.
        weights: K preference weights, or None for equal ones.
        ratio: how far above the mean rank a column must be to count fully.
        calibration: the score of those columns.

    Raises:
        ValueError: an option outside its range, or no values of the SFT model.
    """
    number("ratio", ratio, low=0)
    number("calibration", calibration, low=0)
    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    matrices = [name for name, shape in residuals.shapes.items() if len(shape) > 1]
    by_row = {name for name in matrices if is_embedding(name) or name in residuals.transposed}
    # Chunks of one size that torch adds up serially: ranks do not depend on how the residuals are read.
    measured = replace(residuals, elements=SERIAL).map(lambda chunk: _products(chunk, by_row), "row", matrices)
    scores = {}
    for name, parts in itertools.groupby(measured, key=lambda named: named[0]):
        products = _joined((part for _, part in parts), per_row=name in by_row)
        magnitude, direction = _changes(products)
        both = _column_scores(magnitude, ratio, calibration) + _column_scores(direction, ratio, calibration)
        scores[name] = (both / 2).to(residuals.dtype)

    def compute(chunk: Chunk) -> Tensor:
        taus = [chunk.rows(tau) for tau in chunk.residuals]
        if chunk.name not in scores:
            factors = _entry_scores(torch.stack([tau.abs() for tau in taus]), ratio, calibration)
        elif chunk.name in by_row:
            first = chunk.span.start // chunk.shape[-1]
            factors = scores[chunk.name][:, first : first + len(taus[0]), None]
        else:
            factors = scores[chunk.name]
        merged = taus[0] * factors[0]
        for tau, factor in zip(taus[1:], factors[1:], strict=True):
            merged += tau * factor
        return merged.view(-1)

    return Merged(residuals, compute, "row")


def _products(chunk: Chunk, by_row: Set[str]) -> tuple[str, Tensor]:
    """<w_0, w_0>, <w_0, t_k>, <t_k, t_k> of a chunk's columns, `[3, K, columns]`; see `widen`."""
    if chunk.sft is None:
        raise ValueError(
            f"rule 'widen' compares the columns of {chunk.name!r} with those of the SFT model, but got residuals "
            "alone; give the SFT model's tensors"
        )
    axis = 1 if chunk.name in by_row else 0
    base = chunk.rows(chunk.sft).to(torch.float64)
    taus = [chunk.rows(tau).to(torch.float64) for tau in chunk.residuals]
    bases = base.square().sum(axis)
    return chunk.name, torch.stack(
        [
            torch.stack([bases] * len(taus)),
            torch.stack([(base * tau).sum(axis) for tau in taus]),
            torch.stack([tau.square().sum(axis) for tau in taus]),
        ]
    )


def _joined(parts: Iterable[Tensor], *, per_row: bool) -> Tensor:
    # Added up as they come: all parts of a wide matrix are larger than the matrix.
    return torch.cat(list(parts), dim=-1) if per_row else functools.reduce(Tensor.add_, parts)


def _changes(products: Tensor) -> tuple[Tensor, Tensor]:
    """The changes m and d of every column from its products `[3, K, n]`, both `[K, n]`; see `widen`."""
    before, mixed, change = products
    after = (before + 2 * mixed + change).clamp(min=0)
    magnitude = (2 * mixed + change).abs() / (before.sqrt() + after.sqrt())
    size, inner = (before * after).sqrt(), before + mixed
    turned = (before * change - mixed.square()).clamp(min=0)
    # Beyond a right angle nothing cancels in 1 - cos, but the other form does.
    direction = torch.where(inner > 0, turned / (size * (size + inner)), 1 - inner / size)
    return (
        torch.where(change == 0, 0.0, magnitude),
        torch.where(change == 0, 0.0, torch.where(size == 0, 1.0, direction)),
    )


def _column_scores(values: Tensor, ratio: float, calibration: float) -> Tensor:
    """The scores of columns from their changes m or d, `[K, n]`; see `widen`."""
    count = values.shape[1]
    order = values.argsort(dim=1, stable=True)
    positions = torch.arange(count, dtype=values.dtype, device=values.device).expand_as(values)
    positions = torch.empty_like(values).scatter_(1, order, positions)
    # Compared as whole numbers, so that the column in the middle is not above the mean by rounding.
    return _scores(positions / count, positions > ratio * (count - 1) / 2, calibration)


def _entry_scores(values: Tensor, ratio: float, calibration: float) -> Tensor:
    """The scores of a vector's entries from |tau_k|, `[K, 1, n]`; see `widen`."""
    return _scores(values, values > ratio * values.mean(-1, keepdim=True), calibration)


def _scores(significances: Tensor, above: Tensor, calibration: float) -> Tensor:
    return significances.softmax(0).masked_fill_(above, calibration)
