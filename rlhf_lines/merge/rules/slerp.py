"""Spherical interpolation of two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.rules.common import number, weighted_total
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals
from rlhf_lines.merge.tensors.sums import parameter_sums


def slerp(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    granularity: str = "tensor",
    of: str = "residuals",
    dot_threshold: float = 0.9995,
) -> Merged:
    """The point between two vectors on the arc that joins them.

        t     = w_2 / (w_1 + w_2),   c = <a, b> / (|a| |b|),   omega = arccos(c)
        slerp = [sin((1 - t) omega) a + sin(t omega) b] / sin(omega),   (1 - t) a + t b  where |c| > dot_threshold
        tau_M = (w_1 + w_2) slerp(tau_1, tau_2)                         of residuals
        tau_M = (w_1 + w_2) (slerp(theta_1, theta_2) - theta_0)         of weights

    The weights are no factors of tau_k here: they choose t, and their sum scales the result. None is t = 1/2, all zeros
    give zeros. A vector of length zero has no direction, so there the interpolation is linear too. (FusionBench instead
    leaves vectors shorter than 1e-8 as long as they are, which makes small residuals look orthogonal.)

    Whole weights of policies that share a base are almost parallel: most of their parameters fall back to the linear
    form. Residuals are what WARP interpolates.

    Source: K. Shoemake, SIGGRAPH 1985; arXiv 2406.16768 (WARP), stage 2, for residuals; angle per parameter, threshold
    and fallback as in mergekit and FusionBench, whose `slerp` takes whole weights.

    Args:
        residuals: two residuals.
        weights: two numbers that are not negative, or None.
        granularity: one angle for each `tensor`, or one `global` angle over all parameters that a policy changes.
        of: `residuals`, or whole `weights`, which needs the SFT model.
        dot_threshold: the |c| above which the interpolation is linear.

    Raises:
        ValueError: another number of policies, a negative weight, an option outside its range, or `of="weights"`
            without the SFT model.
    """
    one_of("granularity", granularity, ("tensor", "global"))
    one_of("of", of, ("residuals", "weights"))
    number("dot_threshold", dot_threshold, low=0, high=1)
    if residuals.count != 2:
        raise ValueError(f"slerp merges two policies, got {residuals.count}; merge pairs, or use another rule")
    first, second = weights or (0.5, 0.5)
    if min(first, second) < 0:
        raise ValueError(f"slerp got the weights {[first, second]}, expected none below zero: an arc has two ends")
    total = first + second
    t = second / total if total else 0.5

    def vectors(chunk: Chunk) -> list[Tensor]:
        taus = [tau.double() for tau in chunk.residuals]
        return taus if of == "residuals" else [_sft(chunk).double() + tau for tau in taus]

    def products(chunk: Chunk) -> list[Tensor]:
        a, b = vectors(chunk)
        return [a * a, a * b, b * b]

    sums = parameter_sums(residuals, products)
    if granularity == "global":
        whole = [math.fsum(column) for column in zip(*filter(None, sums.values()), strict=True)]
        sums = dict.fromkeys(sums, whole)
    shares = {name: _shares(*three, t, dot_threshold) for name, three in sums.items() if three}

    def compute(chunk: Chunk) -> Tensor:
        p, q = shares[chunk.name]
        merged = weighted_total(chunk.residuals, [total * p, total * q])
        if of == "weights":
            # p theta_1 + q theta_2 - theta_0 in a form that does not cancel.
            merged.add_(_sft(chunk), alpha=total * (p + q - 1))
        return merged

    return Merged(residuals, compute)


def _shares(aa: float, ab: float, bb: float, t: float, dot_threshold: float) -> tuple[float, float]:
    """The factors of a and b."""
    cosine = ab / (math.sqrt(aa) * math.sqrt(bb)) if aa and bb else 1.0
    if abs(cosine) > dot_threshold or abs(cosine) >= 1:
        return 1 - t, t
    omega = math.acos(cosine)
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)


def _sft(chunk: Chunk) -> Tensor:
    if chunk.sft is None:
        raise ValueError(
            'slerp with of="weights" needs the SFT model, and none was given; give it (sft=...), or leave out `of` to '
            "interpolate residuals"
        )
    return chunk.sft
