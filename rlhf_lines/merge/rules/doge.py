"""DOGE: task arithmetic on residuals that a learned modification makes agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.rules.common import (
    mean_factors,
    number,
    preference_factors,
    share,
    weighted_total,
    whole,
    yes_or_no,
)
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


def doge(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    eta: float = 0.25,
    keep: float = 0.3,
    subspace: int = 6,
    lr: float = 0.25,
    steps: int = 400,
    relative: bool = True,
) -> Merged:
    """The sum of the largest entries of the residuals, scaled to one norm and moved by a learned matrix.

        tau_M = sum_k lam_k m_k (tau_k + Delta),     lam_k = K w_k eta / ||tau_k||_F           (linear maps)
        tau_M = sum_k w_k tau_k                                                      (all other parameters)

    m_k keeps the largest entries of tau_k, ranked over all linear maps together. Delta, one matrix per linear map,
    starts at zero and takes `steps` steps of Adam on

        sum_j sum_rows (sum_columns tau_j (tau_j - sum_k lam_k (tau_k + Delta)))^2

    with g - U U^T g for the gradient g: without what lies in the span of U, which the policies share. (Adam divides
    entry by entry, so that a step has parts in it, here as in the code.) Of each tau_k the leading int(q / K) left
    singular vectors, q = min(out, in), stand side by side; U are the leading int(q / subspace) left singular vectors of
    that matrix.

    Linear maps are the matrices that are not embeddings; a head of its own is one. Preference weights are factors of
    lam_k, since one of tau_k would cancel in it; 1/K each change nothing.

    Source: arXiv 2501.01230, sections 3.2 to 3.4, in the form of FusionBench's code (`doge_ta`). What differs: all else
    than the matrices of transformer blocks stays at the base there. Its eta 0.07 and learning rate 1e-4 are for
    fine-tuned CLIP models: a policy of RLHF moves much less, so that steps of 1e-4 are larger than the residual. The
    defaults here are of the same size in units of the residuals; `"relative": false` with 0.07 and 1e-4 gives the
    code's numbers. And a vector of a singular value of zero, which is arbitrary, is left out (LoRA policies), as is a
    policy that does not change the matrix.

    One pass or more for the threshold of m_k, and one to merge. The steps take most of the time, about 10 passes over
    memory each; singular vectors are in float64, as in `opcm`.

    Memory: a linear map is read whole. Per thread, K + 1 of its residuals in the residuals' dtype, and about six
    matrices of its size in float64.

    Args:
        residuals: K residuals.
        weights: K preference weights, or None for equal ones.
        eta: the norm that a policy's part of a matrix gets, before m_k.
        keep: the share of entries that m_k keeps, one more than int(keep d) of d.
        subspace: U has at most q / subspace vectors; larger than q, none.
        lr: the learning rate of Adam.
        steps: of Adam.
        relative: whether eta and lr are in units of the matrix' residuals: of the root mean square of their norms, and
            of their entries. Otherwise they are absolute.

    Raises:
        ValueError: an option outside its range.
    """
    number("eta", eta, low=0)
    share("keep", keep)
    whole("subspace", subspace, low=1, high=2**31)
    number("lr", lr, low=0)
    whole("steps", steps, low=0, high=2**31)
    yes_or_no("relative", relative)
    factors = [factor * eta for factor in preference_factors(residuals.count, weights)]
    shares = mean_factors(residuals.count, weights)
    maps = [name for name, shape in residuals.shapes.items() if is_linear_map(name, shape) and math.prod(shape)]
    for name in maps:
        size = math.prod(residuals.shapes[name])
        residuals.check_memory(name, size, beside=6 * torch.float64.itemsize * size)
    size = residuals.size(maps)
    smallest = [0.0] * residuals.count
    if maps:
        rank = max(size - int(size * keep) - 1, 0)
        smallest = [found[0] for found in order_statistics(residuals, [[rank]] * residuals.count, names=maps)]

    def compute(chunk: Chunk) -> Tensor:
        if not is_linear_map(chunk.name, chunk.shape):
            return weighted_total(chunk.residuals, shares)
        if not all(bool(torch.isfinite(tau).all()) for tau in chunk.residuals):
            # Nothing to decompose; whoever reads the residuals tells whose they are.
            return torch.full_like(chunk.residuals[0], torch.nan)
        norms = [tau.double().norm().item() for tau in chunk.residuals]
        present = [k for k, norm in enumerate(norms) if norm]
        merged = torch.zeros_like(chunk.residuals[0])
        if not present or not any(factors[k] for k in present):
            return merged
        unit = math.sqrt(math.fsum(norms[k] ** 2 for k in present) / len(present)) if relative else 1.0
        entry = unit / math.sqrt(merged.numel()) if relative else 1.0
        lams = [factors[k] * unit / norms[k] for k in present]
        taus = [chunk.rows(chunk.residuals[k]) for k in present]
        if chunk.name in residuals.transposed:
            taus = [tau.T for tau in taus]
        delta = modification(taus, lams, shared_basis(taus, residuals.count, subspace), entry, lr=lr, steps=steps)
        delta = (delta.T if chunk.name in residuals.transposed else delta).reshape(-1)
        for k, lam in zip(present, lams, strict=True):
            kept = chunk.residuals[k].abs() >= smallest[k]
            merged += (chunk.residuals[k] + delta).mul_(kept).mul_(lam)
        return merged

    return Merged(residuals, compute, lambda name: "tensor" if name in maps else "element")


def shared_basis(taus: Sequence[Tensor], count: int, subspace: int) -> Tensor:
    """U `[out, p]`: the directions of the outputs that several residuals `[out, in]` share most; see `doge`.

    Args:
        taus: the residuals that are not zero.
        count: K, of all policies.
        subspace: p is int(min(out, in) / subspace), or less where the residuals have fewer directions.
    """
    rounding = torch.finfo(taus[0].dtype).eps
    leading = min(taus[0].shape) // count
    bases = [_left(tau, rounding)[:, :leading] for tau in taus]
    both = torch.cat(bases, dim=1)
    if len(bases) > 1 and both.shape[1]:  # of one basis alone all singular values are one, and their order is arbitrary
        both = _left(both, rounding)
    return both[:, : min(taus[0].shape) // subspace].to(taus[0].dtype)


def _left(matrix: Tensor, rounding: float) -> Tensor:
    """The left singular vectors, in float64, of singular values that are more than rounding."""
    matrix = matrix.to(torch.float64)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    noise = 10 * rounding + max(matrix.shape) * torch.finfo(matrix.dtype).eps  # see `opcm`
    return left[:, values > values[0] * noise]


def modification(
    taus: Sequence[Tensor], lams: Sequence[float], basis: Tensor, entry: float, *, lr: float, steps: int
) -> Tensor:
    """Delta `[out, in]` after so many steps of Adam; see `doge`.

        r_j = rowsums(tau_j (tau_j - sum_k lam_k tau_k)) - L rowsums(tau_j Delta),   L = sum_k lam_k
        gradient of sum_j |r_j|^2:  -2 L sum_j r_j tau_j

    Args:
        taus: residuals `[out, in]`.
        lams: their factors.
        basis: U `[out, p]`.
        entry: the unit of entries; `lr` and Adam's epsilon are those of a problem in which it is 1.
        lr: the learning rate.
        steps: of Adam.
    """
    taus = [tau / entry for tau in taus] if entry != 1 else list(taus)
    together = weighted_total(taus, lams)
    errors = [(tau * (tau - together)).sum(1) for tau in taus]
    slope = math.fsum(lams)
    delta = torch.zeros_like(together)
    first, second, product, gradient = (torch.zeros_like(together) for _ in range(4))
    del together
    for step in range(1, steps + 1):
        gradient.zero_()
        for tau, error in zip(taus, errors, strict=True):
            torch.mul(tau, delta, out=product)
            remaining = (error - slope * product.sum(1)) * (-2 * slope)
            gradient.addcmul_(tau, remaining.unsqueeze(1))
        if basis.shape[1]:
            gradient.addmm_(basis, basis.T @ gradient, alpha=-1)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        torch.sqrt(second, out=product).div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
        delta.addcdiv_(first, product, value=-lr / (1 - BETAS[0] ** step))
    return delta.mul_(entry)
