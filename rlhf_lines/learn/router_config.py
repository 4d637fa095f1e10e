"""The settings of learning a router."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lines.config import RunConfig, read_fields


@dataclass
class RouterConfig:
    """From which sweep a router is learned, and among which of its merges it chooses."""

    sweep: str = field(
        metadata={"help": "The folder of a finished sweep, which measured merges on validation prompts."}
    )
    output_dir: str = field(metadata={"help": "The folder to make: router.json, router.safetensors."})
    group: str = field(
        default="lines",
        metadata={
            "help": "Among which merges it chooses: those of this group that have the scaling that the sweep chose for "
            "it: lines, scaled, reversed, or a further group of rule linear; rewarded_soup has none."
        },
    )
    sft_model: str | None = field(
        default=None, metadata={"help": "Where the SFT model of the sweep is now, if it has moved."}
    )

    def __post_init__(self) -> None:
        read_fields(self)


ROUTER = (RunConfig, RouterConfig)
