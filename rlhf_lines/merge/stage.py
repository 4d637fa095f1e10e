"""Stage ``merge``: one merged policy, as an adapter or as a dense checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lines.config import RunConfig
from rlhf_lines.merge.export import MERGE_RECORD, merge_policies
from rlhf_lines.merge.soups import uniform_soup
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.trainer_state import checkpoint_weights
from rlhf_lines.models import local_folder
from rlhf_lines.problems import Problems


@dataclass
class MergeConfig:
    """What to merge, how, and what to write."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders or dense checkpoints."})
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
            "help": "How residuals are combined: linear or sum; for comparison with other codes, on adapters: "
            "factor_average or peft_linear."
        },
    )
    rule_options: str | None = field(default=None, metadata={"help": "Options of the rule, as JSON."})
    alpha: float = field(default=1.0, metadata={"help": "LiNeS factor of the first block."})
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last block is more than alpha."})
    schedule: str = field(default="linear", metadata={"help": "How the factor grows from block to block."})
    dtype: str | None = field(
        default=None, metadata={"help": "Of the written weights; that of the SFT model if not given."}
    )

    def spec(self) -> MergeSpec:
        """Return the merge as a value."""
        options = self.rule_options or {}
        if isinstance(options, str):
            try:
                options = json.loads(options)
            except json.JSONDecodeError as error:
                raise ValueError(f"rule_options {options!r} is not JSON ({error.msg} at {error.pos})") from error
        return MergeSpec(self.rule, self._weights(), self.alpha, self.beta, self.schedule, options)

    def folders(self) -> tuple[Path, list[Path]]:
        """Return the folders of the SFT model and of the policies; all that are missing are told at once."""
        problems = Problems()
        found = []
        for name, what in ((self.sft_model, "SFT model"), *((policy, "policy") for policy in self.policies)):
            with problems.collect():
                found.append(local_folder(name, what=what))
        problems.check()
        return found[0], found[1:]

    def _weights(self) -> tuple[float, ...]:
        if self.weights_by is None:
            if self.power is not None:
                raise ValueError(f"power is {self.power}, but it belongs to weights_by; give --weights_by step or loss")
            return uniform_soup(len(self.policies)).weights if self.weights is None else tuple(self.weights)
        if self.weights is not None:
            raise ValueError("weights and weights_by are both given; keep one of them")
        _, folders = self.folders()
        return checkpoint_weights(folders, self.weights_by, power=1.0 if self.power is None else self.power)


CONFIGS = (RunConfig, MergeConfig)


def run(run_config: RunConfig, config: MergeConfig, given: dict) -> Path:
    """Write the merged policy and return its folder; see ``merge_policies``."""
    if run_config.resume and (Path(config.output_dir) / MERGE_RECORD).is_file():
        _check_same_merge(config)
        return Path(config.output_dir)
    sft, policies = config.folders()
    return merge_policies(
        sft,
        policies,
        config.spec(),
        save=config.save,
        output_dir=config.output_dir,
        rank=config.rank,
        dtype=config.dtype,
        overwrite=run_config.overwrite,
    )


def _check_same_merge(config: MergeConfig) -> None:
    """Raise ValueError when the folder to be kept holds another merge."""
    made = json.loads((Path(config.output_dir) / MERGE_RECORD).read_text())
    sft, policies = config.folders()
    asked = {
        "spec": config.spec().to_dict(),
        "save": config.save,
        "sft_model": str(sft),
        "policies": [str(policy) for policy in policies],
        "dtype": config.dtype or made["dtype"],
        "rank": config.rank,
    }
    made["rank"] = made.get("truncation", {}).get("rank")
    made["policies"] = [policy["path"] for policy in made["policies"]]
    for key, value in asked.items():
        if made[key] != value:
            raise ValueError(
                f"output_dir {config.output_dir} was made with {key} {made[key]}, now it is {value}: choose another "
                "folder, or replace it with --overwrite in place of --resume"
            )
