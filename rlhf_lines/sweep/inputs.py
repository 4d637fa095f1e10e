"""What a sweep reads, checked before its folder is made."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reward_models import RewardModel
from rlhf_lines import skeleton
from rlhf_lines.artifact import refuse_replacing
from rlhf_lines.completions import stop_problems
from rlhf_lines.data.config import DataConfig, sources
from rlhf_lines.errors import Problems, about
from rlhf_lines.limits import check_prompts, check_writes
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256
from rlhf_lines.merge.inputs.fingerprints import (
    Fingerprint,
    model_fingerprint,
    policy_fingerprint,
    reward_fingerprint,
    reward_identity,
)
from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.merge.inputs.statistics_files import statistics_sha256
from rlhf_lines.merge.rules import RULES, profile_of
from rlhf_lines.models import load_config, load_tokenizer, local_folder
from rlhf_lines.pareto.objectives import check_minimum, check_objectives, check_reference_point, check_score_names
from rlhf_lines.redaction import without_secrets
from rlhf_lines.scoring import Asked
from rlhf_lines.sha256 import sha256_of
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.choices import profile_problems
from rlhf_lines.sweep.completion_config import CompletionConfig
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines import check_engine
from rlhf_lines.sweep.engines.multi_lora import check_mixable
from rlhf_lines.sweep.forgetting import ForgettingText, check_forgetting_texts, load_forgetting_texts
from rlhf_lines.task_rewards import RewardEntry, load_reward_models, reward_folders


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHANGEABLE = (
    "output_dir",
    "batch_size",
    "rewards",  # compared by what their scores depend on
    "sft_renamed",
    "reuse",
    "report_to",
)  # what a resumed sweep may have otherwise
GENERATION_CONFIG = "generation_config.json"
# What it may say of how tokens are drawn, and the value that changes nothing.
DRAWING = {
    **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "top_h": None},
    **{"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "guidance_scale": 1.0, "num_beams": 1, "penalty_alpha": 0.0, "min_new_tokens": 0},
    **{"bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None},
    **{"exponential_decay_length_penalty": None, "forced_bos_token_id": None, "forced_eos_token_id": None},
    "stop_strings": None,
}
REWARD_BATCH = 32  # texts in one pass of a reward model, where batch_size is left out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a sweep reads.

    Attributes:
        sft: folder of the SFT model.
        adapters: of the policies, then of the MORLHF runs, then of the policies of further sets.
        reward_models: that score.
        objectives: names of the rewards that fronts are made of.
        tokenizer: the SFT model's.
        prompts: by split, from what the policy reads to what reward models may be shown; of validation only where there
            is something to choose.
        forgetting: texts outside the task with their tokens.
        num_layers: layers of the SFT model.
    """

    sft: Path
    adapters: list[Adapter]
    reward_models: list[RewardModel]
    objectives: list[str]
    tokenizer: PreTrainedTokenizerBase
    prompts: dict[str, dict[str, Asked]]
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
        ValueError: the engine cannot work here, a policy belongs to another SFT model, or there are too few or too long
            texts.
    """
    check_engine(config)
    sft, policies = _folders(config)
    statistics = itertools.chain.from_iterable(entry.statistics for entry in config.groups)
    routers = filter(None, (entry.router for entry in config.groups))
    files = [*data_config.sources, *sources(config.control)]
    read = [sft, *policies, *statistics, *routers, *reward_folders(config.rewards), *files]
    refuse_replacing(config.output_dir, read)
    adapters = load_policies(policies, sft, sft_renamed=config.sft_renamed, quantise=config.quantized)
    if config.load_in_4bit:
        check_4bit(sft)
    if config.engine == "local":
        check_mixable(adapters)
    reward_models = load_reward_models(config.rewards, batch_size=config.batch_size or REWARD_BATCH)
    objectives = checked_objectives(config, [model.name for model in reward_models])
    tokenizer = load_tokenizer(sft)
    Problems(stop_problems(tokenizer, config.stop)).check()
    tell_unused_drawing(sft, config)
    prompts, forgetting = _read_texts(data_config, config, tokenizer)
    with Checkpoint(sft) as checkpoint:
        num_layers = checkpoint.num_layers([module for adapter in adapters for module in adapter.modules])
    Problems(profile_problems(config.groups, num_layers=num_layers)).check()
    for split, texts in prompts.items():
        if few := check_count(len(texts), prompt_counts(config)[split], split, data_config.dataset_name):
            logger.warning("%s", few)
    inputs = Inputs(sft, adapters, reward_models, objectives, tokenizer, prompts, forgetting, num_layers)
    _check_lengths(inputs, config, data_config.dataset_name)
    return inputs


def check_4bit(sft: Path) -> None:
    """Stop where the SFT model cannot be loaded in 4 bits on this machine.

    Raises:
        ValueError: there is no GPU, and the kernels for CPUs do not take its sizes.
    """
    if not torch.cuda.is_available():
        skeleton.check_4bit_on_cpu(skeleton.causal_lm(load_config(sft)))


def tell_unused_drawing(sft: Path, config: CompletionConfig) -> None:
    """Warn of settings in the SFT model's generation_config.json by which completions are not drawn.

    Args:
        sft: its folder.
        config: by which they are; a setting that is the same in both is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if not (sft / GENERATION_CONFIG).is_file():
        return
    with about(f"{GENERATION_CONFIG} of {sft} cannot be read"):
        given = json.loads((sft / GENERATION_CONFIG).read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise ValueError(f"{GENERATION_CONFIG} of {sft} cannot be read: it is {given!r}, expected a mapping")
    used = {name: getattr(config, name, None) for name in DRAWING}
    unused = [
        f"{name} {given[name]}"
        for name, neutral in DRAWING.items()
        if given.get(name) not in (None, [], neutral, used[name])
    ]
    if unused:
        logger.warning(
            "completions are drawn by the settings of this run alone, which its KL is of: %s in %s of the SFT model "
            "%s no effect",
            ", ".join(unused),
            GENERATION_CONFIG,
            "have" if len(unused) > 1 else "has",
        )


def facts(inputs: Inputs, data_config: DataConfig, config: SweepConfig) -> dict:
    """What a resumed run must share with the one that was stopped."""
    settings = without_secrets({key: value for key, value in config.given.items() if key not in CHANGEABLE})
    return {
        **settings,
        **config.sampling,
        "dataset_name": without_secrets(data_config.dataset_name),
        "reward_names": inputs.rewards,
        "objectives": inputs.objectives,
        "reference_point": config.reference_point or None,
        "minimum": config.minimum,  # the same from a file and as JSON
        "reward_models": {
            name: reward_identity(entry) for name, entry in zip(inputs.rewards, config.rewards, strict=True)
        },
        "prompts_sha256": _sha256({split: prompt_contents(prompts) for split, prompts in inputs.prompts.items()}),
        "control_sha256": _sha256([text for text, _ in inputs.forgetting]),
        "sft_sha256": checkpoint_sha256(inputs.sft),
        "policies_sha256": [sha256_of([Path(adapter.path) / WEIGHTS_FILE]) for adapter in inputs.adapters],
        "statistics_sha256": {  # all groups of a rule have the same
            entry.rule: [statistics_sha256(RULES[entry.rule].statistics, path) for path in entry.statistics]
            for entry in config.groups
        },
        "inputs_sha256": _fingerprints(
            data_config.dataset_name,
            config,
            inputs.sft,
            [adapter.path for adapter in inputs.adapters],
            inputs.prompts,
            inputs.forgetting,
        ),
    }


def fingerprints(data_config: DataConfig, config: SweepConfig) -> dict[str, Fingerprint]:
    """What a sweep with these settings would read, as `facts` has it under `inputs_sha256`."""
    sft, policies = _folders(config)
    texts = _read_texts(data_config, config, load_tokenizer(sft))
    return _fingerprints(data_config.dataset_name, config, sft, policies, *texts)


def _folders(config: SweepConfig) -> tuple[Path, list[Path]]:
    """The folder of the SFT model, and those of all policies."""
    sft = local_folder(config.sft_model, what="SFT model")
    return sft, [local_folder(policy, what=what) for what, _, policy in _numbered(config)]


def _numbered(config: SweepConfig) -> list[tuple[str, int, str]]:
    return numbered_policies(config.policies, config.morlhf, config.listed_policies)


def numbered_policies(
    policies: Sequence[str], morlhf: Sequence[str], listed: Sequence[str]
) -> list[tuple[str, int, str]]:
    """What every policy is, its number among those, and its name, in the order of the specs' weights.

    Args:
        policies: those that are merged.
        morlhf: the MORLHF runs.
        listed: all, those of further sets behind the others.
    """
    named = [("policy", policies), ("MORLHF run", morlhf)]
    named.append(("policy of a set", listed[len(policies) + len(morlhf) :]))
    return [(what, number, name) for what, names in named for number, name in enumerate(names, start=1)]


def checked_objectives(config: SweepConfig, rewards: Sequence[str]) -> list[str]:
    """The names of the rewards that fronts are made of.

    Raises:
        ValueError: a reward has a name that is taken, or what the config says of rewards by name does not fit them.
    """
    check_score_names(rewards)
    objectives = config.objectives or list(rewards)
    check_objectives(objectives, rewards)
    check_minimum(config.minimum, rewards)
    if config.reference_point:
        check_reference_point(config.reference_point, objectives)
    return objectives


def prompt_counts(config: SweepConfig) -> dict[str, int]:
    """How many prompts are read, by split."""
    counts = {"validation": config.validation_prompts, "test": config.test_prompts}
    if not config.chooses:
        del counts["validation"]
    return counts


def _read_texts(
    data_config: DataConfig, config: SweepConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, dict[str, Asked]], list[ForgettingText]]:
    """The prompts by split, and the texts outside the task."""
    prompts = {
        split: distinct_prompts(data_config.load("prompts", split, tokenizer), count)
        for split, count in prompt_counts(config).items()
    }
    if not config.control:
        return prompts, []
    return prompts, load_forgetting_texts(config.control, config.control_texts, config.control_tokens, tokenizer)


