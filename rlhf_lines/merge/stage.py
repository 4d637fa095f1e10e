"""Stage `merge`: one merged policy, as an adapter or as a dense checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlhf_lines.artifact import refuse_existing
from rlhf_lines.config import RunConfig, parse_size, read_fields
from rlhf_lines.errors import Problems, alternatives
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.lines import FALLING, GROWING
from rlhf_lines.merge.output.hub import check_hub, upload
from rlhf_lines.merge.output.record import check_repeat, is_record, read_merge, settings
from rlhf_lines.merge.policies import MERGE_RECORD, merge_policies
from rlhf_lines.merge.rules import RULES, Rule
from rlhf_lines.merge.soups import checkpoint_weights, uniform_soup
from rlhf_lines.merge.spec import MergeSpec, number_or_auto
from rlhf_lines.models import local_folder
from rlhf_lines.progress import Bar


def _rules(chosen: Callable[[Rule], object], joint: str = ", ") -> str:
    """The names of some rules, for help texts."""
    return joint.join(name for name, rule in RULES.items() if chosen(rule))


def rule_options(value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a rule, from a mapping or its JSON.

    Raises:
        ValueError: the text is not JSON, or the value no mapping.
    """
    try:
        options = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"rule_options {value!r} is not JSON ({error.msg} at {error.pos})") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"options is {options!r}, expected a mapping from option name to value")
    return options


