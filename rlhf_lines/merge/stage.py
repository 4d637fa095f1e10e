"""Stage ``merge``: one merged policy, as an adapter or as a dense checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lines.artifact import refuse_existing
from rlhf_lines.config import RunConfig
from rlhf_lines.merge.export import MERGE_RECORD, merge_policies
from rlhf_lines.merge.hub import check_hub, upload
from rlhf_lines.merge.repeat import check_repeat
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.models import local_folder


@dataclass
class MergeConfig:
    """What to merge, how, and what to write."""

    sft_model: str = field(metadata={"help": "The SFT model that all policies were trained from."})
    policies: list[str] = field(metadata={"help": "PEFT folders or dense checkpoints."})
    weights: list[float] = field(metadata={"help": "One number per policy; a rewarded soup's sum to 1."})
    save: str = field(metadata={"help": "adapter (exact, its rank is the sum of the ranks) or dense."})
    output_dir: str = field(metadata={"help": "The folder to make."})
    rule: str = field(default="linear", metadata={"help": "How residuals are combined: linear or sum."})
    rule_options: str | None = field(default=None, metadata={"help": "Options of the rule, as JSON."})
    alpha: float = field(default=1.0, metadata={"help": "LiNeS factor of the first block."})
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last block is more than alpha."})
    schedule: str = field(default="linear", metadata={"help": "How the factor grows from block to block."})
    dtype: str | None = field(
        default=None, metadata={"help": "Of the written weights; that of the SFT model if not given."}
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

    def spec(self) -> MergeSpec:
        """Return the merge as a value."""
        options = self.rule_options or {}
        if isinstance(options, str):
            try:
                options = json.loads(options)
            except json.JSONDecodeError as error:
                raise ValueError(f"rule_options {options!r} is not JSON ({error.msg} at {error.pos})") from error
        return MergeSpec(self.rule, tuple(self.weights), self.alpha, self.beta, self.schedule, options)


CONFIGS = (RunConfig, MergeConfig)


def run(run_config: RunConfig, config: MergeConfig, given: dict) -> Path:
    """Write the merged policy, upload it if asked to, and return its folder; see ``merge_policies``."""
    if config.plan:
        raise ValueError("plan is for the command: rlhf-lines merge --plan, or rlhf-lines plan --config FILE")
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    if run_config.resume and (Path(config.output_dir) / MERGE_RECORD).is_file():
        _check_same_merge(config)
        folder = Path(config.output_dir)
    else:
        folder = _merge(run_config, config)
    if config.push_to_hub:
        upload(folder, config.hub_model_id, private=config.hub_private_repo)
    return folder


def _merge(run_config: RunConfig, config: MergeConfig) -> Path:
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)  # before gigabytes are hashed
    sft = local_folder(config.sft_model, what="SFT model")
    policies = [local_folder(policy, what="policy") for policy in config.policies]
    return merge_policies(
        sft,
        policies,
        config.spec(),
        save=config.save,
        output_dir=config.output_dir,
        dtype=config.dtype,
        overwrite=run_config.overwrite,
        warnings=check_repeat(config.repeats, sft, policies) if config.repeats else (),
    )


def _check_same_merge(config: MergeConfig) -> None:
    """Raise ValueError when the folder to be kept holds another merge."""
    made = json.loads((Path(config.output_dir) / MERGE_RECORD).read_text())
    asked = {
        "spec": config.spec().to_dict(),
        "save": config.save,
        "sft_model": str(local_folder(config.sft_model, what="SFT model")),
        "policies": [str(local_folder(policy, what="policy")) for policy in config.policies],
        "dtype": config.dtype or made["dtype"],
    }
    made["policies"] = [policy["path"] for policy in made["policies"]]
    for key, value in asked.items():
        if made[key] != value:
            raise ValueError(
                f"output_dir {config.output_dir} was made with {key} {made[key]}, now it is {value}: choose another "
                "folder, or replace it with --overwrite in place of --resume"
            )
