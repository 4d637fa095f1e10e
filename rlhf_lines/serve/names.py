"""The name of a mix, which a request gives in place of a model: `mix/helpful=0.3,harmless=0.7`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_lines.errors import counted, unknown_name
from rlhf_lines.pareto.origin import share


PREFIX = "mix/"
PREFERENCE = "preference"
LONGEST = 512  # characters of a name
STEPS = 1000  # of a weight from 0 to 1: three decimals, so that there are only so many mixes
SEPARATORS = ",="  # which a policy cannot have in its name, because they part a mix's

_NUMBER = re.compile(r"[01]?\.\d{1,3}|[01]", re.ASCII)


class Mix(NamedTuple):
    """What a name asks for.

    Attributes:
        weights: multiples of 1 / STEPS from 0 to 1 that sum to 1: one per policy, or, of a preference, per objective.
        is_preference: whether a point of the front is asked for, by what the objectives count.
    """

    weights: tuple[float, ...]
    is_preference: bool


def is_mix(name: str) -> bool:
    """Whether a model's name is meant as that of a mix."""
    return name.startswith(PREFIX)


def read_mix(name: str, policies: Sequence[str], objectives: Sequence[str]) -> Mix:
    """What a name asks for. Policies that it does not name count 0; nothing is rounded, and nothing normalised.

    >>> read_mix("mix/harmless=0.7,helpful=.30", ["helpful", "harmless"], ["r1", "r2"]).weights
    (0.3, 0.7)
    >>> read_mix("mix/preference=0.7,0.3", ["helpful", "harmless"], ["r1", "r2"])
    Mix(weights=(0.7, 0.3), is_preference=True)

    Args:
        name: of a mix, see `is_mix`.
        policies: their names, in the order of the weights.
        objectives: their names, in the front's order.

    Raises:
        ValueError: it asks for nothing that there is.
    """
    if len(name) > LONGEST:
        raise ValueError(f"the name of the mix has {len(name)} characters, expected at most {LONGEST}")
    shown = repr(name)
    parts = name.removeprefix(PREFIX).split(",")
    if parts[0].startswith(f"{PREFERENCE}=") and not any("=" in part for part in parts[1:]):
        numbers = [parts[0].removeprefix(f"{PREFERENCE}="), *parts[1:]]
        if len(numbers) != len(objectives):
            raise ValueError(
                f"{shown} has {counted(len(numbers), 'number')}, expected {len(objectives)}, one for each "
                f"of {', '.join(objectives)}"
            )
        return Mix(_checked([_steps(number, shown) for number in numbers], shown), is_preference=True)
    found: dict[str, int] = {}
    for part in parts:
        policy, equals, number = part.rpartition("=")
        if not equals:
            raise ValueError(f"{shown} has {part!r}, expected {_example(policies)}")
        if policy not in policies:
            raise ValueError(unknown_name("policy", policy, policies))
        if policy in found:
            raise ValueError(f"{shown} names {policy} twice: give every policy one weight")
        found[policy] = _steps(number, shown)
    return Mix(_checked([found.get(policy, 0) for policy in policies], shown), is_preference=False)


def mix_name(weights: Sequence[float], policies: Sequence[str]) -> str:
    """The name of the mix with these weights, multiples of 1 / STEPS that sum to 1.

    >>> mix_name([0.3, 0.7], ["helpful", "harmless"])
    'mix/helpful=0.3,harmless=0.7'
    """
    return PREFIX + ",".join(f"{policy}={share(weight)}" for policy, weight in zip(policies, weights, strict=True))


def _steps(number: str, shown: str) -> int:
    if not _NUMBER.fullmatch(number) or (steps := round(float(number) * STEPS)) > STEPS:
        raise ValueError(f"{shown} has {number!r}, expected a number from 0 to 1 with at most three decimals")
    return steps


def _checked(steps: Sequence[int], shown: str) -> tuple[float, ...]:
    if (total := sum(steps)) != STEPS:
        raise ValueError(f"the numbers of {shown} sum to {share(total / STEPS)}, expected 1")
    return tuple(count / STEPS for count in steps)


def _example(policies: Sequence[str]) -> str:
    even = [1 / len(policies)] * len(policies) if STEPS % len(policies) == 0 else [1.0] + [0.0] * (len(policies) - 1)
    return f"POLICY=WEIGHT such as {mix_name(even, policies)}, or {PREFIX}{PREFERENCE}=WEIGHT,WEIGHT"
