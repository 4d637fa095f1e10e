"""Which specs a sweep measures: weights on the simplex, and the groups that are compared at them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.pareto.origin import weights_text
from rlhf_lines.pareto.schema import LINES, MORLHF, REVERSED, SCALED, SFT, SOUP, label
from rlhf_lines.pareto.surrogate import design
from rlhf_lines.sweep.choices import GroupEntry, Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.policy_sets import PolicySet, spec_weights


Weights = tuple[float, ...]


class Specs:
    """The specs of a sweep, with the number that alpha `"auto"` stands for.

    Args:
        config: the settings.
        merges: of the policies.
        num_layers: layers of the SFT model.
        of_sets: by name, the merges of the policies of each further set.

    Attributes:
        weights: of every group, but for sampler map, which begins with these.
        candidates: the scalings that each group chooses from; groups that have one given are left out.
    """

    def __init__(self, config: SweepConfig, merges: Merges, num_layers: int, of_sets: Mapping[str, Merges]) -> None:
        self._config, self._merges = config, merges
        self.weights = first_weights(config)
        self.candidates = candidates(config, num_layers)
        self.resolve = cache(merges.resolved)
        self._resolve_in = {name: cache(own.resolved) for name, own in of_sets.items()}

    def check(self) -> None:
        """Stop where the policies cannot be merged as a further group has it; see `Merges.check`."""
        for entry in self._config.groups:
            if entry.router is None:  # else every merge is made of adapters
                self._merges.check(entry.spec(self.weights[0], entry.candidates(())[0]))

    def maker(self, group: str, scaling: Scaling) -> Callable[[Weights], MergeSpec]:
        """The function from weights to the spec of a group with this scaling.

        It raises a ValueError, with the group and the weights, where alpha `"auto"` stands for no number.
        """
        other = next((entry for entry in self._config.policy_sets if entry.name == group), None)
        entry = next((entry for entry in self._config.groups if entry.name == group), GroupEntry(LINES))
        soup = other and soup_of(other, self._config.listed_policies, scaling, self._resolve_in[group])

        def make(weights: Weights) -> MergeSpec:
            try:
                return soup(weights) if soup else self.resolve(entry.spec(weights, scaling))
            except ValueError as error:
                raise ValueError(f"{label(group)} at weights {weights_text(weights)}: {error}") from error

        return make

    def tried(self, group: str, scaling: Scaling, weights: Sequence[Weights]) -> list[MergeSpec]:
        """The specs of a candidate at these weights; one that does nothing is the SFT model at all of them."""
        return self.fixed()[SFT] if scaling.is_nothing else list(map(self.maker(group, scaling), weights))

    def count_tried(self, weights: int) -> int:
        """How many merges all candidates are, at so many weights, beside the SFT model.

        What LiNeS and its controls have in common counts once.
        """
        own = {one.merged for name in (LINES, SCALED, REVERSED) for one in self.candidates.get(name, ())}
        others = [tried for name, tried in self.candidates.items() if name not in (LINES, SCALED, REVERSED)]
        return weights * sum(not one.is_nothing for one in (*own, *itertools.chain.from_iterable(others)))

    def makers(self, chosen: Mapping[str, Scaling]) -> dict[str, Callable[[Weights], MergeSpec]]:
        """For every group that is swept over weights, the function from weights to its spec.

        Args:
            chosen: the scaling of every group of `candidates`.
        """
        further = (*self._config.groups, *self._config.policy_sets)
        given = {entry.name: entry.candidates(())[0] for entry in further if entry.name not in self.candidates}
        scalings = {SOUP: Scaling(1.0, 0.0), **{name: chosen[name] for name in self.candidates}, **given}
        return {name: self.maker(name, scaling) for name, scaling in scalings.items()}

    def fixed(self) -> dict[str, list[MergeSpec]]:
        """The groups whose points are no matter of weights: the SFT model, the MORLHF runs, and policies alone."""
        policies, runs = len(self._config.policies), len(self._config.morlhf)
        fixed = {SFT: [MergeSpec("linear", (0.0,) * policies)]}
        if runs:
            fixed[MORLHF] = [MergeSpec("linear", row) for row in one_hot(policies + runs)[policies:]]
        for name, k in self._config.wise_ft_names.items():
            fixed[name] = wise_ft_of(k, policies, self._config.num_weights)
        return fixed

    def anchors(self) -> dict[str, list[MergeSpec]]:
        """What every scaling is measured against: the SFT model, and the policies as they are."""
        return {
            SFT: self.fixed()[SFT],
            SOUP: [MergeSpec("linear", row) for row in one_hot(len(self._config.policies))],
        }


def candidates(config: SweepConfig, num_layers: int) -> dict[str, list[Scaling]]:
    """The scalings that each group chooses from: LiNeS, its controls, and further groups that do not have one given."""
    lines = config.candidates
    factors = config.scaled_alphas or factors_of(lines, num_layers)
    controls = {}
    if config.controls:
        controls = {SCALED: [Scaling(alpha, 0.0) for alpha in factors], REVERSED: [upside_down(one) for one in lines]}
    return {LINES: lines, **controls, **{entry.name: entry.candidates(factors) for entry in config.tuned}}


def first_weights(config: SweepConfig) -> list[Weights]:
    """The weights of every group; of sampler map those before the fit."""
    count = len(config.policies)
    if config.sampler == "list":
        return with_single_policies(config.weights)
    if config.sampler == "dirichlet":
        return dirichlet(count, config.num_weights, config.seed)
    if config.sampler == "map":
        return [tuple(row) for row in design(count, config.num_weights)]
    return simplex(count, config.num_weights)


def simplex(num_policies: int, num_weights: int) -> list[Weights]:
    """All weights >= 0 that sum to 1, in steps of 1 / (num_weights - 1) per axis, last policy first to grow.

    >>> simplex(2, 3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    steps = num_weights - 1
    return [tuple(count / steps for count in row) for row in _compositions(steps, num_policies)]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Whole numbers >= 0 that sum to the total, the largest first; C(total + parts - 1, total) of them."""
    if parts < 2:
        yield from [(total,)] * parts
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def one_hot(num_policies: int) -> list[Weights]:
    """The weights of the single policies."""
    return [tuple(float(k == place) for k in range(num_policies)) for place in range(num_policies)]


def dirichlet(num_policies: int, count: int, seed: int) -> list[Weights]:
    """The single policies, and `count` weights drawn uniformly on the simplex: Dirichlet(1, .., 1)."""
    drawn = np.random.Generator(np.random.PCG64(seed)).dirichlet(np.ones(num_policies), size=count)
    return one_hot(num_policies) + [tuple(row) for row in drawn.tolist()]


def with_single_policies(weights: Sequence[Weights]) -> list[Weights]:
    """The weights with those of the single policies that are not among them, which come first."""
    single = [row for row in one_hot(len(weights[0])) if row not in weights]
    return single + list(weights)


def wise_ft_of(policy: int, num_policies: int, num_weights: int) -> list[MergeSpec]:
    """A policy alone, in equal steps from the SFT model to itself: theta_SFT + a tau, a = 0 .. 1.

    Source: arXiv 2109.01903, weight-space ensembling.
    """
    shares = [step / (num_weights - 1) for step in range(num_weights)]
    return [MergeSpec("linear", [a * (k == policy) for k in range(num_policies)]) for a in shares]


def soup_of(
    entry: PolicySet, listed: Sequence[str], scaling: Scaling, resolve: Callable[[MergeSpec], MergeSpec]
) -> Callable[[Weights], MergeSpec]:
    """The function from a preference to the rewarded soup, or the Bone Soup, of a further set of policies.

    Args:
        entry: the set.
        listed: all policies, in the order of the specs' weights.
        scaling: alpha, beta and schedule.
        resolve: gives alpha `"auto"` of a merge of the set's own policies its number.
    """

    def make(preference: Weights) -> MergeSpec:
        own = resolve(entry.spec(preference, scaling))
        return replace(own, weights=spec_weights(own.weights, entry.policies, listed))

    return make


def factors_of(scalings: Sequence[Scaling], num_layers: int) -> list[float | Literal["auto"]]:
    """As many factors for all layers as there are scalings, which are as long.

    They lie evenly between the smallest and the largest mean factor of a scaling over the layers,

        (1/L) sum_l lambda(l),

    or, where that is the same for all, from half below to half above it; a single one has the mean of the two. alpha
    `"auto"` counts as 1, which it is for equal weights; where a scaling has it, `"auto"` takes the place of one factor.

    >>> factors_of([Scaling(0.5, 1.0), Scaling(1.0, 0.0), Scaling(1.0, 2.0)], num_layers=4)
    [1.0, 1.5, 2.0]
    """
    means = [mean_factor(one._replace(alpha=1.0) if one.alpha == "auto" else one, num_layers) for one in scalings]
    auto = ["auto"] if len(scalings) > 1 and any(one.alpha == "auto" for one in scalings) else []
    count, low, high = len(scalings) - len(auto), min(means), max(means)
    if count == 1:
        return [*auto, (low + high) / 2]
    margin = 0.5 if low == high else 0.0
    return [*auto, *np.linspace(low - margin, high + margin, count).tolist()]


def mean_factor(scaling: Scaling, num_layers: int) -> float:
    """The mean of the factors of a scaling over the layers."""
    return lines_scales(num_layers, *scaling).mean().item()


def upside_down(scaling: Scaling) -> Scaling:
    """The scaling with its factors in reverse, the last layer's first."""
    return scaling._replace(schedule=SCHEDULES[scaling.schedule].reverse)
