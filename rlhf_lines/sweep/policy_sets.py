"""Further sets of policies: each is a group of its own, at the same preferences as the merges of `policies`.

Policies that were trained otherwise (with learning rates that grow with depth, with frozen layers) are the rivals of a
merge that scales layers afterwards; those that were trained on mixed rewards make a Bone Soup.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from rlhf_lines.config import A_NAME, from_json, is_name
from rlhf_lines.errors import counted, unknown_name
from rlhf_lines.merge.spec import MergeSpec, number_or_auto
from rlhf_lines.pareto.schema import GROUPS
from rlhf_lines.sweep.choices import Alpha, Scaling, Tunable, read_alpha


@dataclass(frozen=True)
class PolicySet(Tunable):
    """One item of `policy_sets` in a config: the soup of these policies at every preference of the sweep.

    Attributes:
        name: what the group is called in the front.
        policies: PEFT folders, as many as the sweep has policies, in the order of the same rewards.
        mixing: of Bone Soup: row i holds the weights of the rewards that policy i was trained on; the rewards are
            those of the sweep's policies, in their order. None where each was trained on one reward.
        alpha: one factor for all layers; None where it is left out, and then chosen among the factors of `scaled`.
        alphas: in place of one, what to choose from on validation prompts.
    """

    name: str
    policies: tuple[str, ...]
    mixing: tuple[tuple[float, ...], ...] | None = None
    alpha: Alpha | None = None
    alphas: tuple[Alpha, ...] = ()

    @classmethod
    def of(cls, item: str | Mapping[str, Any] | PolicySet) -> PolicySet:
        """The set that a mapping, also as JSON, stands for; a set stands for itself.

        Raises:
            ValueError: a key is unknown or missing, or a value is wrong.
        """
        if isinstance(item, cls):
            return item
        item = from_json("policy_sets", item)
        if not isinstance(item, Mapping) or not item.get("name") or not item.get("policies"):
            raise ValueError(f"policy_sets holds {item!r}, expected a mapping with the keys name and policies")
        known = [entry.name for entry in fields(cls)]
        for key in item:
            if key not in known:
                raise ValueError(f"policy_sets: {item['name']}: {unknown_name('key', key, known)}")
        return cls(**item)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"policy_sets has name {self.name!r}, expected {A_NAME}")
        folders = self.policies
        if not isinstance(folders, list | tuple) or not all(isinstance(one, str) and one.strip() for one in folders):
            raise ValueError(f"policy_sets: {self.name}: policies is {folders!r}, expected a list of folders")
        if len(set(folders)) < (count := len(folders)):
            raise ValueError(f"policy_sets: {self.name}: policies is {list(folders)}, expected every one once")
        object.__setattr__(self, "policies", tuple(folders))
        try:
            self._read_alphas()
        except ValueError as error:
            raise ValueError(f"policy_sets: {self.name}: {error}") from None
        if self.mixing is None:
            return
        if not _is_matrix(self.mixing, count):
            raise ValueError(
                f"policy_sets: {self.name}: mixing is {self.mixing!r}, expected {count} rows of {count} numbers: of "
                "each of its policies, the weights of the rewards that it was trained on"
            )
        object.__setattr__(self, "mixing", tuple(tuple(map(float, row)) for row in self.mixing))
        try:
            merge_weights((1.0,) * count, self.mixing)
        except ZeroDivisionError:
            raise ValueError(
                f"policy_sets: {self.name}: mixing is {self.mixing!r}, which is singular: some of its policies were "
                "trained on a mixture of what the others were, so that no weights of them give every preference"
            ) from None

    def _read_alphas(self) -> None:
        if self.alpha is not None:
            object.__setattr__(self, "alpha", number_or_auto("alpha", self.alpha))
        if isinstance(self.alphas, str) or not isinstance(self.alphas, Sequence):
            raise ValueError(f"alphas is {self.alphas!r}, expected a list")
        object.__setattr__(self, "alphas", tuple(map(read_alpha, self.alphas)))
        if self.alphas and self.alpha is not None:
            raise ValueError("alpha and alphas are given: keep one")
        if len(set(self.alphas)) < len(self.alphas):
            raise ValueError(f"alphas is {list(self.alphas)}, expected every value once")

    def spec(self, preference: Sequence[float], scaling: Scaling) -> MergeSpec:
        """The merge of its own policies at a preference, with one of the `candidates`."""
        return MergeSpec("linear", self.weights(preference), *scaling)

    def weights(self, preference: Sequence[float]) -> tuple[float, ...]:
        """The weights of the policies at a preference over the rewards."""
        return tuple(preference) if self.mixing is None else merge_weights(preference, self.mixing)

    def preference(self, weights: Sequence[float]) -> tuple[float, ...]:
        """The preference of these weights: what `weights` is the inverse of.

        >>> bones = PolicySet("bones", ("a", "b"), ((0.6, 0.4), (0.4, 0.6)))
        >>> bones.preference(bones.weights((0.7, 0.3)))
        (0.7, 0.3)
        """
        if self.mixing is None:
            return tuple(weights)
        columns = zip(*self.mixing, strict=True)
        # Rounded, so that it is the preference at which other groups were measured.
        return tuple(round(math.fsum(w * b for w, b in zip(weights, column, strict=True)), 9) for column in columns)


def merge_weights(preference: Sequence[float], mixing: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The weights of policies that were trained on mixed rewards, at a preference over the rewards.

        lambda^T = w^T B^-1,   row i of B: the weights of the rewards that policy i was trained on

    So the policies' own rewards, mixed by lambda, are the rewards mixed by w. Weights may be negative: outside the
    rows of B a soup extrapolates. Where each row of B sums to 1, they sum to what w does. Worked out in fractions of
    the decimals that were given, so that the preference of a row is exactly that policy.

    Source: Bone Soups, arXiv 2502.10762; its code (andyclsr/BoneSoups, ppo/BoneSoups.py at 188a73e) solves
    B^T lambda = w for two rewards. Then it moves on, away from the SFT model, by a factor that it chooses on validation
    prompts: alpha of the set.

    >>> merge_weights((0.6, 0.4), [[0.6, 0.4], [0.4, 0.6]]), merge_weights((1, 0), [[0.6, 0.4], [0.4, 0.6]])
    ((1.0, 0.0), (3.0, -2.0))

    Args:
        preference: K numbers.
        mixing: K rows of K numbers.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    count = len(preference)
    # Gauss and Jordan on [B^T | w].
    rows = [[_exact(mixing[k][j]) for k in range(count)] + [_exact(preference[j])] for j in range(count)]
    for column in range(count):
        pivot = next((row for row in rows[column:] if row[column]), None)
        if pivot is None:
            raise ZeroDivisionError("the mixing matrix is singular")
        rows.remove(pivot)
        pivot = [value / pivot[column] for value in pivot]
        rows = [[a - row[column] * b for a, b in zip(row, pivot, strict=True)] for row in rows]
        rows.insert(column, pivot)
    return tuple(float(row[count]) for row in rows)


def set_problems(sets: Sequence[PolicySet], num_policies: int, *, groups: Sequence[str]) -> Iterator[str]:
    """What is wrong with sets beside one another, the sweep's policies and the names of its other groups."""
    names = [entry.name for entry in sets]
    for name in dict.fromkeys(names):
        if name.lower() in GROUPS:
            yield f"policy_sets: {name!r} is the name of a group that a sweep has anyway: choose another one"
        if [*names, *groups].count(name) > 1:
            yield f"policy_sets: {name!r} occurs twice: give every group a name of its own"
    for entry in sets:
        if len(entry.policies) != num_policies:
            yield (
                f"policy_sets: {entry.name} has {counted(len(entry.policies), 'policy', 'policies')}, expected "
                f"{num_policies}, as many as policies: all groups are measured at the same weights"
            )


