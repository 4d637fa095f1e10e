"""What a sweep asks of whoever generates: completions of any specs, and how well a spec predicts given texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.rules import RULES


Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]  # a prompt, and a completion of it


@dataclass(frozen=True)
class Request:
    """One completion to be sampled: which spec, which prompt (a number that names it), which sample of it.

    A spec may have fewer weights than there are adapters; those that are missing count as 0.
    """

    spec: MergeSpec
    prompt_ids: Tokens
    prompt_key: int
    sample: int = 0


@dataclass(frozen=True)
class Completion:
    """The tokens of a completion, the end token included, and its KL to the SFT model.

    `kl` is sum_t log pi(a_t|s_t) - log pi_SFT(a_t|s_t), in nats: an unbiased estimate from one sample.
    """

    token_ids: Tokens
    kl: float


class Sampling(Protocol):
    """How a base is loaded and sampled from: what the settings of a sweep and of learning have in common."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    stop: list[str]
    batch_size: int | None
    seed: int
    dtype: str
    load_in_8bit: bool
    load_in_4bit: bool
    quantized: bool


class Engine(Protocol):
    """Generates for a sweep; `LocalEngine` and `VllmEngine` are the two kinds."""

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in their order, which may mix any specs."""
        ...

    def nll(self, specs: Sequence[MergeSpec], rows: Sequence[Sequence[int]]) -> list[float]:
        """Of each row of token ids, -sum_t log p(token_t | those before), t >= 1, under its spec."""
        ...

    def rows(self, prompt_tokens: int) -> int:
        """How many requests with prompts of at most so many tokens one call should hold."""
        ...

    def close(self) -> None:
        """Close the files and end the processes that the engine has opened and started, if any."""
        ...


def mixable(specs: Mapping[int, MergeSpec]) -> list[dict[int, MergeSpec]]:
    """The specs, by their ids, that a batch should mix: all linear ones, and each other one alone.

    Those with a router are linear for every prompt. The weights of the others are loaded in place, one spec at a time.
    """
    linear = {spec_id: spec for spec_id, spec in specs.items() if RULES[spec.rule].is_linear or spec.is_routed}
    return [linear, *({spec_id: spec} for spec_id, spec in specs.items() if spec_id not in linear)]
