"""RegMean: each linear map's outputs on the policies' own inputs, averaged by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.statistics import GRAM
from rlhf_lines.merge.rules.common import common_names, mean_shares, share, weighted_total, yes_or_no
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


RIDGE = 1e-8  # of the mean diagonal of the summed Gram matrix, where that matrix is singular
SINGULAR = 1e-12  # share of the largest pivot below which a pivot counts as rounding


def regmean(
    residuals: Residuals, weights: Sequence[float] | None, *, reduce: float = 0.1, plus_plus: bool = False
) -> Merged:
    """The linear maps whose outputs are nearest, in least squares, to those of each policy on its own inputs.

        tau_M^T = (sum_k c_k G'_k)^-1 sum_k c_k G'_k tau_k^T,     G'_k = reduce G_k + (1 - reduce) diag(G_k)

    with tau `[out, in]` and G_k = X^T X / n `[in, in]` of the inputs X that the map sees in policy k
    (`rlhf-lines gram`). c_k are the preference weights, equal without weights; only their ratios count. All other
    parameters get the weighted mean. Identical G_k give the weighted mean too. What is stored `[in, out]` is turned.

    Source: arXiv 2212.09849, section 3; bloomberg/dataless-model-merging. The formula on whole weights is the same,
    since the base passes through it. `reduce` is called alpha in the paper; public configs have 0.1 mostly, some 0.9,
    MergeBench 0.5 for Llama; 1 reduces nothing, 0 leaves the diagonals.

    RegMean++ is the same with other G_k: X are the inputs of the map in a model whose layers before are the merged ones
    (`rlhf-lines gram --merged_with`, which merges them with equal weights and this `reduce`). The files know which they
    are, and `plus_plus` must say so, too.

    Source of RegMean++: arXiv 2508.03121, section 3; the paper has reduce 0.95 for images, the public code 0.1 for
    Llama.

    The system is solved in float64 by Cholesky for the difference to the weighted mean. Where the summed matrix is
    singular to rounding (fewer tokens than inputs, an input that is always zero), 1e-8 of its mean diagonal is added to
    the diagonal: directions that no policy has seen get the weighted mean. The reference calls a plain inverse there,
    MergeBench a pseudo-inverse.

    Memory: a linear map with a Gram matrix is read whole. Per thread K + 1 such tensors in the residuals' dtype, three
    of them in float64, and three matrices `[in, in]` in float64: 14336 inputs take 1.6 GB each.

    Args:
        residuals: K residuals with their Gram matrices, under the name of the weight.
        weights: the c_k, at least 0, or None for equal ones.
        reduce: the factor of the entries of G_k off the diagonal.
        plus_plus: whether the Gram matrices are those of RegMean++.

    Raises:
        ValueError: an option outside its range, a negative weight, or statistics that are missing or do not fit.
    """
    share("reduce", reduce)
    yes_or_no("plus_plus", plus_plus)
    _check_kind(residuals, plus_plus, reduce)
    shares = mean_shares("regmean", residuals.count, weights)
    names = set(common_names(residuals, "regmean", GRAM))
    for name in names:
        outputs, inputs = _checked_shape(residuals, name)
        beside = 3 * torch.float64.itemsize * inputs * (inputs + outputs)
        residuals.check_memory(name, inputs * outputs, beside=beside)

    def compute(chunk: Chunk) -> Tensor:
        mean = weighted_total(chunk.residuals, shares)
        if chunk.name not in names or not any(shares):
            return mean
        turned = chunk.name in residuals.transposed

        def matrix(tensor: Tensor) -> Tensor:
            return chunk.rows(tensor).T if turned else chunk.rows(tensor)

        mean = matrix(mean).to(torch.float64)
        inputs = mean.shape[1]
        total = mean.new_zeros(inputs, inputs)
        wanted = mean.new_zeros(inputs, mean.shape[0])
        for tau, tensors, factor in zip(chunk.residuals, residuals.statistics, shares, strict=True):
            gram = tensors.read(chunk.name, 0, inputs * inputs).to(mean).view(inputs, inputs)
            reduced = gram * (reduce * factor)
            reduced.diagonal().copy_(gram.diagonal() * factor)
            total += reduced
            wanted.addmm_(reduced, (matrix(tau) - mean).T)
        mean += _solve(total, wanted, chunk.name).T
        return (mean.T if turned else mean).reshape(-1).to(residuals.dtype)

    return Merged(residuals, compute, lambda name: "tensor" if name in names else "element")


def _solve(total: Tensor, wanted: Tensor, name: str) -> Tensor:
    """total^-1 wanted, with a ridge where `total` is singular; see `regmean`."""
    diagonal = total.diagonal()
    scale = diagonal.mean()
    if not torch.isfinite(total).all() or (diagonal < 0).any():
        raise ValueError(
            f"the Gram matrices of {name!r} have values that are not finite, or negative ones on the diagonal; "
            "compute them again with `rlhf-lines gram`"
        )
    if scale == 0:
        return torch.zeros_like(wanted)
    factor, failed = torch.linalg.cholesky_ex(total)
    pivots = factor.diagonal().square()
    if failed or pivots.min() < SINGULAR * pivots.max():
        diagonal += RIDGE * scale
        factor, failed = torch.linalg.cholesky_ex(total)
        if failed:
            raise ValueError(
                f"the Gram matrices of {name!r} have negative eigenvalues, which X^T X has not; compute them again "
                "with `rlhf-lines gram`"
            )
    return torch.cholesky_solve(wanted, factor)


def _check_kind(residuals: Residuals, plus_plus: bool, reduce: float) -> None:
    """Stop unless Gram matrices from files are of the kind that is asked for; of those in memory nothing is known."""
    made = [tensors.plus_plus for tensors in residuals.statistics if hasattr(tensors, "plus_plus")]
    for k, found in enumerate(made, start=1):
        if plus_plus and found is None:
            raise ValueError(
                f"plus_plus is true, but the Gram matrices of policy {k} are those of RegMean; make them with "
                "`rlhf-lines gram --merged_with`, or leave plus_plus out"
            )
        if not plus_plus and found is not None:
            raise ValueError(
                f"the Gram matrices of policy {k} are those of RegMean++; give the option plus_plus, or make others "
                "with `rlhf-lines gram` without merged_with"
            )
        if plus_plus and found["reduce"] != reduce:
            raise ValueError(
                f"reduce is {reduce}, but the Gram matrices of policy {k} were made with {found['reduce']}; give that"
            )
        if plus_plus and (found["policies"] != made[0]["policies"] or len(found["policies"]) != residuals.count):
            raise ValueError(
                f"the Gram matrices of policy {k} were made with other policies than are merged; give the folders of "
                "one run of `rlhf-lines gram --merged_with`, made with all of these policies"
            )


def _checked_shape(residuals: Residuals, name: str) -> tuple[int, int]:
    """Outputs and inputs of a linear map, once its Gram matrices fit."""
    stored = tuple(residuals.shapes[name])
    shape = stored[::-1] if name in residuals.transposed else stored
    for k, tensors in enumerate(residuals.statistics):
        gram = tuple(tensors.shapes[name])
        if len(shape) == 2 and gram == (shape[1], shape[1]):
            continue
        if len(shape) == 2 and gram == (shape[0], shape[0]):
            raise ValueError(
                f"the Gram matrix of policy {k + 1} for {name!r} is {gram}, which is that of the outputs of {stored}; "
                "expected [in, in]: name weights that are stored [in, out] (Conv1D of GPT-2), and no others, in "
                "transposed"
            )
        raise ValueError(
            f"the Gram matrix of policy {k + 1} for {name!r} is {gram}, the residual is {stored}; expected [in, in] "
            "for a weight [out, in], from `rlhf-lines gram` on the model that is merged"
        )
    return shape
