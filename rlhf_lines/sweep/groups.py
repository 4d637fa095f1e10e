"""Which specs a sweep measures: weights on the simplex, and the groups that are compared at them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.sweep.choices import Scaling


SFT, SOUP, LINES, UNIFORM, REVERSED, MORLHF = "sft", "rewarded_soup", "lines", "uniform", "reversed", "morlhf"

Weights = tuple[float, ...]


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


def uniform_control(spec: MergeSpec, num_layers: int) -> MergeSpec:
    """The control for length: every block scaled by the mean of the spec's factors over the blocks.

        alpha' = (1/L) sum_l lambda(l),   beta' = 0

    What lies outside the blocks gets alpha' too.
    """
    factors = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule)
    return MergeSpec(spec.rule, spec.weights, factors.mean().item(), 0.0, "linear", spec.options)


def reversed_control(spec: MergeSpec) -> MergeSpec:
    """The control for depth: the spec's factors upside down, the last block's first."""
    return MergeSpec(spec.rule, spec.weights, spec.alpha, spec.beta, upside_down(spec.schedule), spec.options)


def upside_down(schedule: str) -> str:
    """The schedule with the same factors in the other order.

    >>> upside_down("linear"), upside_down("reversed"), upside_down("sqrt")
    ('reversed', 'linear', 'reversed_sqrt')
    """
    if schedule in ("linear", "reversed"):
        return "reversed" if schedule == "linear" else "linear"
    return schedule.removeprefix("reversed_") if schedule.startswith("reversed_") else f"reversed_{schedule}"
