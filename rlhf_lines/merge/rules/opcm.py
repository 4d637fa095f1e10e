"""OPCM: each policy adds what is orthogonal to the merge so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.rules.common import preference_factors, share, total
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals
from rlhf_lines.merge.tensors.sums import parameter_sums


def opcm(residuals: Residuals, weights: Sequence[float] | None, *, energy: float = 0.5) -> Merged:
    """The sum of the residuals, each without its projection on the leading singular vectors of the sum before it.

        E_1 = tau_1
        E_t = E_(t-1) + U P V^T      (linear maps)        E_t = E_(t-1) + tau_t      (all other parameters)
              with U S V^T = E_(t-1),  P = U^T tau_t V,  P_ii = 0,  P_ij = 0 for i, j < r,
              r the first 0-based index with sum_(i <= r) S_i > energy sum_i S_i
        tau_M = E_K (mean_k ||tau_k||) / ||E_K||          (norms over all parameters)

    Linear maps are the matrices that are not embeddings; a head of its own is one. The order of the policies matters:
    the first enters whole. Preference weights scale tau_k by K w_k first.

    Source: arXiv 2501.09522, section 4, in the form of FusionBench's code (which shuffles the order unless told
    otherwise). There each step ends with D_t = E_t / lambda_t, lambda_t = ||E_t|| / mean_(j <= t) ||tau_j||, and the
    next starts from lambda_t D_t, which is E_t again: the factors cancel, except the last. So one pass for the norms
    and one to merge are enough for any K.

    The code has complete U and V. Here U P V^T is tau_t minus what P leaves out, so that the leading min(in, out)
    vectors are enough. Two cases differ on purpose: where E_(t-1) has lower rank than its shape (a LoRA policy came
    first), the vectors of zero singular values are arbitrary, and their P_ii stay, so that the result is defined; and
    energy 1 clears the whole span, where the code finds no r and takes 0.

    The decomposition is in float64 also for float32 residuals: what float32 rounds in a singular vector grows with the
    inverse of the gap to the next singular value, and such gaps are small. On random matrices of 64 x 64 to 512 x 2048
    float32 was off by 3e-6 to 5e-6 of the result (relative L2), float64 on the same inputs by 5e-8 to 1e-7, in at most
    twice the time.

    Memory: a linear map is read whole. Per thread, K + 1 of its residuals in the residuals' dtype, and about five
    matrices of its size in float64.

    Args:
        residuals: K residuals, in the order in which they are merged.
        weights: K preference weights, or None for equal ones.
        energy: the share of the singular values whose vectors are protected.

    Raises:
        ValueError: an option outside its range.
    """
    share("energy", energy)
    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    for name, shape in residuals.shapes.items():
        if is_linear_map(name, shape):
            size = math.prod(shape)
            residuals.check_memory(name, size, beside=5 * torch.float64.itemsize * size)

    def unit(name: str) -> str:
        return "tensor" if is_linear_map(name, residuals.shapes[name]) else "element"

    def accumulate(chunk: Chunk) -> Tensor:
        if not is_linear_map(chunk.name, chunk.shape):
            return total(chunk.residuals)
        if not all(bool(torch.isfinite(tau).all()) for tau in chunk.residuals):
            # Nothing to decompose; whoever reads the residuals tells whose they are.
            return torch.full_like(chunk.residuals[0], torch.nan)
        rounding = torch.finfo(residuals.dtype).eps
        merged = chunk.rows(chunk.residuals[0]).to(torch.float64, copy=True)
        for tau in chunk.residuals[1:]:
            merged += _without_repetition(chunk.rows(tau).to(torch.float64), merged, energy, rounding)
        return merged.view(-1).to(residuals.dtype)

    def squares(chunk: Chunk) -> Iterator[Tensor]:
        for tensor in [*chunk.residuals, accumulate(chunk)]:
            yield tensor.to(torch.float64).square()

    sums = [found for found in parameter_sums(residuals, squares, unit).values() if found]
    *norms, merged_norm = [math.sqrt(math.fsum(column)) for column in zip(*sums, strict=True)] or [0.0]
    factor = math.fsum(norms) / residuals.count / merged_norm if merged_norm else 0.0
    return Merged(residuals, lambda chunk: accumulate(chunk).mul_(factor), unit)


def _without_repetition(tau: Tensor, merged: Tensor, energy: float, rounding: float) -> Tensor:
    """The residual without what P leaves out of its projection on the singular vectors of `merged`; see `opcm`."""
    left, values, right = torch.linalg.svd(merged, full_matrices=False)
    # Rounded entries of a matrix of low rank show as values of a few times their rounding, those of the decomposition
    # itself grow with the size. The smallest value of a random square matrix is about 1 / (2 size), far above both.
    noise = 10 * rounding + max(merged.shape) * torch.finfo(merged.dtype).eps
    rank = int((values > values[0] * noise).sum())
    if rank == 0:
        return tau
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    sums = values.cumsum(0)  # whose last is the whole: another way to add up would round otherwise
    protected = int((sums <= energy * sums[-1]).sum())
    projected = left.T @ tau
    diagonal = (projected * right).sum(1)
    block = projected[:protected] @ right[:protected].T
    repeated = torch.diag(diagonal)
    repeated[:protected, :protected] = block
    return tau - left @ (repeated @ right)