def _fingerprints(
    dataset: str,
    config: SweepConfig,
    sft: Path,
    policies: Sequence[str | Path],
    prompts: Mapping[str, Mapping[str, Asked]],
    forgetting: Sequence[ForgettingText],
) -> dict[str, Fingerprint]:
    found = fingerprints_of_models(config.sft_model, sft, zip(_numbered(config), policies, strict=True), config.rewards)
    for entry in config.groups:
        for number, path in enumerate(entry.statistics, start=1):
            sha256 = statistics_sha256(RULES[entry.rule].statistics, path)
            found[f"statistics {number} of group {entry.name} ({called(path)})"] = {"file": sha256}
    for entry in config.groups:
        if profile := profile_of(entry.rule, entry.options):
            found[f"factors of group {entry.name}"] = {"numbers": _sha256(profile.to_options())}
        if entry.router is not None:
            found[f"router of group {entry.name} ({called(entry.router)})"] = {"numbers": entry.options["router"]}
    for split, texts in prompts.items():
        found[f"{split} split of {called(dataset)}"] = {"rows": _sha256(prompt_contents(texts))}
    if forgetting:
        found[f"control {called(config.control)}"] = {"rows": _sha256([text for text, _ in forgetting])}
    return found


def fingerprints_of_models(
    sft_model: str,
    sft: Path,
    policies: Iterable[tuple[tuple[str, int, str], str | Path]],
    rewards: Sequence[RewardEntry],
) -> dict[str, Fingerprint]:
    """Of all models of a run, by what people read.

    Args:
        sft_model: name of the SFT model.
        sft: its folder.
        policies: what each is, its number among those and its name; and its folder.
        rewards: that score.
    """
    found = {f"SFT model {called(sft_model)}": model_fingerprint(sft)}
    for (what, number, name), folder in policies:
        found[f"{what} {number} ({called(name)})"] = policy_fingerprint(folder)
    for number, reward in enumerate(rewards, start=1):
        found[f"reward model {number} ({called(reward.model)})"] = reward_fingerprint(reward.model)
    return found


