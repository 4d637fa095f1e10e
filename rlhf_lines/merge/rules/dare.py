"""DARE: drop entries at random, rescale the rest, then merge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import counted, one_of
from rlhf_lines.merge.rules.common import share, whole
from rlhf_lines.merge.rules.linear import linear
from rlhf_lines.merge.rules.ties import nested_options, ties
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals
from rlhf_lines.merge.tensors.sums import parameter_sums
from rlhf_lines.noise import GAMMA, mix


def dare(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    drop_rate: float = 0.9,
    then: str = "linear",
    rescale: str = "drop_rate",
    seed: int = 0,
    ties_options: Mapping[str, object] | None = None,
    masks: Sequence[Mapping[str, Tensor]] | None = None,
    generator: torch.Generator | None = None,
) -> Merged:
    """Residuals that lost a random share p of their entries and keep their expectation, merged by a second rule.

        tau_k' = m_k tau_k / (1 - p),   m_k ~ Bernoulli(1 - p), element by element, independent between policies
        tau_M  = linear(tau_1'..tau_K'; w)  or  ties(tau_1'..tau_K'; w)

    The weights are those of the second rule: without any, `linear` takes 1/K each. Whether an entry is kept depends on
    (seed, number of the policy, name of the parameter, index of the element) and on nothing else, by a chain of
    splitmix64 mixes; so the mask is the same for sharded files and reordered parameters. Policies in another order get
    other masks, since the number goes with the place. With TIES, drop rate and density together matter: an entry
    that was dropped is zero, so a density above 1 - p trims nothing.

    LiNeS's alpha heuristic takes the residuals before the mask.

    Source: arXiv 2311.03099, section 3; yule-BUAA/MergeLM for 1 / (1 - p), whose task arithmetic takes the sum where
    `linear` takes the mean. mergekit calls 1 - p `density` and rescales by L1 norms.

    Args:
        residuals: K residuals.
        weights: K numbers, or None.
        drop_rate: p, below 1. The paper goes up to 0.9, 0.99 for large models.
        then: the second rule, `linear` or `ties`.
        rescale: `drop_rate` divides by 1 - p; `l1` multiplies what is kept of a parameter by
            ||tau_k||_1 / ||m_k tau_k||_1, as mergekit does.
        seed: of the masks.
        ties_options: options of `ties`.
        masks: K mappings from parameter name to a boolean tensor, true where an entry is kept, instead of random ones.
            Python only.
        generator: the seed is drawn from it instead. Python only.

    Raises:
        ValueError: an option outside its range, masks that do not fit, or two of seed, masks and generator.
    """
    share("drop_rate", drop_rate)
    if drop_rate == 1:
        raise ValueError("drop_rate is 1, which drops everything; expected a number below 1")
    one_of("then", then, ("linear", "ties"))
    one_of("rescale", rescale, ("drop_rate", "l1"))
    whole("seed", seed, low=-(2**63), high=2**63 - 1)
    of_ties = nested_options(ties_options, "then", then)
    if (seed != 0) + (masks is not None) + (generator is not None) > 1:
        raise ValueError("masks, a generator and a seed were given, or two of them; give the one that places the masks")
    if generator is not None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    drops = _random_drops(residuals, drop_rate, seed) if masks is None else _given_drops(residuals, masks)
    factors = [1 / (1 - drop_rate)] * residuals.count
    by_name = dict.fromkeys(residuals.shapes, factors) if rescale == "drop_rate" else _l1_factors(residuals, drops)

    def sparsify(chunk: Chunk) -> list[Tensor]:
        return [
            (tau * factor).masked_fill_(drops(chunk, k), 0)
            for k, (tau, factor) in enumerate(zip(chunk.residuals, by_name[chunk.name], strict=True))
        ]

    sparse = residuals.changed(sparsify)
    return linear(sparse, weights) if then == "linear" else ties(sparse, weights, **of_ties)


Drops = Callable[[Chunk, int], Tensor]  # of a chunk and k: true where policy k loses an entry, `[n]`


def _random_drops(residuals: Residuals, drop_rate: float, seed: int) -> Drops:
    policies = mix(mix(torch.tensor(seed)) ^ torch.arange(residuals.count))
    keys = {name: mix(policies ^ _name_key(name)).tolist() for name in residuals.shapes}
    # Mixed numbers are uniform on [-2^63, 2^63).
    first_kept = int(drop_rate * 2**64) - 2**63

    def drops(chunk: Chunk, k: int) -> Tensor:
        span = chunk.span
        places = torch.arange(span.start + 1, span.stop + 1, device=chunk.residuals[k].device)
        return mix(places.mul_(GAMMA).add_(keys[span.name][k])) < first_kept

    return drops


def _given_drops(residuals: Residuals, masks: Sequence[Mapping[str, Tensor]]) -> Drops:
    if len(masks) != residuals.count:
        raise ValueError(
            f"{counted(len(masks), 'mask')} for {counted(residuals.count, 'residual')}; give one mapping per residual"
        )
    for k, mask in enumerate(masks):
        for name, shape in residuals.shapes.items():
            found = (mask[name].dtype, tuple(mask[name].shape)) if name in mask else None
            if found != (torch.bool, shape):
                held = f"has {found[0]} of shape {found[1]}" if found else "has nothing"
                raise ValueError(f"masks[{k}] {held} for {name!r}, expected a boolean tensor of shape {shape}")

    def drops(chunk: Chunk, k: int) -> Tensor:
        span = chunk.span
        return ~masks[k][span.name].reshape(-1)[span.start : span.stop].to(chunk.residuals[k].device)

    return drops


def _l1_factors(residuals: Residuals, drops: Drops) -> dict[str, list[float]]:
    def values(chunk: Chunk) -> list[Tensor]:
        sizes = [tau.abs() for tau in chunk.residuals]
        return [*sizes, *(size.masked_fill(drops(chunk, k), 0) for k, size in enumerate(sizes))]

    sums = parameter_sums(residuals, values)
    count = residuals.count
    return {
        name: [before / kept if kept else 1.0 for before, kept in zip(norms[:count], norms[count:], strict=True)]
        for name, norms in sums.items()
    }


def _name_key(name: str) -> int:
    """A signed 64-bit number that names a parameter: the start of the SHA-256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