def all_policies(policies: Sequence[str], morlhf: Sequence[str], sets: Sequence[PolicySet]) -> list[str]:
    """Every policy of a sweep in the order of the specs' weights: the merged ones, MORLHF runs, those of further sets.

    A set's policy that stands there already is not listed again.
    """
    listed = [*policies, *morlhf]
    further = dict.fromkeys(itertools.chain.from_iterable(entry.policies for entry in sets))
    return listed + [policy for policy in further if policy not in listed]


def spec_weights(weights: Sequence[float], policies: Sequence[str], listed: Sequence[str]) -> tuple[float, ...]:
    """The weights of some policies as a spec has them: one for each of all policies, up to the last that is used."""
    place = [listed.index(policy) for policy in policies]
    found = [0.0] * (max(place) + 1)
    for index, weight in zip(place, weights, strict=True):
        found[index] = float(weight)
    return tuple(found)


def _is_matrix(value: object, count: int) -> bool:
    def numbers(row: object) -> bool:
        return isinstance(row, list | tuple) and len(row) == count and all(map(_is_finite, row))

    return isinstance(value, list | tuple) and len(value) == count and all(map(numbers, value))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _exact(number: float) -> Fraction:
    """The fraction that the shortest decimal of a number is: 0.1 is 1 / 10."""
    return Fraction(repr(float(number)))
