"""What the two stages share: their inputs, checked before a model is loaded, and how many sums fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_lines import distributed
from rlhf_lines.artifact import refuse_existing, refuse_replacing
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.limits import check_prompts, check_writes
from rlhf_lines.merge.inputs.adapter import is_adapter
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.merge.inputs.fingerprints import (
    Fingerprint,
    config_sha256,
    model_fingerprint,
    policy_fingerprint,
    rows_fingerprint,
)
from rlhf_lines.merge.inputs.provenance import called, weights_sha256
from rlhf_lines.models import load_config, load_tokenizer, local_folder
from rlhf_lines.statistics.config import StatisticsConfig
from rlhf_lines.statistics.policy import Policy, check_policy, load_policy
from rlhf_lines.statistics.samples import Sample, read_prompts, sample_completions, samples_sha256


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a stage reads.

    Attributes:
        config: of which policy, on which texts.
        sft: the folder of the SFT model.
        policy: the folder of the policy.
        tokenizer: the SFT model's.
        prompts: token ids of each, the shortest first.
    """

    config: StatisticsConfig
    sft: Path
    policy: Path
    tokenizer: object
    prompts: list[tuple[int, ...]]

    @property
    def parameters(self) -> str:
        """`adapted` or `all`."""
        return self.config.parameters or ("adapted" if is_adapter(self.policy) else "all")

    def tell_few(self, dataset: str) -> None:
        """Log where the data has fewer prompts than asked for."""
        found, asked = len(self.prompts), self.config.num_prompts
        if found < asked:
            logger.warning("%s has %d %s prompts, not %d", dataset, found, self.config.split, asked)

    def load_policy(self) -> Policy:
        """The policy as a dense model."""
        return load_policy(self.sft, self.policy, dtype=self.config.dtype)

    def sample(self, policy: Policy, description: str) -> list[Sample]:
        """One completion of the policy for every prompt."""
        return sample_completions(
            policy.model,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            description=description,
        )

    def record(self, policy: Policy, samples: list[Sample]) -> dict:
        """The facts that tell what the statistics are of."""
        return {
            "seed": self.config.seed,
            "sft_model": self.config.sft_model,
            "sft_sha256": checkpoint_sha256(self.sft),
            "policy": self.config.policy,
            "policy_sha256": weights_sha256(self.policy),
            "policy_config_sha256": config_sha256(self.policy),
            "inputs_sha256": _fingerprints(self.config, self.sft, self.policy, self.prompts),
            "parameters": self.parameters,
            "dtype": self.config.dtype,
            "lost_residual": policy.lost and asdict(policy.lost),
            "samples_sha256": samples_sha256(samples),
            "sequences": len(samples),
            "prompt_tokens": sum(len(sample.prompt) for sample in samples),
            "completion_tokens": sum(len(sample.completion) for sample in samples),
        }


def read_inputs(run_config: RunConfig, data_config: DataConfig, config: StatisticsConfig, verb: str) -> Inputs:
    """What the stage reads, with the settings of the data and of the run applied.

    Raises:
        FileNotFoundError: a model, the policy or the data does not exist.
        FileExistsError: `output_dir` exists, or replacing it would delete an input.
        ValueError: several processes were started, the policy belongs to another SFT model, or the model cannot read
            or complete a prompt.
    """
    if (processes := distributed.count()) > 1:
        raise ValueError(f"{verb} runs in one process, but {processes} were started: leave out the launcher")
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)
    sft = local_folder(config.sft_model, what="SFT model")
    policy = local_folder(config.policy, what="policy")
    refuse_replacing(config.output_dir, [sft, policy, *data_config.sources])
    for warning in check_policy(sft, policy, sft_renamed=config.sft_renamed):
        logger.warning("%s", warning)
    tokenizer = load_tokenizer(sft)
    prompts = read_prompts(data_config, config.split, config.num_prompts, tokenizer)
    of_model = load_config(sft)
    check_writes(of_model, tokenizer)
    check_prompts(of_model, prompts, dataset=data_config.dataset_name, max_new_tokens=config.max_new_tokens)
    return Inputs(config, sft, policy, tokenizer, prompts)


def fingerprints(data_config: DataConfig, config: StatisticsConfig) -> dict[str, Fingerprint]:
    """What a stage with these settings would read, as its record holds it under `inputs_sha256`."""
    sft, policy = local_folder(config.sft_model, what="SFT model"), local_folder(config.policy, what="policy")
    prompts = read_prompts(data_config, config.split, config.num_prompts, load_tokenizer(sft))
    return _fingerprints(config, sft, policy, prompts)


def _fingerprints(
    config: StatisticsConfig, sft: Path, policy: Path, prompts: list[tuple[int, ...]]
) -> dict[str, Fingerprint]:
    return {
        f"SFT model {called(config.sft_model)}": model_fingerprint(sft),
        f"policy {called(config.policy)}": policy_fingerprint(policy),
        f"the {config.split} split of the data": rows_fingerprint({"token_ids": ids} for ids in prompts),
    }


def in_groups(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The names in their order, in as few consecutive groups as there can be of at most `limit` bytes each.

    What is summed up for one group is in memory during one pass over the samples.

    >>> in_groups({"a": 3, "b": 2, "c": 4}, 5)
    [['a', 'b'], ['c']]

    Raises:
        ValueError: one name alone is larger than the limit.
    """
    groups: list[list[str]] = []
    used = limit
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(
                f"max_memory is {limit:,} bytes, but what is summed up for {name!r} takes {size:,}: give more"
            )
        if used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
