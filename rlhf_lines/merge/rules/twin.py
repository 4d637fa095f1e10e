"""Twin-Merging: a shared part, and what each policy has beside it, of low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.rules.common import mean_factors, number, weighted_total, whole
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


MOST = 1 << 20  # more than any matrix has singular values
PER_PROMPT = (
    "the weights of rule 'twin' with a router depend on the prompt, so no one model is this merge: leave out the "
    "router to merge at fixed weights, or give it to a group of a sweep"
)


def twin(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    rank: int | None = None,
    shared: float | None = None,
    router: str | None = None,
) -> Merged:
    """The shared part, and the weighted sum of the exclusive parts, each truncated to a rank.

        tau_s = shared sum_k tau_k
        v_k   = the nearest matrix of rank `rank` to tau_k - tau_s      (linear maps)      tau_k - tau_s      (the rest)
        tau_M = (sum_k w_k) tau_s + sum_k w_k v_k

    At full rank this is the rewarded soup, whatever `shared` is, and zero weights are the SFT model. Linear maps are
    the matrices that are not embeddings; a head of its own is one.

    Source: arXiv 2406.15479 (Twin-Merging), algorithm 1, in the form `svd` of its code. There the shared part is any
    merge, by default task arithmetic, and a router gives weights of sum 1 prompt by prompt; here they are those of the
    merge, and a router is for groups of sweeps (`rlhf-lines router`).

    Memory: a linear map is read whole. Per thread, K of its residuals in the residuals' dtype, and about five matrices
    of its size in float64, in which it is decomposed.

    Args:
        residuals: K residuals.
        weights: K weights w_k, or None for 1/K each.
        rank: of the exclusive parts; None leaves them as they are.
        shared: coefficient of the shared part; None is 1/K, the mean. For a rank only.
        router: of a sweep's group, the digest of what gives the weights of a prompt; nothing is merged so.

    Raises:
        ValueError: an option outside its range, or a router.
    """
    if router is not None:
        raise ValueError(PER_PROMPT)
    check_parts(rank, shared)
    of_shared = [shared_factor(residuals.count, shared)] * residuals.count
    factors = mean_factors(residuals.count, weights)
    total = math.fsum(factors)
    for name, shape in residuals.shapes.items():
        if is_linear_map(name, shape):
            size = math.prod(shape)
            residuals.check_memory(name, size, beside=5 * torch.float64.itemsize * size)

    def compute(chunk: Chunk) -> Tensor:
        common = weighted_total(chunk.residuals, of_shared)
        parts = [tau - common for tau in chunk.residuals]
        if rank is not None and is_linear_map(chunk.name, chunk.shape):
            parts = [_nearest(chunk.rows(part), rank).view(-1) for part in parts]
        return weighted_total(parts, factors).add_(common, alpha=total)

    return Merged(
        residuals, compute, lambda name: "tensor" if is_linear_map(name, residuals.shapes[name]) else "element"
    )


def shared_factor(count: int, shared: float | None) -> float:
    """The coefficient of the sum of K residuals in the shared part."""
    return 1 / count if shared is None else float(shared)


def check_parts(rank: int | None, shared: float | None) -> None:
    """Stop with a ValueError where a rank or a coefficient is none, or has no effect."""
    if rank is not None:
        whole("rank", rank, low=1, high=MOST)
    if shared is None:
        return
    number("shared", shared, low=0)
    if rank is None:
        raise ValueError(
            f"shared is {shared}, but without a rank the merge is the same whatever is shared: give a rank, or leave "
            "it out"
        )


def _nearest(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank, decomposed in float64; what is not finite stays for whoever reads it to tell."""
    if rank >= min(matrix.shape) or not bool(torch.isfinite(matrix).all()):
        return matrix
    left, values, right = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).to(matrix.dtype)
