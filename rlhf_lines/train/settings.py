"""What every stage that trains makes of TRL's settings: this machine's where they are open, a sentence where wrong."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path

import torch
from transformers import TrainingArguments
from trl import ModelConfig, RewardConfig, SFTConfig

from rlhf_lines import distributed
from rlhf_lines.config import from_json
from rlhf_lines.errors import Problems, alternatives
from rlhf_lines.native_dtypes import computes_in
from rlhf_lines.train.layerwise import DECAY, FACTORS, has_groups


Check = tuple[str, str, bool]  # a setting, what is expected of it, whether it holds

_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "save_total_limit",
    "max_completion_length",
    "steps_per_generation",
    "generation_batch_size",
    "max_length",
)
_SIZES = (
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "adam_epsilon",
    "dataloader_num_workers",
    "warmup_steps",
    "eval_delay",
    "neftune_noise_alpha",
)
_STEPS = ("logging_steps", "save_steps", "eval_steps")
_SEEDS = ("seed", "data_seed")
_OF_EVALUATION = (
    "eval_delay",
    "per_device_eval_batch_size",
    "metric_for_best_model",
    "eval_packing",
    "num_generations_eval",
)


class OnThisMachine:
    """Mixin of a TRL config: where device and precision are left open they are what this machine has.

    Attributes:
        chosen: what was left open, to what was chosen and why, for the first lines of a run and for a plan.
        metrics: what an evaluation measures, by which a checkpoint may be the best; None where rewards name them.
    """

    metrics = None

    def __post_init__(self):
        self.chosen: dict[str, str] = {}
        refuse(self, _checks(self))
        # DeepSpeed has an accelerator of its own, which may be a CPU; there transformers wants use_cpu to be false.
        deepspeed = self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
        if distributed.on_cpu() and not self.use_cpu and not deepspeed:
            self.use_cpu = True
            self.chosen["use_cpu"] = "true (no GPU here)"
        if self.bf16 is None and not self.fp16:
            self.bf16, why = has_bf16(cpu=self.use_cpu or distributed.on_cpu())
            self.chosen["bf16"] = f"{str(self.bf16).lower()} ({why})"
        distributed.prepare()
        super().__post_init__()
        distributed.check_world(self.world_size)

    def differing(self, names: Iterable[str]) -> list[str]:
        """Those of the settings that do not hold their default."""
        return differing(self, names)

    @property
    def without_effect(self) -> list[str]:
        """Sentences on settings that count only beside another; not refused, as no flag takes a key of a file back."""
        saves, evaluates, logs = self.save_strategy, self.eval_strategy, self.logging_strategy
        evaluates_as_it_logs = evaluates == "steps" and self.eval_steps is None
        packs = getattr(self, "packing", False) or getattr(self, "eval_packing", False)
        found = []
        for counts, names, beside in (
            (evaluates != "no", _OF_EVALUATION, "an eval_strategy"),
            (evaluates != "epoch", ("eval_steps",), "eval_strategy: steps"),
            (saves not in ("no", "epoch"), ("save_steps",), "save_strategy: steps"),
            (saves != "no", ("save_total_limit",), "a save_strategy"),
            (logs not in ("no", "epoch") or evaluates_as_it_logs, ("logging_steps",), "logging_strategy: steps"),
            (self.push_to_hub, ("hub_model_id", "hub_private_repo"), "push_to_hub: true"),
            (packs, ("packing_strategy",), "packing: true"),
        ):
            for name in () if counts else self.differing(names):
                value = plain(getattr(self, name))
                told = f"{value:g}" if isinstance(value, float) else value
                found.append(f"{name} {told} has no effect: it counts only with {beside}")
        return found


@dataclass
class LayerwiseSettings:
    """Which layers are trained, and how fast."""

    layer_learning_rates: str | None = field(
        default=None,
        metadata={
            "help": "Learning rates that grow with depth: linear (l / L of learning_rate in layer l of L) or "
            "exponential (layer_decay^(L - l)); one for all layers if not given."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": f"Of exponential: the ratio of two neighbouring layers' rates; {DECAY} if not given."},
    )
    frozen_layers: int = field(
        default=0,
        metadata={"help": "So many first layers, and what lies outside the layers, are not trained."},
    )

    @property
    def decay_of_layers(self) -> float:
        """The decay of `exponential`."""
        return DECAY if self.layer_decay is None else self.layer_decay

    def checks_of_layers(self) -> list[Check]:
        """What holds of these settings for every model."""
        policy, decay, optim = self.layer_learning_rates, self.layer_decay, str(plain(self.optim))
        return [
            ("layer_learning_rates", alternatives(list(FACTORS)), policy is None or policy in FACTORS),
            ("layer_decay", "none: it counts only with layer_learning_rates: exponential", _only(decay, policy)),
            ("layer_decay", "a number in (0, 1)", decay is None or 0 < decay < 1),
            ("frozen_layers", "a whole number >= 0", self.frozen_layers is not None and self.frozen_layers >= 0),
            (
                "optim",
                "one with a learning rate per layer, or no layer_learning_rates",
                not policy or has_groups(optim),
            ),
        ]


@dataclass
class SFTSettings(OnThisMachine, LayerwiseSettings, SFTConfig):
    """TRL's settings of supervised fine-tuning, on this machine."""

    metrics = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "aux_loss")

    def checks_of_rows(self) -> list[Check]:
        """What holds of these settings whatever the rows are."""
        column, kwargs = self.dataset_text_field, from_json("dataset_kwargs", self.dataset_kwargs)
        skips = isinstance(kwargs, dict) and kwargs.get("skip_prepare_dataset")
        return [
            (
                "dataset_text_field",
                "text, the column that is read: rename that of the data",
                column == "text",
            ),
            ("dataset_kwargs", "none that skips the preparation: rows are texts, no tokens", not skips),
        ]


