"""The settings of a merge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlhf_lines.config import RunConfig, read_fields, size_of
from rlhf_lines.errors import alternatives
from rlhf_lines.merge.rules import RULES, Rule, read_options
from rlhf_lines.merge.schedules import FALLING, GROWING, schedules_without_effect
from rlhf_lines.merge.spec import MergeSpec, number_or_auto


def _rules(chosen: Callable[[Rule], object], joint: str = ", ") -> str:
    """The names of some rules, for help texts."""
    return joint.join(name for name, rule in RULES.items() if chosen(rule))


def rule_options(value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a rule, from a mapping or its JSON.

    Raises:
        ValueError: the text is not JSON, or the value no mapping.
    """
    try:
        options = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"rule_options {value!r} is not JSON ({error.msg} at {error.pos})") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"options is {options!r}, expected a mapping from option name to value")
    return options


def shard_size(value: str | int) -> int:
    """The most bytes of a written weight file.

    Raises:
        ValueError: no size, or zero.
    """
    size = size_of("max_shard_size", value)
    if size == 0:
        raise ValueError(f"max_shard_size is {value}, expected a size such as 5GB")
    return size


@dataclass
class MergeConfig:
    """What to merge, how, and what to write."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders or dense checkpoints, or names on the Hub."})
    save: str = field(metadata={"help": "adapter (exact, its rank is the sum of the ranks) or dense."})
    output_dir: str = field(metadata={"help": "The folder to make."})
    weights: list[float] | None = field(
        default=None, metadata={"help": "One number per policy; a rewarded soup's sum to 1. 1/K each if not given."}
    )
    weights_by: str | None = field(
        default=None,
        metadata={"help": "In place of weights, for checkpoints of one run: step or loss, from trainer_state.json."},
    )
    power: float | None = field(
        default=None, metadata={"help": "Of the metric of weights_by: 0 weighs all alike; 1 if not given."}
    )
    rank: int | None = field(
        default=None, metadata={"help": "Truncate the merged adapter to this rank, and say what that loses."}
    )
    rule: str = field(
        default="linear",
        metadata={
            "help": f"How residuals are combined: {_rules(lambda rule: not rule.on_factors)}; for comparison with "
            f"other codes, on adapters: {_rules(lambda rule: rule.on_factors)}."
        },
    )
    rule_options: Mapping[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Options of the rule, as JSON; of layerwise also {factors: FILE}, of which FILE holds factors and "
            "outside.",
            "parse": rule_options,
        },
    )
    statistics: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of each policy, for rules {_rules(lambda rule: rule.statistics, ' and ')}: folders of rlhf-lines "
            f"{' or '.join(dict.fromkeys(rule.statistics.verb for rule in RULES.values() if rule.statistics))}; for "
            "ota also checkpoints of a Trainer with optimizer.pt."
        },
    )
    alpha: float | Literal["auto"] = field(
        default=1.0,
        metadata={
            "help": "LiNeS factor of the first layer; auto gives tau_M the L1 norm of the mean residual.",
            "parse": partial(number_or_auto, "alpha"),
        },
    )
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last layer is more than alpha."})
    schedule: str = field(
        default="linear",
        metadata={"help": f"How the factor grows: {alternatives(GROWING)}; or falls: {alternatives(FALLING)}."},
    )
    lines: str = field(
        default="after",
        metadata={
            "help": "Whether LiNeS scales the merged residual (after the rule), or those of the policies (before)."
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Of the written weights; if not given that of the SFT model, and float32 of an adapter."},
    )
    max_shard_size: int | None = field(
        default=None,
        metadata={
            "help": "Of a written weight file, such as 5GB; as the SFT model is if not given.",
            "parse": shard_size,
        },
    )
    max_memory: int = field(
        default="4GB",
        metadata={
            "help": "What the work on one parameter may take, for rules that need whole ones.",
            "parse": partial(size_of, "max_memory"),
        },
    )
    device: str = field(default="cpu", metadata={"help": "Where the arithmetic is done: cpu or cuda."})
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The adapters were trained on this very SFT model under another name: its Hub id, a revision, "
            "a folder that has moved. What they call it is not compared; hashes, shapes and tokenizers are."
        },
    )
    plan: bool = field(
        default=False, metadata={"help": "Check the inputs, print what would be read, computed and written, and stop."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the finished folder to the Hugging Face Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Its name there: NAME or ORG/NAME."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new model is private there."})
    repeats: str | None = field(
        default=None,
        metadata={
            "help": "A merge_spec.json: refuse inputs whose weights are not those it records. --config "
            "merge_spec.json sets it, with all settings of that merge but output_dir."
        },
    )

    def __post_init__(self) -> None:
        given = read_fields(self)
        if self.rule_options is not None:
            self.rule_options = read_options(self.rule, self.rule_options)
        # What no merge may be is told here, before torch is imported.
        given_options = self.rule_options or {}
        MergeSpec(
            self.rule, self.weights or (1.0,), self.alpha, self.beta, self.schedule, given_options, lines=self.lines
        )
        if self.lines == "before" and (self.alpha, self.beta) == (1.0, 0.0):
            raise ValueError(
                "lines is 'before', but alpha 1 and beta 0 scale nothing; give alpha or beta, or leave it out"
            )
        if self.max_shard_size is not None and self.save == "adapter":
            size = given["max_shard_size"]
            raise ValueError(f"max_shard_size is {size}, but an adapter is one file; leave it out")
        for name in ("hub_model_id", "hub_private_repo"):
            if not self.push_to_hub and (value := getattr(self, name)):
                raise ValueError(f"{name} is {value}, but nothing is uploaded; give --push_to_hub, or leave it out")

    @property
    def without_effect(self) -> list[str]:
        """Sentences on what is given and has no effect: told, not refused, as `pick` prints a schedule in any case."""
        found = list(schedules_without_effect([(self.beta, self.schedule)]))
        default = size_of("max_memory", type(self).__dataclass_fields__["max_memory"].default)
        if RULES[self.rule].makes_adapter and self.max_memory != default:
            found.append(
                f"max_memory {self.max_memory:,} bytes has no effect: rule {self.rule} needs no whole parameter at once"
            )
        return found

    @staticmethod
    def settings(content: dict, path: Path) -> dict:
        """What a config file sets; a `merge_spec.json`, of any format, sets all that repeats its merge."""
        if not content.keys() >= {"format", "spec", "policies"}:
            return content
        from rlhf_lines.merge.output.record import settings

        return settings(path)


MERGE = (RunConfig, MergeConfig)
