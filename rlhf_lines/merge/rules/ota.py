"""OTA: every entry is averaged with the curvature that each policy's optimiser has seen on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.statistics import SECOND_MOMENTS
from rlhf_lines.merge.rules.common import (
    check_statistics_shapes,
    common_names,
    mean_shares,
    number,
    one_per_policy,
    share,
    total,
    weighted_total,
    yes_or_no,
)
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals, Tensors
from rlhf_lines.merge.tensors.spans import ELEMENTS, cut


def ota(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    power: float = 0.5,
    add: float = 0.0,
    density: float | None = None,
    thresholds: float | Sequence[float] | None = None,
    rank1: bool = False,
) -> Merged:
    """The mean of the residuals, entry by entry in proportion to c_k P_k, of the entries that matter to each policy.

        tau_M = sum_k c_k m_k P_k tau_k / sum_k c_k m_k P_k,     P_k = v_k^power + add
        m_k   = 1, or with FFG [ v_k tau_k^2 >= threshold_k ];     tau_M = 0 where no policy keeps an entry

    v_k are the second moments of the gradients of policy k: Adam's `exp_avg_sq` at the end of its training, or its
    Fisher diagonal, which is of the same kind (`rlhf-lines fisher`). c_k are the preference weights, equal without
    weights; only the ratios of the c_k count, so that an entry that one policy alone keeps is that policy's.

    Where every c_k m_k P_k of kept entries is zero, P counts as equal. Parameters that any policy's statistics lack get
    the weighted mean, unmasked.

    Source: arXiv 2509.11167, sections 3 and 4; pmahdavi/ota-merge, merge_methods/ota.py. There `add` is `epsilon`, 1e-8
    unless told otherwise, which is far above the square root of second moments of language models (their configs have
    1e-26); and the thresholds are given, found for a density beforehand. Its weights are of whole models, which is the
    same mean; its `linear` and `ties` after masking ignore the mask without rescaling, and are not here.

    One pass to merge; with `density` two more, which rank the entries. `rank1` reads the statistics once more.

    Args:
        residuals: K residuals with their second moments, tensors of the parameters' shapes.
        weights: the c_k, at least 0, or None for equal ones.
        power: of the second moments; 0.5 is Adam's own preconditioner, 1 Fisher merging.
        add: constant added to v^power.
        density: FFG (Fast Fisher Grafting): the share of its entries that each policy keeps, those of the largest
            v tau^2 over all parameters with statistics, int(density d) + 1 of d; the authors keep about 0.4. None
            keeps all.
        thresholds: in place of density, the smallest v tau^2 that is kept, one number or one per policy.
        rank1: whether the v of a matrix count as (row sums) (column sums) / sum, which is what is left of them where
            an optimiser keeps only these.

    Raises:
        ValueError: an option outside its range, a negative weight, or statistics that are missing, of another shape,
            negative or not numbers.
    """
    number("power", power, low=0)
    if power == 0:
        raise ValueError("power is 0, which leaves nothing of the second moments; use rule linear")
    number("add", add, low=0)
    yes_or_no("rank1", rank1)
    shares = mean_shares("ota", residuals.count, weights)
    if density is not None:
        share("density", density)
        if thresholds is not None:
            raise ValueError(f"density is {density} and thresholds are {thresholds!r}, which say the same: keep one")
    names = common_names(residuals, "ota", SECOND_MOMENTS)
    check_statistics_shapes(residuals, names, SECOND_MOMENTS)
    moments = [_Rank1(tensors, names) if rank1 else tensors for tensors in residuals.statistics]
    kept, covered = _smallest(residuals, moments, names, density, thresholds), set(names)

    def compute(chunk: Chunk) -> Tensor:
        if chunk.name not in covered:
            return weighted_total(chunk.residuals, shares)
        factors = []
        for tau, found, least, factor in zip(chunk.residuals, _of(chunk, moments), kept, shares, strict=True):
            factors.append((torch.full_like(tau, factor), _power(found, power).add_(add)))
            if least is not None:
                factors[-1][0].mul_(_saliency(tau, found) >= least)
        precisions = [mask * precision for mask, precision in factors]
        summed = total(precisions)
        if (summed == 0).any():
            # Where no precision says otherwise, all that is kept counts alike; where nothing is, nothing is changed.
            alike = summed == 0
            precisions = [torch.where(alike, mask, p) for (mask, _), p in zip(factors, precisions, strict=True)]
            summed = total(precisions)
            summed[summed == 0] = 1
        merged = torch.zeros_like(summed)
        for tau, precision in zip(chunk.residuals, precisions, strict=True):
            merged += tau * (precision / summed)
        return merged

    return Merged(residuals, compute)


def _smallest(
    residuals: Residuals,
    moments: Sequence[Tensors],
    names: list[str],
    density: float | None,
    thresholds: float | Sequence[float] | None,
) -> list[float | None]:
    """What the saliency of an entry must be at least, for each policy; None where all are kept."""
    if thresholds is not None:
        given = one_per_policy("thresholds", thresholds, residuals.count)
        return [math.sqrt(threshold) for threshold in given]
    size = residuals.size(names)
    if density is None or not size:
        return [None] * residuals.count
    ranks = [[max(size - int(density * size) - 1, 0)]] * residuals.count

    def saliencies(chunk: Chunk) -> list[Tensor]:
        return [_saliency(tau, found) for tau, found in zip(chunk.residuals, _of(chunk, moments), strict=True)]

    return [found for (found,) in order_statistics(residuals, ranks, saliencies, names=names)]


def _power(moments: Tensor, power: float) -> Tensor:
    """v^power, the same bits wherever in a chunk an entry stands, which torch's `pow` does not promise."""
    if power in (0.5, 1.0):
        return moments.sqrt() if power == 0.5 else moments.clone()
    return moments.double().log().mul_(power).exp_().to(moments.dtype)


