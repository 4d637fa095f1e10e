"""One merge as a value: what is merged how, and as what it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_lines.artifact import versions
from rlhf_lines.errors import counted, unknown_name
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM
from rlhf_lines.merge.lora.low_rank import not_linear
from rlhf_lines.merge.lora.truncate import Truncation, check_rank
from rlhf_lines.merge.rules import RULES, Rule
from rlhf_lines.merge.rules.twin import PER_PROMPT
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import DTYPES, LostResidual


SAVES = ("adapter", "dense")
FORMAT = 1  # of a record


@dataclass(frozen=True)
class Written:
    """What came of a merge.

    Attributes:
        alpha: the number that the spec's alpha stands for.
        lost: what the cast to the written dtype lost.
        dtype: of the written weights.
        rank: of an adapter.
        truncation: what an adapter of that rank lost, None for an exact one.
        loaded_by: the class of transformers that loads the model, or the one that the adapter is for.
    """

    alpha: float
    lost: LostResidual
    dtype: str
    rank: int | None = None
    truncation: Truncation | None = None
    loaded_by: str = CAUSAL_LM


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of what a merge reads.

    Attributes:
        weights: of the SFT model and of the policies.
        configs: of the same.
        statistics: of the files of statistics.
    """

    weights: Sequence[str]
    configs: Sequence[str]
    statistics: Sequence[str] = ()


@dataclass(frozen=True)
class Merge:
    """One merge: the arguments of `merge_policies` that decide what is written, which describes them.

    Two that are equal, of inputs that are equal, write the same bytes.

    >>> merge = Merge("sft", ["helpful", "harmless"], MergeSpec("linear", (0.3, 0.7)), "adapter")
    >>> merge.policies, merge.device
    (('helpful', 'harmless'), 'cpu')
    """

    sft_model: str
    policies: tuple[str, ...]
    spec: MergeSpec
    save: str
    rank: int | None = None
    dtype: str | None = None
    statistics: tuple[str, ...] = ()
    max_shard_size: int | None = None
    device: str = "cpu"
    sft_renamed: bool = False

    def __post_init__(self) -> None:
        if not self.policies or isinstance(self.policies, (str, Path)):
            raise ValueError(f"policies is {self.policies!r}, expected a list of one or more folders")
        # Paths and devices, in whatever container, become the texts that a record holds.
        for name, value in (("sft_model", str(self.sft_model)), ("device", str(self.device))):
            object.__setattr__(self, name, value)
        for name, folders in (("policies", self.policies), ("statistics", self.statistics)):
            object.__setattr__(self, name, tuple(map(str, folders)))

    @property
    def models(self) -> tuple[str, ...]:
        """The folders of the SFT model and of the policies."""
        return (self.sft_model, *self.policies)

    @property
    def rule(self) -> Rule:
        """What is known about the rule of the spec."""
        return RULES[self.spec.rule]

    @property
    def is_of_factors(self) -> bool:
        """Whether it makes an adapter of adapters by their factors alone, without any dense residual."""
        return self.save == "adapter" and self.rule.makes_adapter and self.spec.alpha != "auto"

    def check(self) -> None:
        """Stop where settings are unknown, do not fit one another, or cannot be had on this machine.

        No input has to exist yet.

        Raises:
            ValueError: they do.
        """
        if self.save not in SAVES:
            raise ValueError(unknown_name("save", self.save, SAVES))
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(unknown_name("dtype", self.dtype, DTYPES))
        weights, policies = len(self.spec.weights), len(self.policies)
        if weights != policies:
            raise ValueError(
                f"{counted(weights, 'weight')} for {counted(policies, 'policy', 'policies')}; give one "
                "weight per policy"
            )
        if self.spec.profile is not None:
            self.spec.profile.check(policies=policies)
        if self.spec.is_routed:
            raise ValueError(PER_PROMPT)
        if self.rank is not None:
            check_rank(self.rank)
            if self.save == "dense":
                raise ValueError(
                    f"rank is {self.rank}, but a dense checkpoint has none; leave it out, or use --save adapter"
                )
        elif self.save == "adapter" and not self.rule.makes_adapter:
            raise ValueError(not_linear(self.spec.rule))
        _check_device(self.device)
        if self.is_of_factors and torch.device(self.device).type != "cpu":
            raise ValueError(
                f"device is {self.device!r}, but an adapter by rule {self.spec.rule!r} is made of factors, on the CPU; "
                "leave it out, or use cpu"
            )

    def difference(self, other: Merge) -> tuple[str, Any, Any] | None:
        """The first setting in which another merge differs, and its values here and there as JSON has them.

        What is merged how comes first.
        """
        for name in ("spec", "save", *vars(self)):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return name, _plain(here), _plain(there)
        return None

    def to_record(self, hashes: Hashes, written: Written, warnings: Sequence[str]) -> dict[str, Any]:
        """The content of `merge_spec.json`: the merge, the hashes of its inputs, and what came of it.

        Args:
            hashes: of the inputs.
            written: what came of it.
            warnings: what a reader should know.
        """
        sft_sha256, *of_policies = hashes.weights
        sft_config, *of_configs = hashes.configs
        record = {
            "format": FORMAT,
            "spec": self.spec.to_dict(),
            "alpha": written.alpha,
            "sft_model": self.sft_model,
            "sft_sha256": sft_sha256,
            "sft_config_sha256": sft_config,
            "policies": [
                {**policy, "config_sha256": config}
                for policy, config in zip(_hashed(self.policies, of_policies), of_configs, strict=True)
            ],
            "statistics": _hashed(self.statistics, hashes.statistics),
            "save": self.save,
            "dtype": written.dtype,
            "asked_dtype": self.dtype,
            "asked_rank": self.rank,
            "max_shard_size": self.max_shard_size,
            "device": self.device,
            "sft_renamed": self.sft_renamed,
            "loaded_by": written.loaded_by,
            "versions": versions(),
            "lost_residual": asdict(written.lost),
            "warnings": list(warnings),
        }
        if written.rank is not None:
            record["rank"] = written.rank
        if written.truncation is not None:
            record["truncation"] = asdict(written.truncation)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Merge:
        """The merge that `to_record` wrote, folders as they were named then."""
        return cls(
            record["sft_model"],
            [policy["path"] for policy in record["policies"]],
            MergeSpec.from_dict(record["spec"]),
            record["save"],
            rank=record["asked_rank"],
            dtype=record["asked_dtype"],
            statistics=[folder["path"] for folder in record["statistics"]],
            max_shard_size=record["max_shard_size"],
            device=record["device"],
            sft_renamed=record.get("sft_renamed", False),
        )


def _hashed(folders: Sequence[str], sha256: Sequence[str]) -> list[dict[str, str]]:
    return [{"path": folder, "sha256": known} for folder, known in zip(folders, sha256, strict=True)]


def _plain(value: object) -> object:
    if isinstance(value, MergeSpec):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _check_device(device: str) -> None:
    try:
        found = torch.device(device)
    except RuntimeError:  # torch lists all backends that it was ever built for
        found = None
    if found is None or found.type not in ("cpu", "cuda") or (found.type == "cpu" and found.index):
        raise ValueError(f"device is {device!r}, expected cpu, cuda, or one of several GPUs as in cuda:1")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no GPU here; leave it out, or use cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} GPUs here, counted from 0")
