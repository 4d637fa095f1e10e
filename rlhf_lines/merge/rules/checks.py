"""Checks of the options of rules, each with the sentence that a wrong one gets."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from rlhf_lines.suggestion import unknown_name


def share(name: str, value: object) -> None:
    """Stop with a ValueError unless 0 <= value <= 1."""
    number(name, value, low=0, high=1)


def number(name: str, value: object, *, low: float, high: float = float("inf")) -> None:
    """Stop with a ValueError unless `value` is a finite number of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high or value in (float("inf"),):
        bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value!r}, expected a number {bounds}")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Stop with a ValueError unless `value` is one of the known names."""
    if value not in known:
        raise ValueError(unknown_name(name, str(value), known))