def _saliency(tau: Tensor, moments: Tensor) -> Tensor:
    """The root of v tau^2: it orders alike, and float32 holds it."""
    return moments.sqrt().mul_(tau.abs())


def _of(chunk: Chunk, moments: Sequence[Tensors]) -> list[Tensor]:
    span, like = chunk.span, chunk.residuals[0]
    read = [tensors.read(span.name, span.start, span.stop).to(like) for tensors in moments]
    for k, found in enumerate(read):
        if not bool((found >= 0).all()) or bool(found.isinf().any()):
            raise ValueError(
                f"the second moments of policy {k + 1} have values below 0 or not finite in {chunk.name!r}; make them "
                "again"
            )
    return read


class _Rank1:
    """Second moments whose matrices are replaced by (row sums) (column sums) / sum, as `Tensors`."""

    def __init__(self, tensors: Tensors, names: Sequence[str]) -> None:
        self._tensors, self.shapes = tensors, tensors.shapes
        self._sums = {name: self._measure(name) for name in names if len(tensors.shapes[name]) == 2}

    def _measure(self, name: str) -> tuple[Tensor, Tensor]:
        """Sums of the rows, and those of the columns divided by the sum of all, float64."""
        out, into = shape = self.shapes[name]
        rows, columns = torch.zeros(out, dtype=torch.float64), torch.zeros(into, dtype=torch.float64)
        for span in cut(name, shape, "row", ELEMENTS):
            part = self._tensors.read(name, span.start, span.stop).double().view(-1, into)
            rows[span.start // into : span.stop // into] = part.sum(1)
            columns += part.sum(0)
        whole = rows.sum()
        return rows, columns / whole if whole else columns

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor."""
        if name not in self._sums:
            return self._tensors.read(name, start, stop)
        rows, columns = self._sums[name]
        place = torch.arange(start, stop)
        return rows[place // len(columns)] * columns[place % len(columns)]
