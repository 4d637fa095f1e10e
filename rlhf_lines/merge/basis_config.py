"""The settings of a basis of policies, and of what is rebuilt from one; read without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.errors import alternatives
from rlhf_lines.merge.schedules import FALLING, GROWING, schedules_without_effect
from rlhf_lines.merge.spec import MergeSpec


@dataclass
class BasisConfig:
    """Which policies to keep together, and how closely."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders, three or more."})
    output_dir: str = field(metadata={"help": "The folder to make."})
    components: int | None = field(
        default=None,
        metadata={"help": "Directions at every position; if not given, as many as still save bytes."},
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Of the basis: float16, bfloat16, float32, float64; the adapters' if not given."},
    )
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The policies were trained on this very SFT model under another name: its Hub id, a moved folder."
        },
    )

    def __post_init__(self) -> None:
        read_fields(self)
        if self.components is not None and self.components < 1:
            raise ValueError(f"components is {self.components}, expected at least 1")


@dataclass
class RebuildConfig:
    """Which policy or mix to rebuild from a basis, as an adapter."""

    basis: str = field(metadata={"help": "A folder that rlhf-lines basis made."})
    weights: list[float] = field(
        metadata={"help": "One number per policy of the basis, in its order: 0 1 0 is the second, others are a mix."}
    )
    output_dir: str = field(metadata={"help": "The folder to make."})
    sft_model: str | None = field(
        default=None, metadata={"help": "Where the SFT model of the basis is now, if it has moved."}
    )
    alpha: float = field(default=1.0, metadata={"help": "LiNeS factor of the first layer."})
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last layer is more than alpha."})
    schedule: str = field(
        default="linear",
        metadata={"help": f"How the factor grows: {alternatives(GROWING)}; or falls: {alternatives(FALLING)}."},
    )
    rank: int | None = field(
        default=None, metadata={"help": "Truncate the adapter to this rank, and say what that loses."}
    )
    dtype: str | None = field(default=None, metadata={"help": "Of the written factors; float32 if not given."})

    def __post_init__(self) -> None:
        read_fields(self)
        MergeSpec("linear", self.weights, self.alpha, self.beta, self.schedule)

    @property
    def without_effect(self) -> list[str]:
        """Sentences on what is given and has no effect."""
        return list(schedules_without_effect([(self.beta, self.schedule)]))


BASIS = (RunConfig, BasisConfig)
REBUILD = (RunConfig, RebuildConfig)
