"""The settings of statistics of a policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from rlhf_lines.config import RunConfig, read_fields, size_of
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.data.splits import SPLITS
from rlhf_lines.errors import Problems, unknown_name
from rlhf_lines.models import LOAD_DTYPES


PARAMETERS = ("adapted", "all")
INPUTS = ("samples", "prompts")
REDUCE = 0.1  # of RegMean++ where nothing else is asked for


@dataclass
class StatisticsConfig:
    """Of which policy, on which texts."""

    sft_model: str = field(metadata={"help": "The SFT model that the policy was trained from."})
    policy: str = field(metadata={"help": "A PEFT folder or a dense checkpoint."})
    output_dir: str = field(metadata={"help": "The folder to make."})
    split: str = field(default="train", metadata={"help": "train, validation or test: whose prompts."})
    num_prompts: int = field(default=256, metadata={"help": "Prompts, each with one completion of the policy."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion."})
    batch_size: int = field(default=32, metadata={"help": "Sequences in one batch, where batches are used."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise."})
    dtype: str = field(default="float32", metadata={"help": "Of the loaded policy; float32 merges an adapter exactly."})
    max_memory: int = field(
        default="4GB",
        metadata={
            "help": "Of the sums that are in memory at a time, beside the policy; less takes more passes.",
            "parse": partial(size_of, "max_memory"),
        },
    )
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The policy was trained on this very SFT model under another name: its Hub id, a moved folder."
        },
    )
    parameters: str | None = field(
        default=None,
        metadata={"help": "adapted (what the adapter changes) or all; if not given, adapted for an adapter."},
    )

    dtypes: ClassVar[tuple[str, ...]] = LOAD_DTYPES

    def __post_init__(self) -> None:
        numbers = ("num_prompts", "max_new_tokens", "batch_size")
        problems = Problems(
            f"{name} is {value}, expected at least 1"
            for name, value in ((name, getattr(self, name)) for name in numbers)
            if value is not None and value < 1  # read_fields says of an empty one that it is empty
        )
        if self.split not in (None, *SPLITS):
            problems.add(unknown_name("split", self.split, SPLITS))
        if self.parameters not in (None, *PARAMETERS):
            problems.add(unknown_name("parameters", self.parameters, PARAMETERS))
        if self.dtype not in (None, *self.dtypes):
            problems.add(f"dtype is {self.dtype!r}, expected {' or '.join(self.dtypes)}")
        with problems.collect():
            read_fields(self)
        problems.check()


@dataclass
class FisherConfig(StatisticsConfig):
    """Of which policy, on which texts."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")  # gradients are often below the range of float16


@dataclass
class GramConfig(StatisticsConfig):
    """Of which policy, on which texts."""

    inputs: str = field(
        default="samples",
        metadata={"help": "samples (prompts and the policy's own completions) or prompts (nothing is sampled)."},
    )

    merged_with: list[str] = field(
        default_factory=list,
        metadata={
            "help": "For RegMean++: all other policies of the merge. Gram matrices are then taken layer by layer, "
            "behind the layers merged so far, and output_dir has a folder for each, numbered from 1, policy first."
        },
    )
    reduce: float = field(
        default=REDUCE, metadata={"help": "With merged_with: the option reduce of the merges that they are for."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs not in INPUTS:
            raise ValueError(unknown_name("inputs", self.inputs, INPUTS))
        if not 0 <= self.reduce <= 1:
            raise ValueError(f"reduce is {self.reduce}, expected a number between 0 and 1")
        if not self.merged_with and self.reduce != REDUCE:
            raise ValueError(f"reduce is {self.reduce}, which only Gram matrices for RegMean++ have; give merged_with")
        if self.merged_with and self.parameters is not None:
            raise ValueError(
                f"parameters is {self.parameters!r}, but with merged_with they are those that any policy changes; "
                "leave it out"
            )

    def alone(self, policy: str) -> GramConfig:
        """As it is of one of the policies without the others, behind which no layer is merged."""
        return replace(self, policy=policy, merged_with=[], reduce=REDUCE)


FISHER = (RunConfig, PromptDataConfig, FisherConfig)
GRAM = (RunConfig, PromptDataConfig, GramConfig)
