"""Spaces that are searched: from a vector of few numbers to factors by policy and layer.

Vectors are in units of a soup's factor: in each space `start` is the rewarded soup with equal weights, whose factors
are 1/K, and at weights w the same vector is the soup of these weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.merge.rules.profile import Profile


Vector = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """A space of profiles.

    Attributes:
        start: the vector of the soup.
        names: of its numbers.
        profile: from a vector to the factors that it stands for.
    """

    start: tuple[float, ...]
    names: tuple[str, ...]
    profile: Callable[[Vector], Profile]

    def matrix(self) -> NDArray[np.float64]:
        """The factors of every number, `[K (1 + L), n]`: of each policy outside the layers, then in each layer."""
        units = np.eye(len(self.start))
        return np.stack([self.profile(unit).vector() for unit in units], axis=1)


def make_space(name: str, num_policies: int, num_layers: int) -> Space:
    """The space of this name: `profile`, `coefficients` or `policies`."""
    made = {"profile": bent_lines, "coefficients": every_factor, "policies": one_factor}
    return made[name](num_policies, num_layers)


def bent_lines(num_policies: int, num_layers: int) -> Space:
    """Three numbers a policy: LiNeS' line with a bend, which the middle has more than the line.

        K c[k][l] = alpha_k + beta_k d + 4 bend_k d (1 - d),   d = (l - 1) / (L - 1),   outside the layers alpha_k

    A bend of 0 is LiNeS. With one layer the factor is alpha.
    """

    def profile(vector: Vector) -> Profile:
        return from_factors([depth_factors(*row, num_layers) for row in np.reshape(vector, (num_policies, 3))])

    names = [f"{name} {k}" for k in range(1, num_policies + 1) for name in ("alpha", "beta", "bend")]
    return Space((1.0, 0.0, 0.0) * num_policies, tuple(names), profile)


def every_factor(num_policies: int, num_layers: int) -> Space:
    """A number for every policy and layer, and for what lies outside: K (L + 1)."""

    def profile(vector: Vector) -> Profile:
        return from_factors([(row[0], row[1:]) for row in np.reshape(vector, (num_policies, num_layers + 1))])

    places = ["outside", *(f"layer {i}" for i in range(1, num_layers + 1))]
    names = [f"{place} of {k}" for k in range(1, num_policies + 1) for place in places]
    return Space((1.0,) * len(names), tuple(names), profile)


def one_factor(num_policies: int, num_layers: int) -> Space:
    """A number for every policy, the same in all layers."""

    def profile(vector: Vector) -> Profile:
        return from_factors([(factor, [factor] * num_layers) for factor in vector])

    return Space((1.0,) * num_policies, tuple(f"factor {k}" for k in range(1, num_policies + 1)), profile)


def depth_factors(alpha: float, beta: float, bend: float, num_layers: int) -> tuple[float, NDArray[np.float64]]:
    """The factor outside the layers, and those of the layers."""
    depth = np.arange(num_layers) / max(num_layers - 1, 1)
    return alpha, alpha + beta * depth + 4 * bend * depth * (1 - depth)


def from_factors(factors: Sequence[tuple[float, Sequence[float]]]) -> Profile:
    """The profile of policies whose factors, outside and by layer, are in units of a soup's 1/K."""
    count = len(factors)
    rows = [[float(factor) / count for factor in row] for _, row in factors]
    return Profile.of({"factors": rows, "outside": [float(outside) / count for outside, _ in factors]})