def _size(name: str, value: str | int) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def shard_size(value: str | int) -> int:
    """The most bytes of a written weight file.

    Raises:
        ValueError: no size, or zero.
    """
    size = _size("max_shard_size", value)
    if size == 0:
        raise ValueError(f"max_shard_size is {value}, expected a size such as 5GB")
    return size


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
    rule_options: Mapping[str, Any] | None = field(
        default=None, metadata={"help": "Options of the rule, as JSON.", "parse": rule_options}
    )
    statistics: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of each policy, for rules {_rules(lambda rule: rule.statistics, ' and ')}: folders of rlhf-lines "
            f"{' or '.join(rule.statistics.verb for rule in RULES.values() if rule.statistics)}."
        },
    )
    alpha: float | Literal["auto"] = field(
        default=1.0,
        metadata={
            "help": "LiNeS factor of the first layer; auto gives tau_M the L1 norm of the mean residual.",
            "parse": partial(number_or_auto, "alpha"),
        },
    )
    beta: float = field(default=0.0, metadata={"help": "What the factor of the last layer is more than alpha."})
    schedule: str = field(
        default="linear",
        metadata={"help": f"How the factor grows: {alternatives(GROWING)}; or falls: {alternatives(FALLING)}."},
    )
    dtype: str | None = field(
        default=None, metadata={"help": "Of the written weights; that of the SFT model if not given."}
    )
    max_shard_size: int | None = field(
        default=None,
        metadata={
            "help": "Of a written weight file, such as 5GB; as the SFT model is if not given.",
            "parse": shard_size,
        },
    )
    max_memory: int = field(
        default="4GB",
        metadata={
            "help": "What the work on one parameter may take, for rules that need whole ones.",
            "parse": partial(_size, "max_memory"),
        },
    )
    device: str = field(default="cpu", metadata={"help": "Where the arithmetic is done: cpu or cuda."})
    sft_renamed: bool = field(
        default=False,
        metadata={
            "help": "The adapters were trained on this very SFT model under another name: its Hub id, a revision, "
            "a folder that has moved. What they call it is not compared; hashes, shapes and tokenizers are."
        },
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

    def __post_init__(self) -> None:
        given = read_fields(self)
        if self.max_shard_size is not None and self.save == "adapter":
            size = given["max_shard_size"]
            raise ValueError(f"max_shard_size is {size}, but an adapter is one file; leave it out")

    @staticmethod
    def settings(content: dict, path: Path) -> dict:
        """What a config file sets; a `merge_spec.json` sets all that repeats its merge."""
        return settings(path) if is_record(content) else content

    def merge(self) -> Merge:
        """The merge as a value, folders as they are named.

        Raises:
            ValueError: weights that are given twice, or a spec that does not exist.
        """
        spec = MergeSpec(self.rule, self._weights(), self.alpha, self.beta, self.schedule, self.rule_options or {})
        return Merge(
            self.sft_model,
            self.policies,
            spec,
            self.save,
            rank=self.rank,
            dtype=self.dtype,
            statistics=self.statistics or (),
            max_shard_size=self.max_shard_size,
            device=self.device,
            sft_renamed=self.sft_renamed,
        )

    def _weights(self) -> tuple[float, ...]:
        if self.weights_by is None:
            if self.power is not None:
                raise ValueError(f"power is {self.power}, but it belongs to weights_by; give --weights_by step or loss")
            return uniform_soup(len(self.policies)).weights if self.weights is None else tuple(self.weights)
        if self.weights is not None:
            raise ValueError("weights and weights_by are both given; keep one of them")
        _, *policies = _folders([self.sft_model, *self.policies])
        return checkpoint_weights(policies, self.weights_by, power=1.0 if self.power is None else self.power)


CONFIGS = (RunConfig, MergeConfig)


def run(run_config: RunConfig, config: MergeConfig, given: dict) -> Path:
    """Write the merged policy, upload it if asked to, and return its folder; see `merge_policies`."""
    if config.plan:
        raise ValueError("plan is for the command: rlhf-lines merge --plan, or rlhf-lines plan --config FILE")
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    if is_kept(run_config, config):
        check_same_merge(config.output_dir, config.merge())
    else:
        _merge(config, overwrite=run_config.overwrite)
    folder = Path(config.output_dir)
    if config.push_to_hub:
        upload(folder, config.hub_model_id, private=config.hub_private_repo)
    return folder


def _merge(config: MergeConfig, *, overwrite: bool) -> None:
    refuse_existing(config.output_dir, overwrite=overwrite)  # before gigabytes are hashed
    merge = with_folders(config.merge())
    warnings = check_repeat(config.repeats, merge) if config.repeats else ()
    with _Bars() as progress:
        merge_policies(
            **vars(merge),
            output_dir=config.output_dir,
            max_memory=config.max_memory,
            overwrite=overwrite,
            warnings=warnings,
            progress=progress,
        )


class _Bars:
    """A bar per phase of a merge: over the residuals while a rule measures them, over the model while it is written.

    Nothing of it stays on a terminal, also when the merge stops with an error.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, elements: int, total: int | None) -> None:
        if phase != self._phase:
            self.__exit__()
            self._phase = phase
            self._bar = Bar(
                desc=f"merge: {phase}", total=total, unit="numbers", unit_scale=True, leave=False, late=True
            )
        self._bar.update(elements)


def is_kept(run_config: RunConfig, config: MergeConfig) -> bool:
    """Whether `--resume` finds a finished merge, which is not made again."""
    return run_config.resume and (Path(config.output_dir) / MERGE_RECORD).is_file()


def check_same_merge(output_dir: str | Path, merge: Merge) -> None:
    """Raise ValueError when the folder to be kept holds another merge, or one of inputs that have changed since."""
    path, merge = Path(output_dir) / MERGE_RECORD, with_folders(merge)
    way_out = "choose another folder, or replace it with --overwrite in place of --resume"
    if differing := read_merge(path).difference(merge):
        key, before, now = differing
        raise ValueError(f"output_dir {output_dir} was made with {key} {before}, now it is {now}: {way_out}")
    check_repeat(path, merge, way_out=way_out)


def with_folders(merge: Merge) -> Merge:
    """The merge with the local folders of its models; all that are missing are told at once."""
    sft, *policies = _folders(merge.models)
    return replace(merge, sft_model=sft, policies=policies)


def _folders(models: Sequence[str]) -> list[Path]:
    """The local folders of the SFT model and of the policies."""
    problems = Problems()
    folders = []
    for number, name in enumerate(models):
        with problems.collect():
            folders.append(local_folder(name, what="policy" if number else "SFT model"))
    problems.check()
    return folders
