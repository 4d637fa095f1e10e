"""What learning reads, checked before its folder is made."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reward_models import RewardModel
from rlhf_lines.artifact import refuse_replacing
from rlhf_lines.completions import stop_problems
from rlhf_lines.data.config import DataConfig, PromptDataConfig, sources
from rlhf_lines.errors import Problems
from rlhf_lines.learn.config import FROM_DEMONSTRATIONS, LearnConfig
from rlhf_lines.learn.counts import generation
from rlhf_lines.learn.demonstrations import read_demonstrations
from rlhf_lines.learn.evolution import check_generations
from rlhf_lines.limits import check_prompts, check_writes
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.fingerprints import Fingerprint, rows_fingerprint
from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.models import load_config, load_tokenizer, local_folder
from rlhf_lines.pareto.objectives import check_objectives, check_score_names
from rlhf_lines.scoring import Asked
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.engines.multi_lora import check_mixable
from rlhf_lines.sweep.engines.protocol import Pair
from rlhf_lines.sweep.forgetting import ForgettingText, check_forgetting_texts, load_forgetting_texts
from rlhf_lines.sweep.inputs import (
    REWARD_BATCH,
    check_4bit,
    check_count,
    distinct_prompts,
    fingerprints_of_models,
    prompt_contents,
    tell_unused_drawing,
)
from rlhf_lines.task_rewards import load_reward_models, reward_folders


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
Prompts = dict[str, dict[str, Asked]]


@dataclass(frozen=True)
class Inputs:
    """What learning reads.

    Attributes:
        sft: folder of the SFT model.
        adapters: of the policies.
        reward_models: that score.
        objectives: names of the rewards that count.
        tokenizer: the SFT model's.
        prompts: of `train` and `validation`, from what the policy reads to what reward models may be shown.
        num_layers: layers of the SFT model.
        demonstrations: of `train`, for methods that learn from such.
        forgetting: texts outside the task with their tokens, where they limit what is chosen.
    """

    sft: Path
    adapters: list[Adapter]
    reward_models: list[RewardModel]
    objectives: list[str]
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    num_layers: int
    demonstrations: list[Pair]
    forgetting: list[ForgettingText]


def read_inputs(data_config: DataConfig, config: LearnConfig) -> Inputs:
    """The inputs that the configs name.

    Raises:
        FileNotFoundError: a model, policy, reward model or text does not exist.
        FileExistsError: replacing `output_dir` would delete an input.
        ValueError: a policy belongs to another SFT model, a prompt is too long, or there are too few candidates.
    """
    sft = local_folder(config.sft_model, what="SFT model")
    policies = [local_folder(policy, what="policy") for policy in config.policies]
    files = [*data_config.sources, *sources(config.control)]
    refuse_replacing(config.output_dir, [sft, *policies, *reward_folders(config.rewards), *files])
    adapters = load_policies(policies, sft, sft_renamed=config.sft_renamed, quantise=config.quantized)
    of_model = load_config(sft)
    if config.load_in_4bit:
        check_4bit(sft)
    check_mixable(adapters)
    reward_models = load_reward_models(config.rewards, batch_size=config.batch_size or REWARD_BATCH)
    names = [model.name for model in reward_models]
    check_score_names(names)
    objectives = config.objectives or names
    check_objectives(objectives, names)
    tokenizer = load_tokenizer(sft)
    Problems(stop_problems(tokenizer, config.stop)).check()
    tell_unused_drawing(sft, config)
    prompts = read_prompts(data_config, config, tokenizer)
    for split, texts in prompts.items():
        asked = {"train": config.train_prompts, "validation": config.validation_prompts}[split]
        if few := check_count(len(texts), asked, split, data_config.dataset_name):
            logger.warning("%s", few)
    demonstrations = demonstrations_for(data_config, config, tokenizer)
    if config.method in FROM_DEMONSTRATIONS and len(demonstrations) < config.train_prompts:
        found, asked = len(demonstrations), config.train_prompts
        logger.warning("%s has %d train demonstrations, not %d", data_config.dataset_name, found, asked)
    forgetting = texts_for(config, tokenizer)
    check_writes(of_model, tokenizer)
    token_ids = [tokenizer(text)["input_ids"] for texts in prompts.values() for text in texts]
    token_ids += [before for before, _ in demonstrations]
    check_prompts(of_model, token_ids, dataset=data_config.dataset_name, max_new_tokens=config.max_new_tokens)
    check_forgetting_texts(of_model, forgetting, config.control_tokens)
    with Checkpoint(sft) as checkpoint:
        num_layers = checkpoint.num_layers([module for adapter in adapters for module in adapter.modules])
    if config.method == "evolution":
        check_generations(config.num_candidates, generation(config, num_layers))
    return Inputs(sft, adapters, reward_models, objectives, tokenizer, prompts, num_layers, demonstrations, forgetting)


def read_prompts(data_config: DataConfig, config: LearnConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts of both splits."""
    counts = {"train": config.train_prompts, "validation": config.validation_prompts}
    return {
        split: distinct_prompts(data_config.load("prompts", split, tokenizer), count) for split, count in counts.items()
    }


def demonstrations_for(
    data_config: PromptDataConfig, config: LearnConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Pair]:
    """As many demonstrations as train prompts, of a method that learns from such."""
    if config.method not in FROM_DEMONSTRATIONS:
        return []
    return read_demonstrations(data_config, config.train_prompts, config.max_new_tokens, tokenizer)


def texts_for(config: LearnConfig, tokenizer: PreTrainedTokenizerBase) -> list[ForgettingText]:
    """The texts outside the task, where they limit what is chosen."""
    if not config.control:
        return []
    return load_forgetting_texts(config.control, config.control_texts, config.control_tokens, tokenizer)


def fingerprints(
    data_config: DataConfig,
    config: LearnConfig,
    prompts: Prompts,
    demonstrations: Sequence[Pair],
    forgetting: Sequence[ForgettingText],
) -> dict[str, Fingerprint]:
    """What learning with these settings reads, as hashes by the name of the input."""
    policies = [
        (("policy", number, name), local_folder(name, what="policy"))
        for number, name in enumerate(config.policies, start=1)
    ]
    sft = local_folder(config.sft_model, what="SFT model")
    found = fingerprints_of_models(config.sft_model, sft, policies, config.rewards)
    for split, texts in prompts.items():
        rows = ({"prompt": prompt, "shown": shown} for prompt, shown in prompt_contents(texts).items())
        found[f"{split} split of {called(data_config.dataset_name)}"] = rows_fingerprint(rows)
    if demonstrations:
        rows = ({"prompt": before, "completion": after} for before, after in demonstrations)
        found[f"demonstrations of {called(data_config.dataset_name)}"] = rows_fingerprint(rows)
    if forgetting:
        found[f"control {called(config.control)}"] = rows_fingerprint({"text": one.text} for one in forgetting)
    return found
