"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.rules.common import (
    check_options,
    for_ties,
    options_of,
    preference_factors,
    share,
    total,
    weighted_total,
)
from rlhf_lines.merge.rules.layerwise import profile_by_layer
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


def ties(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    density: float = 0.2,
    reduction: str = "mean",
    granularity: str = "global",
    zero_sign: str = "majority",
) -> Merged:
    """The entries that survive trimming and agree with the elected sign, averaged over the policies that have them.

        t_k  = tau_k where |tau_k| is among the largest `density` of policy k, else 0
        s    = sign(sum_k t_k)
        tau_M = sum_{k: t_k s > 0} t_k / max(1, #{k: t_k s > 0})          (mean)

    Preference weights scale tau_k by K w_k first.

    Source: arXiv 2306.01708, section 3; prateeky2806/ties-merging for the trim and the signs of zero sums.

    Args:
        residuals: K residuals.
        weights: K preference weights, or None for equal ones.
        density: the share of entries that is kept.
        reduction: `mean` divides by the number of policies that agree, `sum` does not, `max` takes the largest
            magnitude.
        granularity: `global` ranks all entries of a policy together and keeps int(density d) + 1, as the authors' code
            does; `tensor` ranks each parameter alone and keeps int(density n), at least one, as mergekit does. Entries
            equal to the smallest one kept are kept too.
        zero_sign: the sign where trimmed entries cancel: the `majority` of signs over all parameters (the authors), or
            `positive` (mergekit).

    Raises:
        ValueError: an option outside its range.
    """
    share("density", density)
    one_of("reduction", reduction, ("mean", "sum", "max"))
    one_of("granularity", granularity, ("global", "tensor"))
    one_of("zero_sign", zero_sign, ("majority", "positive"))
    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    agreeing_of = election(residuals, density=density, granularity=granularity, zero_sign=zero_sign)

    def compute(chunk: Chunk) -> Tensor:
        agreeing, sign = agreeing_of(chunk)
        if reduction == "max":
            merged = agreeing[0]
            for entries in agreeing[1:]:
                merged = torch.maximum(merged, entries)
            return merged * sign
        merged = total(agreeing)
        if reduction == "mean":
            voters = agreeing[0].sign_()
            for entries in agreeing[1:]:
                voters += entries.sign_()
            merged /= voters.clamp_(min=1)
        return merged.mul_(sign)

    return Merged(residuals, compute)


def ties_layerwise(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    factors: Sequence[Sequence[float]] | None = None,
    outside: Sequence[float] | None = None,
    density: float = 0.2,
) -> Merged:
    """The sum, with a factor for every policy and layer, of what survives trimming and agrees with the elected sign.

        t_k, s     as in `ties`, of the residuals as they are
        tau_M[l] = sum_k K w_k c[k][l] t_k[l] where t_k s > 0           (no weights: without K w_k)

    All factors 1 are `ties` with reduction `sum`.

    Source: arXiv 2310.02575 (AdaMerging++), and EnnengYang/AdaMerging, `ties_merging_split`; there a factor per
    parameter tensor.

    Args:
        residuals: tau_1..tau_K; their names tell layers.
        weights: one per policy; they multiply the factors, after the election.
        factors: c, one list per policy, with one number per layer.
        outside: one number per policy, for what lies outside the layers.
        density: the share of entries that is kept of each policy, all parameters ranked together.

    Raises:
        ValueError: an option outside its range, or factors that do not fit; see `layerwise`.
    """
    share("density", density)
    profile, layers = profile_by_layer(residuals, weights, factors, outside)
    agreeing_of = election(residuals, density=density)

    def compute(chunk: Chunk) -> Tensor:
        agreeing, sign = agreeing_of(chunk)
        return weighted_total(agreeing, profile.at(layers[chunk.name])).mul_(sign)

    return Merged(residuals, compute)


def election(
    residuals: Residuals, *, density: float, granularity: str = "global", zero_sign: str = "majority"
) -> Callable[[Chunk], tuple[list[Tensor], Tensor]]:
    """From a chunk to the magnitudes of each policy that survive and agree, else 0, and the elected sign; see `ties`.

    The residuals are gone over for the thresholds, and for the majority of signs.
    """
    thresholds = trim_thresholds(residuals, density, granularity)

    def trim(chunk: Chunk) -> list[Tensor]:
        return [_keep(tau, smallest) for tau, smallest in zip(chunk.residuals, thresholds[chunk.name], strict=True)]

    favours_positive = zero_sign == "positive" or _sign_balance(residuals.changed(trim)) > 0

    def agreeing_of(chunk: Chunk) -> tuple[list[Tensor], Tensor]:
        trimmed = trim(chunk)
        summed = total(trimmed)
        is_positive = torch.ge if favours_positive else torch.gt
        sign = is_positive(summed, 0, out=torch.empty_like(summed)).mul_(2).sub_(1)
        return [(tau * sign).clamp_(min=0) for tau in trimmed], sign

    return agreeing_of


def nested_options(options: Mapping[str, object] | None, chosen: str, value: str) -> dict[str, object]:
    """The options for TIES inside another rule, checked.

    Args:
        options: what that rule was given for TIES, or None.
        chosen: the option of that rule which may name TIES.
        value: what it says.

    Raises:
        ValueError: no mapping, an option that TIES does not have, or options although `value` is another rule.
    """
    given = for_ties(options)
    if given and value != "ties":
        raise ValueError(f'ties_options is {given!r}, which only {chosen}="ties" uses; {chosen} is {value!r}')
    check_options("ties", options_of(ties), given)
    return given


def trim_thresholds(residuals: Residuals, density: float, granularity: str) -> dict[str, list[float]]:
    """The smallest magnitude that each policy keeps, by parameter name; see `ties`."""
    if granularity == "global":
        size = residuals.size()
        if size == 0:
            return {}
        rank = max(size - int(density * size) - 1, 0)
        smallest = [found for (found,) in order_statistics(residuals, [[rank]] * residuals.count)]
        return dict.fromkeys(residuals.shapes, smallest)
    thresholds = {}
    for name, shape in residuals.shapes.items():
        size = math.prod(shape)
        rank = size - max(int(density * size), 1)
        found = order_statistics(residuals, [[rank]] * residuals.count, names=[name]) if size else [[0.0]]
        thresholds[name] = [smallest for (smallest,) in found]
    return thresholds


def _keep(tau: Tensor, smallest: float) -> Tensor:
    """`tau` where |tau| >= smallest, else 0."""
    if smallest == 0:
        return tau
    # hardshrink keeps |tau| > bound: the bound is the next number below.
    bound = torch.nextafter(torch.tensor(smallest, dtype=tau.dtype), torch.zeros((), dtype=tau.dtype))
    return torch.nn.functional.hardshrink(tau, bound.item())


def _sign_balance(trimmed: Residuals) -> float:
    """The number of entries whose trimmed sum is positive, minus that of negative ones."""
    return sum(trimmed.map(lambda chunk: total(chunk.residuals).sign_().sum().item()))  # whole numbers: exact
