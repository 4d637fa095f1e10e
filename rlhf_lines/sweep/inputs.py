"""What a sweep reads, and which specs it measures."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path

from rlhf_lines.artifact import refuse_replacing
from rlhf_lines.data.config import DataConfig
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256, sha256_of
from rlhf_lines.merge.inputs.provenance import load_adapters
from rlhf_lines.merge.inputs.statistics_files import statistics_sha256
from rlhf_lines.merge.rules import RULES
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.pareto.surrogate import design
from rlhf_lines.sampling import check_positions
from rlhf_lines.sweep import groups
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.merged_weights import check_merge, measured_alpha
from rlhf_lines.sweep.engines.protocol import Engine
from rlhf_lines.sweep.forgetting import load_control
from rlhf_lines.sweep.groups import LINES, MORLHF, REVERSED, SFT, SOUP, UNIFORM, Weights
from rlhf_lines.task_rewards import load_reward_models


CHANGEABLE = ("output_dir", "batch_size", "vllm")  # what a resumed sweep may have otherwise
REWARD_BATCH = 32  # texts in one pass of a reward model, where batch_size is left out

logger = logging.getLogger(__name__)


class Inputs:
    """What a sweep reads, checked before its folder is made.

    Attributes:
        config: the settings.
        sft: folder of the SFT model.
        policies: folders of the policies.
        morlhf: folders of the MORLHF runs.
        adapters: of the policies, then of the MORLHF runs.
        reward_models: that score.
        tokenizer: the SFT model's.
        prompts: by split, from what the policy reads to what reward models are shown; of validation only where there
            is something to choose.
        control: texts outside the task with their tokens.
        num_layers: blocks of the SFT model.
    """

    def __init__(self, data_config: DataConfig, config: SweepConfig) -> None:
        self.config, self.dataset_name = config, data_config.dataset_name
        self.sft = local_folder(config.sft_model, what="SFT model")
        self.policies = [local_folder(policy, what="policy") for policy in config.policies]
        self.morlhf = [local_folder(policy, what="MORLHF run") for policy in config.morlhf]
        self.adapters: list[Adapter] = load_adapters([*self.policies, *self.morlhf], self.sft)
        self.reward_models = load_reward_models(config.rewards, batch_size=config.batch_size or REWARD_BATCH)
        self.tokenizer = load_tokenizer(self.sft)
        counts = {"validation": config.validation_prompts, "test": config.test_prompts}
        if len(config.candidates) == 1:  # nothing is chosen
            del counts["validation"]
        self.prompts = {
            split: _distinct(data_config.load("prompts", split, self.tokenizer), count)
            for split, count in counts.items()
        }
        self.control = (
            load_control(config.control, config.control_texts, config.control_tokens, self.tokenizer)
            if config.control
            else []
        )
        with Checkpoint(self.sft) as checkpoint:
            self.num_layers = checkpoint.num_layers()
        self._check()

    def _check(self) -> None:
        """Stop where the work would, but before it: the first to need a group is the end of choosing."""
        from transformers import AutoConfig

        statistics = itertools.chain.from_iterable(entry.statistics for entry in self.config.groups)
        refuse_replacing(self.config.output_dir, [self.sft, *self.policies, *self.morlhf, *statistics])
        for split, texts in self.prompts.items():
            if len(texts) < 2:
                raise ValueError(
                    f"dataset {self.dataset_name} has 1 prompt in its {split} split, expected at least 2: intervals "
                    "are a bootstrap over prompts"
                )
            asked = getattr(self.config, f"{split}_prompts")
            if len(texts) < asked:
                logger.warning("%s has %d different %s prompts, not %d", self.dataset_name, len(texts), split, asked)
        of_model = AutoConfig.from_pretrained(self.sft)
        prompts = [self.tokenizer(text)["input_ids"] for texts in self.prompts.values() for text in texts]
        if not all(prompts):
            raise ValueError(
                f"dataset {self.dataset_name} has a prompt without tokens, and the first word of a completion needs "
                "one before it: leave it out, or give the data another prompt_template"
            )
        check_positions(of_model, prompts, self.config.max_new_tokens)
        positions = getattr(of_model.get_text_config(), "max_position_embeddings", None)
        longest = max((len(row.token_ids) for row in self.control), default=0)
        if positions is not None and longest > positions:
            raise ValueError(f"control_tokens is {self.config.control_tokens}, but the model has {positions} positions")
        first = self.weights[0]
        for entry in self.config.groups:
            check_merge(self.sft, self.policies, entry.spec(first), entry.statistics)

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards."""
        return [model.name for model in self.reward_models]

    @cached_property
    def weights(self) -> list[Weights]:
        """The weights of every group, but for sampler map, which begins with these."""
        return first_weights(self.config)

    def engine(self, folder: Path) -> Engine:
        """Who generates."""
        if self.config.engine == "vllm":
            from rlhf_lines.sweep.engines.vllm import VllmEngine

            return VllmEngine(self.config, self.sft, self.adapters, folder)
        from rlhf_lines.sweep.engines.local import LocalEngine

        return LocalEngine(self.config, self.sft, self.adapters)

    def facts(self) -> dict:
        """What a resumed run must share with the one that was stopped."""
        settings = {key: value for key, value in self.config.given.items() if key not in CHANGEABLE}
        return {
            **settings,
            "dataset_name": self.dataset_name,
            "reward_names": self.rewards,
            "reward_models": {
                name: entry.identity() for name, entry in zip(self.rewards, self.config.rewards, strict=True)
            },
            "prompts_sha256": _sha256(self.prompts),
            "control_sha256": _sha256([text for text, _ in self.control]),
            "sft_sha256": checkpoint_sha256(self.sft),
            "policies_sha256": [sha256_of([path / WEIGHTS_FILE]) for path in [*self.policies, *self.morlhf]],
            "statistics_sha256": {
                entry.name: [statistics_sha256(RULES[entry.rule].statistics, path) for path in entry.statistics]
                for entry in self.config.groups
            },
        }

    @lru_cache  # noqa: B019 - lives as long as the run
    def resolve(self, spec: MergeSpec) -> MergeSpec:
        """The spec with the number that alpha "auto" stands for."""
        statistics = {entry.rule: entry.statistics for entry in self.config.groups}
        return measured_alpha(self.sft, self.policies, spec, statistics.get(spec.rule, ()))

    def makers(self, chosen: Scaling) -> dict[str, Callable[[Weights], MergeSpec]]:
        """Return, for every group that is swept over weights, the function from weights to its spec."""
        lines = groups.scaled(chosen)
        makers = {SOUP: groups.scaled(Scaling(1.0, 0.0)), LINES: lines}
        if self.config.controls:
            makers[UNIFORM] = lambda weights: groups.uniform_control(self.resolve(lines(weights)), self.num_layers)
            makers[REVERSED] = lambda weights: groups.reversed_control(self.resolve(lines(weights)))
        makers |= {entry.name: entry.spec for entry in self.config.groups}
        return {name: lambda weights, make=make: self.resolve(make(weights)) for name, make in makers.items()}

    def fixed(self) -> dict[str, list[MergeSpec]]:
        """The groups whose points are no matter of weights: the SFT model and the MORLHF runs."""
        count = len(self.policies)
        fixed = {SFT: [MergeSpec("linear", (0.0,) * count)]}
        if self.morlhf:
            fixed[MORLHF] = [MergeSpec("linear", row) for row in groups.one_hot(count + len(self.morlhf))[count:]]
        return fixed


def first_weights(config: SweepConfig) -> list[Weights]:
    """The weights of every group; of sampler map those before the fit."""
    count = len(config.policies)
    if config.sampler == "list":
        return groups.with_single_policies(config.weights)
    if config.sampler == "dirichlet":
        return groups.dirichlet(count, config.num_weights, config.seed)
    if config.sampler == "map":
        return [tuple(row) for row in design(count, config.num_weights)]
    return groups.simplex(count, config.num_weights)


def _distinct(rows: Iterable[dict], count: int) -> dict[str, str]:
    """The first so many prompts, each once and in their order, with what reward models are shown of them.

    A prompt is one unit of the bootstrap.
    """
    prompts = {row["prompt"]: row["scored_prompt"] for row in rows}
    return dict(itertools.islice(prompts.items(), count))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