def check_count(found: int, asked: int, split: str, dataset: str) -> str | None:
    """What to tell where a split has fewer different prompts than asked for, or None.

    Raises:
        ValueError: it has a single one.
    """
    if found < 2:
        raise ValueError(
            f"dataset {dataset} has 1 prompt in its {split} split, expected at least 2: intervals are a bootstrap over "
            "prompts; add prompts, or hold out more of them (test_size)"
        )
    return f"{dataset} has {found:,} different {split} prompts, not {asked:,}" if found < asked else None


def _check_lengths(inputs: Inputs, config: SweepConfig, dataset: str) -> None:
    """Stop where a text has no token, or more than the model reads, or one that it does not know."""
    of_model = load_config(inputs.sft)
    prompts = [inputs.tokenizer(text)["input_ids"] for texts in inputs.prompts.values() for text in texts]
    check_writes(of_model, inputs.tokenizer)
    check_prompts(of_model, prompts, dataset=dataset, max_new_tokens=config.max_new_tokens)
    check_forgetting_texts(of_model, inputs.forgetting, config.control_tokens)


def prompt_contents(prompts: Mapping[str, Asked]) -> dict[str, object]:
    """What the scores depend on: the prompts, with what reward models are shown and functions may ask for."""
    return {
        prompt: [asked.text, dict(asked.columns), asked.blank] if asked.columns or asked.blank else asked.text
        for prompt, asked in prompts.items()
    }


def distinct_prompts(rows: Iterable[dict], count: int) -> dict[str, Asked]:
    """The first so many prompts, each once and in their order, with what reward models may be shown of them.

    A prompt is one unit of the bootstrap.
    """
    prompts: dict[str, Asked] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], Asked.of(row))
    return dict(itertools.islice(prompts.items(), count))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