@dataclass
class RewardSettings(OnThisMachine, RewardConfig):
    """TRL's settings of a reward model's training, on this machine."""

    metrics = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")


@dataclass
class PolicyModelConfig(ModelConfig):
    """The SFT model, and the LoRA of a policy."""

    use_peft: bool = field(default=True, metadata={"help": "PPO trains LoRA policies, so true."})
    lora_dropout: float = field(default=0.0, metadata={"help": "0: PPO reads without dropout."})

    def __post_init__(self):
        super().__post_init__()
        reason = "0: with dropout a policy differs from itself between two passes, so PPO switches it off"
        refuse(self, [("lora_dropout", reason, not self.lora_dropout)])


def has_bf16(*, cpu: bool) -> tuple[bool, str]:
    """Whether this machine computes in bfloat16, and what says so."""
    has = computes_in("bfloat16", cpu=cpu)
    machine = "CPU" if cpu else "GPU" if torch.cuda.is_available() else "accelerator"
    return has, f"this {machine} computes in {'bfloat16' if has else 'float32, not in bfloat16'}"


def refuse(config: object, checks: Iterable[Check]) -> None:
    """Stop where a check does not hold, with the setting, its value and what is expected.

    Raises:
        ValueError: one does not hold; `InputProblems` if several do not.
    """
    Problems(
        f"{name} is {plain(getattr(config, name))}, expected {text}" for name, text, holds in checks if not holds
    ).check()


