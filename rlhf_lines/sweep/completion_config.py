"""The settings that a sweep and learning share: what is merged, how merges complete prompts, and what scores them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf_lines.completions import samples_policy
from rlhf_lines.errors import alternatives
from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.task_rewards import KINDS, RewardEntry


# Settings that completions and their KL depend on, beside models, prompts and specs.
SAMPLING = (
    *("seed", "temperature", "top_k", "top_p", "stop", "max_new_tokens"),
    *("dtype", "load_in_8bit", "load_in_4bit", "engine", "vllm"),
)
# The least that a number may be.
LEAST = {
    "control_texts": 2,
    "control_tokens": 2,
    "samples_per_prompt": 1,
    "max_new_tokens": 1,
    "batch_size": 1,
    "top_k": 1,
}


@dataclass
class CompletionConfig:
    """What is merged, how merges complete prompts, and what scores them."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(
        metadata={"help": "PEFT folders, or names on the Hub (owner/name, owner/name@revision), one per policy."}
    )
    rewards: list[RewardEntry] = field(
        metadata={
            "help": f"Reward models: {KINDS}; or mappings with model, name, dtype, batch_size, options, template, "
            "label and system.",
            "parse": RewardEntry.of,
        }
    )
    output_dir: str = field(metadata={"help": "The folder to make."})
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The adapters were trained on this very SFT model under another name: its Hub id, a revision, "
            "a folder that has moved. What they call it is not compared; hashes, shapes and tokenizers are."
        },
    )
    max_kl: float | None = field(
        default=None,
        metadata={
            "help": "Choose among candidates whose every point has at most this mean KL to the SFT model (nats) on the "
            "prompts for choosing."
        },
    )
    max_forgetting: float | None = field(
        default=None,
        metadata={
            "help": "Choose among candidates whose every point has at most this times the SFT model's perplexity on "
            "the texts of control."
        },
    )
    control: str | None = field(
        default=None,
        metadata={
            "help": "Texts outside the task, whose perplexity every spec is given: a task, a file, a folder or a Hub "
            "id, with a column text."
        },
    )
    control_texts: int = field(default=100, metadata={"help": "How many of these texts."})
    control_tokens: int = field(default=256, metadata={"help": "Tokens of each that are read."})
    samples_per_prompt: int = field(default=1, metadata={"help": "Completions per prompt and point."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    top_p: float | None = field(
        default=None,
        metadata={
            "help": "Draw among the most likely tokens that together have this probability; left out, among all."
        },
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw among so many of the most likely tokens; left out, among all."}
    )
    stop: list[str] = field(
        default_factory=list, metadata={"help": "Texts that end a completion, which are no part of what is scored."}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions in one batch, of any specs; left out, what free memory and a CPU allow."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise, and of all else that is drawn."})
    dtype: str = field(default="float32", metadata={"help": f"{alternatives(LOAD_DTYPES)}, of the loaded SFT model."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the SFT model in 8 bits (bitsandbytes)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the SFT model in 4 bits (bitsandbytes)."})

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in 8 or 4 bits."""
        return self.load_in_8bit or self.load_in_4bit

    @property
    def samples_policy(self) -> bool:
        """Whether completions are drawn from softmax(logits / temperature), so that their log-ratios estimate a KL."""
        return samples_policy(self.temperature, self.top_k, self.top_p)

    def value_problems(self, least: dict[str, int], known: dict[str, tuple[str, ...]]) -> Iterator[str]:
        """What is wrong with single values; one that is missing is left to `read_fields`, which says so of every key.

        Args:
            least: of further numbers.
            known: the names that each further setting may have.
        """
        for name, low in (least | LEAST).items():
            if (value := getattr(self, name)) is not None and value < low:
                yield f"{name} is {value}, expected at least {low}"
        yield from self._sampling_problems()
        for name, names in (known | {"dtype": LOAD_DTYPES}).items():
            if (value := getattr(self, name)) is not None and value not in names:
                yield f"{name} is {value!r}, expected {alternatives(names)}"
        for name in ("policies", "rewards"):
            if getattr(self, name) == []:
                yield f"{name} is empty, expected one or more"

    def is_given(self, name: str) -> bool:
        """Whether a setting, which is no list, is not left at its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def limit_problems(self) -> Iterator[str]:
        """What is wrong with the limits of what is chosen, and with the texts outside the task, which one is of."""
        for name in ("max_kl", "max_forgetting"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                example = ", such as 1.05" if name == "max_forgetting" else ""
                yield f"{name} is {value}, expected a number above 0{example}"
        if self.max_kl is not None and not self.samples_policy:
            yield "max_kl needs completions drawn from the policy: give a temperature above 0, and no top_p or top_k"
        if self.max_forgetting is not None and not self.control:
            yield "max_forgetting is given, but no control: name texts outside the task there"
        for name in ("control_texts", "control_tokens"):
            if not self.control and self.is_given(name):
                yield f"{name} is given, but no control: name texts outside the task there, or leave it out"

    def _sampling_problems(self) -> Iterator[str]:
        if self.seed is not None and not 0 <= self.seed < 2**63:
            yield f"seed is {self.seed}, expected a whole number from 0 to 2^63 - 1"
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            yield f"temperature is {self.temperature}, expected a number >= 0"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p}, expected a number above 0 and at most 1"
        for name in ("top_p", "top_k"):
            if self.temperature == 0 and getattr(self, name) is not None:
                yield f"{name} is given, but temperature 0 takes the most likely token: leave one out"
        if not all(self.stop or []):
            yield f"stop is {self.stop}, expected texts that are not empty"
        if self.load_in_8bit and self.load_in_4bit:
            yield "load_in_8bit and load_in_4bit are both given: keep one"
