"""Checks of the options of rules, each with the sentence that a wrong one gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from rlhf_lines.merge.tensors.precision import LARGEST
from rlhf_lines.suggestion import unknown_name


def share(name: str, value: object) -> None:
    """Stop with a ValueError unless 0 <= value <= 1."""
    number(name, value, low=0, high=1)


def number(name: str, value: object, *, low: float, high: float = LARGEST) -> None:
    """Stop with a ValueError unless `value` is a finite number of [low, high], by default up to float32's largest."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        bounds = f"at least {low:g} that float32 holds" if high == LARGEST else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value!r}, expected a number {bounds}")


def yes_or_no(name: str, value: object) -> None:
    """Stop with a ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Stop with a ValueError unless `value` is one of the known names."""
    if value not in known:
        raise ValueError(unknown_name(name, str(value), known))


def whole(name: str, value: object, *, low: int, high: int) -> None:
    """Stop with a ValueError unless `value` is an integer of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected a whole number between {low} and {high}")


def known_options(rule: str, function: Callable | None, options: Mapping[str, object]) -> None:
    """Stop with a ValueError at the first option that the rule has not; `function` is the rule, None takes none."""
    parameters = inspect.signature(function).parameters.values() if function else ()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f"option of rule {rule!r}", option, known))


def ties_options(options: Mapping[str, object] | None, ties: Callable, chosen: str, value: str) -> dict[str, object]:
    """The options for TIES inside another rule, checked; `chosen` is that rule's option which may name TIES.

    Raises:
        ValueError: no mapping, an option that TIES does not have, or options although `value` is another rule.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"ties_options is {options!r}, expected a mapping from an option of ties to its value")
    if options and value != "ties":
        raise ValueError(f'ties_options is {dict(options)!r}, which only {chosen}="ties" uses; {chosen} is {value!r}')
    known_options("ties", ties, options)
    return dict(options)
