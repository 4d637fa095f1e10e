"""What a sweep reads, checked before its folder is made."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reward_models import RewardModel
from rlhf_lines.artifact import refuse_replacing
from rlhf_lines.data.config import DataConfig
from rlhf_lines.limits import check_prompts, check_writes, longest_text, read_config
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256, sha256_of
from rlhf_lines.merge.inputs.provenance import load_adapters
from rlhf_lines.merge.inputs.statistics_files import statistics_sha256
from rlhf_lines.merge.rules import RULES
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.multi_lora import check_mixable
from rlhf_lines.sweep.forgetting import ForgettingText, load_forgetting_texts
from rlhf_lines.task_rewards import load_reward_models


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHANGEABLE = ("output_dir", "batch_size", "vllm")  # what a resumed sweep may have otherwise
REWARD_BATCH = 32  # texts in one pass of a reward model, where batch_size is left out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a sweep reads.

    Attributes:
        sft: folder of the SFT model.
        adapters: of the policies, then of the MORLHF runs.
        reward_models: that score.
        tokenizer: the SFT model's.
        prompts: by split, from what the policy reads to what reward models are shown; of validation only where there
            is something to choose.
        forgetting: texts outside the task with their tokens.
        num_layers: layers of the SFT model.
    """

    sft: Path
    adapters: list[Adapter]
    reward_models: list[RewardModel]
    tokenizer: PreTrainedTokenizerBase
    prompts: dict[str, dict[str, str]]
    forgetting: list[ForgettingText]
    num_layers: int

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards."""
        return [model.name for model in self.reward_models]


def read_inputs(data_config: DataConfig, config: SweepConfig) -> Inputs:
    """The inputs that the configs name.

    Raises:
        FileNotFoundError: a model, policy, reward model or text does not exist.
        FileExistsError: the output folder would replace one of them.
        ValueError: a policy belongs to another SFT model, or there are too few or too long texts.
    """
    sft = local_folder(config.sft_model, what="SFT model")
    policies = [local_folder(policy, what="policy") for policy in config.policies]
    policies += [local_folder(policy, what="MORLHF run") for policy in config.morlhf]
    adapters = load_adapters(policies, sft)
    if config.engine == "local":
        check_mixable(adapters)
    reward_models = load_reward_models(config.rewards, batch_size=config.batch_size or REWARD_BATCH)
    tokenizer = load_tokenizer(sft)
    counts = {"validation": config.validation_prompts, "test": config.test_prompts}
    if len(config.candidates) == 1:  # nothing is chosen
        del counts["validation"]
    prompts = {
        split: _distinct(data_config.load("prompts", split, tokenizer), count) for split, count in counts.items()
    }
    forgetting = (
        load_forgetting_texts(config.control, config.control_texts, config.control_tokens, tokenizer)
        if config.control
        else []
    )
    with Checkpoint(sft) as checkpoint:
        num_layers = checkpoint.num_layers()
    statistics = itertools.chain.from_iterable(entry.statistics for entry in config.groups)
    refuse_replacing(config.output_dir, [sft, *policies, *statistics])
    for split, texts in prompts.items():
        _check_count(len(texts), counts[split], split, data_config.dataset_name)
    inputs = Inputs(sft, adapters, reward_models, tokenizer, prompts, forgetting, num_layers)
    _check_lengths(inputs, config, data_config.dataset_name)
    return inputs


def facts(inputs: Inputs, data_config: DataConfig, config: SweepConfig) -> dict:
    """What a resumed run must share with the one that was stopped."""
    settings = {key: value for key, value in config.given.items() if key not in CHANGEABLE}
    return {
        **settings,
        "dataset_name": data_config.dataset_name,
        "reward_names": inputs.rewards,
        "reward_models": {name: entry.identity() for name, entry in zip(inputs.rewards, config.rewards, strict=True)},
        "prompts_sha256": _sha256(inputs.prompts),
        "control_sha256": _sha256([text for text, _ in inputs.forgetting]),
        "sft_sha256": checkpoint_sha256(inputs.sft),
        "policies_sha256": [sha256_of([Path(adapter.path) / WEIGHTS_FILE]) for adapter in inputs.adapters],
        "statistics_sha256": {
            entry.name: [statistics_sha256(RULES[entry.rule].statistics, path) for path in entry.statistics]
            for entry in config.groups
        },
    }


def _check_count(found: int, asked: int, split: str, dataset: str) -> None:
    if found < 2:
        raise ValueError(
            f"dataset {dataset} has 1 prompt in its {split} split, expected at least 2: intervals are a bootstrap over "
            "prompts"
        )
    if found < asked:
        logger.warning("%s has %d different %s prompts, not %d", dataset, found, split, asked)


def _check_lengths(inputs: Inputs, config: SweepConfig, dataset: str) -> None:
    """Stop where a text has no token, or more than the model reads, or one that it does not know."""
    of_model = read_config(inputs.sft)
    prompts = [inputs.tokenizer(text)["input_ids"] for texts in inputs.prompts.values() for text in texts]
    check_writes(of_model, inputs.tokenizer)
    check_prompts(of_model, prompts, dataset=dataset, max_new_tokens=config.max_new_tokens)
    limit = longest_text(of_model)
    longest = max((len(text.token_ids) for text in inputs.forgetting), default=0)
    if limit is not None and longest > limit.tokens:
        raise ValueError(f"control_tokens is {config.control_tokens}, but {limit.reason}")


def _distinct(rows: Iterable[dict], count: int) -> dict[str, str]:
    """The first so many prompts, each once and in their order, with what reward models are shown of them.

    A prompt is one unit of the bootstrap.
    """
    prompts = {row["prompt"]: row["scored_prompt"] for row in rows}
    return dict(itertools.islice(prompts.items(), count))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
