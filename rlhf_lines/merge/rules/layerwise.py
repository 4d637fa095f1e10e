"""Factors by policy and layer: LiNeS, soups and uniform factors are special cases."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.rules.common import preference_factors, weighted_total
from rlhf_lines.merge.rules.profile import Profile
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


def layerwise(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    factors: Sequence[Sequence[float]] | None = None,
    outside: Sequence[float] | None = None,
) -> Merged:
    """The sum with a factor for every policy and layer.

        tau_M[l] = sum_k c[k][l] tau_k[l]              (no weights)
        tau_M[l] = sum_k K w_k c[k][l] tau_k[l]        (weights; equal weights 1/K change nothing)

    Parameters outside the layers (embeddings, final norm, head) have the factors `outside`. All factors 1 are `sum`,
    factors w_k are `linear` with weights w, factors w_k lambda(l) are `linear` with LiNeS.

    Source: arXiv 2310.02575 (AdaMerging), layer-wise task arithmetic; there a factor per parameter tensor, and learned.

    Args:
        residuals: tau_1..tau_K; their names tell layers.
        weights: one per policy.
        factors: c, one list per policy, with one number per layer.
        outside: one number per policy.

    Raises:
        ValueError: factors that are missing, of another number of policies or of fewer layers, or a name whose layer
            cannot be read.
    """
    profile, layers = profile_by_layer(residuals, weights, factors, outside)

    def compute(chunk: Chunk) -> Tensor:
        return weighted_total(chunk.residuals, profile.at(layers[chunk.name]))

    return Merged(residuals, compute)


def profile_by_layer(
    residuals: Residuals,
    weights: Sequence[float] | None,
    factors: Sequence[Sequence[float]] | None,
    outside: Sequence[float] | None,
) -> tuple[Profile, dict[str, int | None]]:
    """The profile of K w_k c[k][l], and the layer of every parameter.

    Raises:
        ValueError: see `layerwise`.
    """
    profile = Profile.of({"factors": factors, "outside": outside})
    profile.check(policies=residuals.count)
    names = sorted(residuals.shapes)
    layers = layer_indices(names, num_layers=profile.num_layers) if names else {}
    return profile.scaled(preference_factors(residuals.count, weights)), layers
