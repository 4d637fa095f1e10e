"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.rules.common import number, preference_factors, share, total
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


_EXPONENT = 64  # at most: exp overflows in float32 from 89 on


def pcb(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    ratio: float = 0.1,
    clamp: float = 1e-4,
    balance: str = "raw",
) -> Merged:
    """The mean of the entries with the highest balance, weighted by it; all other entries are zero.

        c_k = |tau_k| clamped to its quantiles [clamp, 1 - clamp]
        a_k = minmax(c_k)                                                  (min -> 0, max -> 1)
        b_k = exp(K a_k^2) tanh(tau_k sum_j tau_j)
        S_k = minmax(max(b_k, (1 - ratio)-quantile of b_k))
        tau_M = sum_k S_k sign(tau_k) c_k / max(sum_k S_k, 1e-12)

    Quantiles, minima and maxima are over all entries of a policy together. Preference weights scale tau_k by K w_k
    first. The scale of tau matters where |tau_k sum_j tau_j| is not far below 1; residuals of RLHF are far below.

    Five passes as a rule: two for the quantiles of |tau|, two for those of b (see `order_statistics`), one to merge.

    Source: arXiv 2410.02396, section 3, in the form of the authors' code, duguodong7/pcb-merging: the paper has softmax
    for both balances where the code has exp and tanh. Quantiles are entries of the sorted values, int(d clamp) and
    int(d (1 - clamp) - 1) of |tau|, int(d (1 - ratio)) of b.

    Args:
        residuals: K residuals.
        weights: K preference weights, or None for equal ones.
        ratio: the share of entries of a policy that can enter. The authors call it with 0.1 (language) and 0.05
            (vision).
        clamp: the share of entries that is clamped at each end. Their top-level script has 1e-4, their code for
            language and vision 0.01.
        balance: `raw` multiplies tau_k by the plain sum of residuals, as their script and their code for language do;
            `clamped` by sum_j sign(tau_j) a_j, as their code for vision does. Their coefficients lambda_k (1.2, or
            searched) are a factor of tau_M or of one policy, which is left to `alpha`.

    A policy whose |tau_k| or b_k is constant, such as one without residual, has a_k = 0 or S_k = 0; theirs divides by
    zero there.

    Raises:
        ValueError: an option outside its range.
    """
    share("ratio", ratio)
    number("clamp", clamp, low=0, high=0.5)
    one_of("balance", balance, ("raw", "clamped"))
    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    entries = residuals.size()
    if entries == 0:
        return Merged(residuals, lambda chunk: chunk.residuals[0].clone())
    lower, least = int(entries * clamp), min(int(entries * (1 - ratio)), entries - 1)
    upper = max(int(entries * (1 - clamp) - 1), lower)
    bounds = order_statistics(residuals, [[lower, upper]] * residuals.count)

    def balances(chunk: Chunk) -> list[Tensor]:
        sizes = [_minmax(tau.abs(), *bound) for tau, bound in zip(chunk.residuals, bounds, strict=True)]
        signed = chunk.residuals
        if balance == "clamped":
            signed = [size * tau.sign() for size, tau in zip(sizes, chunk.residuals, strict=True)]
        summed = total(signed)
        # A common factor of all b_k cancels in S_k.
        excess = max(residuals.count - _EXPONENT, 0)
        return [
            size.square_().mul_(residuals.count).sub_(excess).exp_().mul_((tau * summed).tanh_())
            for size, tau in zip(sizes, chunk.residuals, strict=True)
        ]

    ends = order_statistics(residuals, [[least, entries - 1]] * residuals.count, balances)

    def compute(chunk: Chunk) -> Tensor:
        merged, scores = torch.zeros_like(chunk.residuals[0]), torch.zeros_like(chunk.residuals[0])
        for tau, value, bound, end in zip(chunk.residuals, balances(chunk), bounds, ends, strict=True):
            score = _minmax(value, *end)
            scores += score
            merged += score.mul_(tau.sign()).mul_(tau.abs().clamp_(*bound))
        return merged.div_(scores.clamp_(min=1e-12))

    return Merged(residuals, compute)


def _minmax(values: Tensor, low: float, high: float) -> Tensor:
    """Values clamped to [low, high] and mapped to [0, 1]; zeros if the bounds are equal. A new tensor."""
    if not low < high:
        return torch.zeros_like(values)
    return values.clamp(low, high).sub_(low).div_(high - low)
