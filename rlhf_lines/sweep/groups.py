"""Which specs a sweep measures: weights on the simplex, and the groups that are compared at them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import SCHEDULES, lines_scales
from rlhf_lines.pareto.schema import LINES, MORLHF, REVERSED, SCALED, SFT, SOUP
from rlhf_lines.pareto.surrogate import design
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.merges import Merges


Weights = tuple[float, ...]


class Specs:
    """The specs of a sweep, with the number that alpha `"auto"` stands for.

    Args:
        config: the settings.
        merges: of the policies.
        num_layers: layers of the SFT model.

    Attributes:
        weights: of every group, but for sampler map, which begins with these.
    """

    def __init__(self, config: SweepConfig, merges: Merges, num_layers: int) -> None:
        self._config, self._merges, self._num_layers = config, merges, num_layers
        self.weights = first_weights(config)
        self.resolve = cache(merges.resolved)

    def check(self) -> None:
        """Stop where the policies cannot be merged as a further group has it; see `Merges.check`."""
        for entry in self._config.groups:
            self._merges.check(entry.spec(self.weights[0]))

    def makers(self, chosen: Scaling) -> dict[str, Callable[[Weights], MergeSpec]]:
        """For every group that is swept over weights, the function from weights to its spec."""
        lines = scaled(chosen)
        makers = {SOUP: scaled(Scaling(1.0, 0.0)), LINES: lines}
        if self._config.controls:
            makers[SCALED] = lambda weights: uniform_ablation(self.resolve(lines(weights)), self._num_layers)
            makers[REVERSED] = lambda weights: reversed_ablation(self.resolve(lines(weights)))
        makers |= {entry.name: entry.spec for entry in self._config.groups}
        return {name: lambda weights, make=make: self.resolve(make(weights)) for name, make in makers.items()}

    def fixed(self) -> dict[str, list[MergeSpec]]:
        """The groups whose points are no matter of weights: the SFT model and the MORLHF runs."""
        policies, runs = len(self._config.policies), len(self._config.morlhf)
        fixed = {SFT: [MergeSpec("linear", (0.0,) * policies)]}
        if runs:
            fixed[MORLHF] = [MergeSpec("linear", row) for row in one_hot(policies + runs)[policies:]]
        return fixed


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
    counts = itertools.product(range(steps, -1, -1), repeat=num_policies)
    return [tuple(count / steps for count in row) for row in counts if sum(row) == steps]


def one_hot(num_policies: int) -> list[Weights]:
    """The weights of the single policies."""
    return simplex(num_policies, 2)


def dirichlet(num_policies: int, count: int, seed: int) -> list[Weights]:
    """The single policies, and `count` weights drawn uniformly on the simplex: Dirichlet(1, .., 1)."""
    drawn = np.random.Generator(np.random.PCG64(seed)).dirichlet(np.ones(num_policies), size=count)
    return one_hot(num_policies) + [tuple(row) for row in drawn.tolist()]


def with_single_policies(weights: Sequence[Weights]) -> list[Weights]:
    """The weights with those of the single policies that are not among them, which come first."""
    single = [row for row in one_hot(len(weights[0])) if row not in weights]
    return single + list(weights)


def scaled(scaling: Scaling) -> Callable[[Weights], MergeSpec]:
    """The function from weights to the rewarded soup with this LiNeS scaling."""
    return lambda weights: MergeSpec("linear", weights, *scaling)


def uniform_ablation(spec: MergeSpec, num_layers: int) -> MergeSpec:
    """The spec without its dependence on depth: every layer scaled by the mean of the spec's factors over the layers.

        alpha' = (1/L) sum_l lambda(l),   beta' = 0

    What lies outside the layers gets alpha' too.
    """
    factors = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule)
    return MergeSpec(spec.rule, spec.weights, factors.mean().item(), 0.0, "linear", spec.options)


def reversed_ablation(spec: MergeSpec) -> MergeSpec:
    """The spec with its factors upside down, the last layer's first."""
    return MergeSpec(spec.rule, spec.weights, spec.alpha, spec.beta, SCHEDULES[spec.schedule].reverse, spec.options)
