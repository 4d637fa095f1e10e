"""The settings of a sweep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlhf_lines.task_rewards import reward_entries


DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class SweepConfig:
    """What is swept, and how its points are sampled and scored."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders, one per policy."})
    rewards: list[str] = field(
        metadata={
            "help": "Reward models: folders of the reward stage, presets, Hub ids, module:function or rule:name; or "
            "mappings with model, name, dtype, batch_size and options."
        }
    )
    output_dir: str = field(metadata={"help": "The folder to make: run.sqlite, front.json, front.png."})
    num_weights: int = field(
        default=11, metadata={"help": "Interpolation weights per axis of the simplex: 11 is 0, 0.1 .. 1."}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.5, 1.0],
        metadata={
            "help": "LiNeS alphas to choose from on validation prompts: numbers; auto is not supported here yet."
        },
    )
    betas: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "LiNeS betas to choose from on validation prompts."}
    )
    validation_weights: int = field(default=5, metadata={"help": "Interpolation weights per axis while choosing."})
    validation_prompts: int = field(default=100, metadata={"help": "Prompts for choosing alpha and beta."})
    test_prompts: int = field(default=200, metadata={"help": "Prompts for everything that is reported."})
    samples_per_prompt: int = field(default=1, metadata={"help": "Completions per prompt and point."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    batch_size: int = field(default=256, metadata={"help": "Completions in one batch, of any specs."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise and of the bootstrap."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16, of the loaded SFT model."})

    def __post_init__(self) -> None:
        numbers = {
            "num_weights": (self.num_weights, 2),
            "validation_weights": (self.validation_weights, 2),
            "validation_prompts": (self.validation_prompts, 2),
            "test_prompts": (self.test_prompts, 2),
            "samples_per_prompt": (self.samples_per_prompt, 1),
            "max_new_tokens": (self.max_new_tokens, 1),
            "batch_size": (self.batch_size, 1),
        }
        problems = [
            f"{name} is {value}, expected at least {least}" for name, (value, least) in numbers.items() if value < least
        ]
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature is {self.temperature}, expected a number >= 0")
        for name, values in (("alphas", self.alphas), ("betas", self.betas)):
            if not values or not all(map(math.isfinite, values)):
                problems.append(f"{name} is {values}, expected one or more finite numbers")
            elif len(set(values)) < len(values):
                problems.append(f"{name} is {values}, expected every value once")
        if self.dtype not in DTYPES:
            problems.append(f"dtype is {self.dtype!r}, expected float32, bfloat16 or float16")
        if len(self.policies) < 2:
            problems.append(f"policies has {len(self.policies)} folder, expected two or more")
        if len(self.rewards) < 2:
            problems.append(f"rewards has {len(self.rewards)}, expected two or more")
        for entry in reward_entries(self.rewards):
            if (entry.weight, entry.normalize, entry.clip) != (1.0, False, None):
                problems.append(f"rewards: {entry.model} has a weight, normalize or clip, but a sweep keeps raw scores")
        if problems:
            raise ValueError("; ".join(problems))
