"""Stage `merge`: one merged policy, as an adapter or as a dense checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from rlhf_lines.artifact import refuse_existing
from rlhf_lines.config import RunConfig, parse_size
from rlhf_lines.errors import Problems
from rlhf_lines.merge.output.hub import check_hub, upload
from rlhf_lines.merge.output.record import check_repeat, read_merge_record
from rlhf_lines.merge.policies import MERGE_RECORD, merge_policies
from rlhf_lines.merge.rules import RULES, Rule
from rlhf_lines.merge.soups import checkpoint_weights, uniform_soup
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.models import local_folder


def _rules(chosen: Callable[[Rule], object], joint: str = ", ") -> str:
    """The names of some rules, for help texts."""
    return joint.join(name for name, rule in RULES.items() if chosen(rule))


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
            "help": f"How residuals are combined: {_rules(lambda rule: not rule.on_factors)}; for comparison with "
            f"other codes, on adapters: {_rules(lambda rule: rule.on_factors)}."
        },
    )
    rule_options: str | None = field(default=None, metadata={"help": "Options of the rule, as JSON."})
    statistics: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of each policy, for rules {_rules(lambda rule: rule.statistics, ' and ')}: folders of rlhf-lines "
            f"{' or '.join(rule.statistics.verb for rule in RULES.values() if rule.statistics)}."
        },
    )
    alpha: str = field(
        default="1.0",
        metadata={"help": "LiNeS factor of the first block; auto gives tau_M the L1 norm of the mean residual."},
    )
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last block is more than alpha."})
    schedule: str = field(
        default="linear",
        metadata={
            "help": "How the factor grows: linear, sqrt or quadratic; or falls: reversed, reversed_sqrt or "
            "reversed_quadratic."
        },
    )
    dtype: str | None = field(
        default=None, metadata={"help": "Of the written weights; that of the SFT model if not given."}
    )
    max_shard_size: str | None = field(
        default=None, metadata={"help": "Of a written weight file, such as 5GB; as the SFT model is if not given."}
    )
    max_memory: str = field(
        default="4GB", metadata={"help": "What the work on one parameter may take, for rules that need whole ones."}
    )
    device: str = field(default="cpu", metadata={"help": "Where the arithmetic is done: cpu or cuda."})
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
        """The merge as a value."""
        options = self.rule_options or {}
        if isinstance(options, str):
            try:
                options = json.loads(options)
            except json.JSONDecodeError as error:
                raise ValueError(f"rule_options {options!r} is not JSON ({error.msg} at {error.pos})") from error
        return MergeSpec(self.rule, self._weights(), self._alpha(), self.beta, self.schedule, options)

    def _alpha(self) -> float | str:
        try:
            return "auto" if self.alpha == "auto" else float(self.alpha)
        except (TypeError, ValueError):
            raise ValueError(f"alpha is {self.alpha!r}, expected a number or auto") from None

    def shard_bytes(self) -> int | None:
        """The most bytes of a written weight file, or None.

        Raises:
            ValueError: it is no size, zero, or of an adapter, which is one file.
        """
        if self.max_shard_size is None:
            return None
        size = parse_size(self.max_shard_size)
        if size < 1:
            raise ValueError(f"max_shard_size is {self.max_shard_size}, expected a size such as 5GB")
        if self.save == "adapter":
            raise ValueError(f"max_shard_size is {self.max_shard_size}, but an adapter is one file; leave it out")
        return size

    def folders(self) -> tuple[Path, list[Path]]:
        """The folders of the SFT model and of the policies; all that are missing are told at once."""
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
    """Write the merged policy, upload it if asked to, and return its folder; see `merge_policies`."""
    if config.plan:
        raise ValueError("plan is for the command: rlhf-lines merge --plan, or rlhf-lines plan --config FILE")
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    if is_kept(run_config, config):
        check_same_merge(config)
        folder = Path(config.output_dir)
    else:
        folder = _merge(run_config, config)
    if config.push_to_hub:
        upload(folder, config.hub_model_id, private=config.hub_private_repo)
    return folder


def _merge(run_config: RunConfig, config: MergeConfig) -> Path:
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)  # before gigabytes are hashed
    sft, policies = config.folders()
    statistics = config.statistics or ()
    warnings = check_repeat(config.repeats, sft, policies, statistics) if config.repeats else ()
    with _Bars() as progress:
        return merge_policies(
            sft,
            policies,
            config.spec(),
            save=config.save,
            output_dir=config.output_dir,
            rank=config.rank,
            dtype=config.dtype,
            overwrite=run_config.overwrite,
            statistics=statistics,
            max_shard_size=config.shard_bytes(),
            max_memory=parse_size(config.max_memory),
            device=config.device,
            warnings=warnings,
            progress=progress,
        )


class _Bars:
    """A bar per phase of a merge: over the residuals while a rule measures them, over the model while it is written.

    Only a terminal shows it, and nothing of it stays, also when the merge stops with an error.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, elements: int, total: int | None) -> None:
        if phase != self._phase:
            self.__exit__()
            self._phase = phase
            self._bar = tqdm(desc=f"merge: {phase}", total=total, unit="", unit_scale=True, leave=False, disable=None)
        self._bar.update(elements)


def is_kept(run_config: RunConfig, config: MergeConfig) -> bool:
    """Whether `--resume` finds a finished merge, which is not made again."""
    return run_config.resume and (Path(config.output_dir) / MERGE_RECORD).is_file()


def check_same_merge(config: MergeConfig) -> None:
    """Raise ValueError when the folder to be kept holds another merge, or one of inputs that have changed since."""
    path = Path(config.output_dir) / MERGE_RECORD
    made = read_merge_record(path)
    sft, policies = config.folders()
    statistics = config.statistics or []
    before = {
        "spec": made["spec"],
        "save": made["save"],
        "sft_model": made["sft_model"],
        "policies": [policy["path"] for policy in made["policies"]],
        "dtype": made["asked_dtype"],
        "rank": made["asked_rank"],
        "max_shard_size": made["max_shard_size"],
        "statistics": [folder["path"] for folder in made["statistics"]],
        "device": made["device"],
    }
    now = {
        "spec": config.spec().to_dict(),
        "save": config.save,
        "sft_model": str(sft),
        "policies": [str(policy) for policy in policies],
        "dtype": config.dtype,
        "rank": config.rank,
        "max_shard_size": config.shard_bytes(),
        "statistics": statistics,
        "device": config.device,
    }
    way_out = "choose another folder, or replace it with --overwrite in place of --resume"
    for key, value in now.items():
        if before[key] != value:
            raise ValueError(
                f"output_dir {config.output_dir} was made with {key} {before[key]}, now it is {value}: {way_out}"
            )
    check_repeat(path, sft, policies, statistics, way_out=way_out)
