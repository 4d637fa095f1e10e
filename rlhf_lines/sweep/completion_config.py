"""What is wrong with settings that a sweep and learning share: how completions are drawn, and limits of what is chosen.

A value that is missing is left to `read_fields`, which says so of every key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol


class SamplingSettings(Protocol):
    """How completions are drawn."""

    temperature: float
    top_p: float | None
    top_k: int | None
    stop: list[str]
    seed: int
    load_in_8bit: bool
    load_in_4bit: bool
    samples_policy: bool


class LimitSettings(SamplingSettings, Protocol):
    """The limits of what is chosen."""

    max_kl: float | None
    max_forgetting: float | None
    control: str | None


def sampling_problems(config: SamplingSettings) -> Iterator[str]:
    """What is wrong with how completions are drawn."""
    if config.seed is not None and not 0 <= config.seed < 2**63:
        yield f"seed is {config.seed}, expected a whole number from 0 to 2^63 - 1"
    if config.temperature is not None and not (math.isfinite(config.temperature) and config.temperature >= 0):
        yield f"temperature is {config.temperature}, expected a number >= 0"
    if config.top_p is not None and not 0 < config.top_p <= 1:
        yield f"top_p is {config.top_p}, expected a number above 0 and at most 1"
    for name in ("top_p", "top_k"):
        if config.temperature == 0 and getattr(config, name) is not None:
            yield f"{name} is given, but temperature 0 takes the most likely token: leave one out"
    if not all(config.stop or []):
        yield f"stop is {config.stop}, expected texts that are not empty"
    if config.load_in_8bit and config.load_in_4bit:
        yield "load_in_8bit and load_in_4bit are both given: keep one"


def limit_problems(config: LimitSettings) -> Iterator[str]:
    """What is wrong with the limits of what is chosen."""
    for name in ("max_kl", "max_forgetting"):
        if (value := getattr(config, name)) is not None and not (math.isfinite(value) and value > 0):
            example = ", such as 1.05" if name == "max_forgetting" else ""
            yield f"{name} is {value}, expected a number above 0{example}"
    if config.max_kl is not None and not config.samples_policy:
        yield "max_kl needs completions drawn from the policy: give a temperature above 0, and no top_p or top_k"
    if config.max_forgetting is not None and not config.control:
        yield "max_forgetting is given, but no control: name texts outside the task there"