def plain(value: object) -> object:
    """The value as a config says it: transformers turns some texts into members of an enumeration."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.value if isinstance(value, Enum) else value


def check_model(config: ModelConfig, given: dict, *, causal: bool) -> None:
    """Refuse settings of the model that contradict each other, or that have no effect.

    Args:
        config: the settings of model and LoRA.
        given: the settings that were given, in file or flags.
        causal: whether a language model is trained, no classifier.

    Raises:
        ValueError: with all of them.
    """
    of_lora = [name for name in given if name.startswith("lora_") or name in ("use_rslora", "use_dora")]
    of_lora = [name for name in of_lora if given[name] not in (None, False)]
    bits = next((name for name in ("load_in_4bit", "load_in_8bit") if getattr(config, name)), None)
    of_4bit = [name for name in given if "bnb" in name and given[name] not in (None, False)]
    problems = Problems()
    if not config.use_peft:
        for name in of_lora if "use_peft" not in given else ():  # who says false knows that LoRA is off
            problems.add(
                f"{name} is {given[name]}, which counts only with use_peft: true: add that, or use_peft: false"
            )
        if bits:
            problems.add(
                f"{bits} is true, but use_peft is false: quantised weights are not trained, set use_peft: true"
            )
    if bits and importlib.util.find_spec("bitsandbytes") is None:
        problems.add(f"{bits} is true, but bitsandbytes is not installed: pip install bitsandbytes")
    if not config.load_in_4bit:
        for name in of_4bit:
            problems.add(f"{name} is {given[name]}, but load_in_4bit is false, so it has no effect")
    if config.model_revision not in (None, "main") and Path(config.model_name_or_path or "").is_dir():
        problems.add(
            f"model_revision is {config.model_revision}, but {config.model_name_or_path} is a folder, which has no "
            "revisions: leave it out"
        )
    checks = [
        ("lora_r", "at least 1", config.lora_r is not None and config.lora_r >= 1),
        ("lora_alpha", "a positive number", config.lora_alpha is not None and config.lora_alpha > 0),
        ("lora_dropout", "a number in [0, 1)", config.lora_dropout is not None and 0 <= config.lora_dropout < 1),
        ("lora_task_type", "CAUSAL_LM", not causal or config.lora_task_type == "CAUSAL_LM"),
    ]
    with problems.collect():
        refuse(config, checks if config.use_peft else ())
    problems.check()


def differing(config: object, names: Iterable[str]) -> list[str]:
    """Those of the fields that do not hold their default."""
    defaults = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(config)
    }
    return [name for name in names if name in defaults and getattr(config, name) != defaults[name]]


def _checks(args: TrainingArguments) -> list[Check]:
    """What holds in every stage that trains; TRL and transformers divide by some of these before they look at them."""
    return [
        *((name, "at least 1", value is None or value >= 1) for name, value in _values(args, _COUNTS)),
        *(
            (name, "a number >= 0", value is None or (_finite(value) and value >= 0))
            for name, value in _values(args, _SIZES)
        ),
        *(
            (name, "a positive number", value is None or (_finite(value) and value > 0))
            for name, value in _values(args, _STEPS)
        ),
        *((name, "a number in [0, 1)", 0 <= value < 1) for name, value in _values(args, ("adam_beta1", "adam_beta2"))),
        *(
            (name, "a whole number from 0 to 4294967295", value is None or 0 <= value < 2**32)
            for name, value in _values(args, _SEEDS)
        ),
        (
            "max_steps",
            "at least 1, or -1 to count epochs (num_train_epochs)",
            args.max_steps >= 1 or args.max_steps == -1,
        ),
        (
            "num_train_epochs",
            "a positive number",
            args.max_steps > 0 or (_finite(args.num_train_epochs) and args.num_train_epochs > 0),
        ),
        (
            "fp16",
            "false, or a GPU: there is none here (a CPU computes in bf16)",
            not args.fp16 or not (args.use_cpu or distributed.on_cpu()),
        ),
        ("do_predict", "false: a stage trains, and predicts nothing", not args.do_predict),
        *(
            (name, "its default, or an eval_strategy beside it", args.eval_strategy != "no" or not value)
            for name, value in _values(args, ("do_eval", "eval_on_start", "eval_steps"))
        ),
        *(
            (name, alternatives(args.metrics), value is None or value.removeprefix("eval_") in args.metrics)
            for name, value in _values(args, ("metric_for_best_model",))
            if args.metrics is not None
        ),
        (
            "use_liger_kernel",
            "false: liger-kernel is not installed",
            not args.use_liger_kernel or installed("liger_kernel"),
        ),
        (
            "deepspeed",
            "none: deepspeed is not installed (pip install deepspeed)",
            not args.deepspeed or installed("deepspeed"),
        ),
        (
            "fsdp",
            "none in one process: start several with accelerate launch or torchrun",
            not args.fsdp or distributed.count() > 1,
        ),
        *(args.checks_of_layers() if isinstance(args, LayerwiseSettings) else ()),
        *(args.checks_of_rows() if isinstance(args, SFTSettings) else ()),
    ]


def _only(decay: float | None, policy: str | None) -> bool:
    return decay is None or policy == "exponential"


def _values(args: TrainingArguments, names: Iterable[str]) -> list[tuple[str, float | None]]:
    return [(name, getattr(args, name)) for name in names if hasattr(args, name)]


def _finite(value: float) -> bool:
    return math.isfinite(value)


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None
