"""The settings of PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from trl import GRPOConfig

from rlhf_lines.errors import Problems


KL_ESTIMATORS = ("k1", "k3")
# What makes generation draw from another distribution than the one whose log-probabilities are computed.
PLAIN_SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}


@dataclass
class PPOConfig(GRPOConfig):
    """The settings of PPO beside those of TRL's GRPOConfig; a field that TRL names keeps its name.

    `num_iterations` is the number of epochs over a rollout, `per_device_train_batch_size *
    gradient_accumulation_steps` the minibatch of one update, `steps_per_generation *
    per_device_train_batch_size` the rollout, `epsilon` the clip range of the policy ratio, and `max_steps` counts
    updates. `beta`, the KL term in GRPO's loss, stays 0: here the KL cost is part of the reward.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: with it a policy differs from itself between two passes."}
    )
    num_iterations: int = field(default=4, metadata={"help": "Epochs over each rollout."})
    scale_rewards: str = field(default="none", metadata={"help": "Unused by PPO: advantages are whitened instead."})
    log_completions: bool = field(
        default=True, metadata={"help": "Keep the completions of every logging step in completions/*.parquet."}
    )
    num_completions_to_print: int | None = field(
        default=0, metadata={"help": "How many completions to print at every logging step."}
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Cost of one nat of KL to the SFT model, in units of score."}
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "Adapt kl_coef to this KL per completion, in nats; fixed if not given."}
    )
    kl_gain: float = field(default=0.1, metadata={"help": "How fast kl_coef adapts: by at most 0.2 of this a rollout."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 or k3, see train/advantages.py."})
    max_kl: float | None = field(
        default=None, metadata={"help": "Stop the run once a rollout's KL per completion exceeds this, in nats."}
    )
    max_update_kl: float | None = field(
        default=None,
        metadata={
            "help": "Leave out the rest of a rollout's updates once the policy is this far from the one that sampled "
            "it, in nats per token."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip_range: float = field(default=0.2, metadata={"help": "Clip range of the value head, in units of score."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value function; the one of the adapter if not given."}
    )
    value_lora: bool = field(
        default=False, metadata={"help": "Give the value function an adapter of its own, at the cost of a second pass."}
    )
    whiten_advantages: bool = field(default=True, metadata={"help": "Whiten the advantages over each rollout."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion that was cut before its end token."}
    )
    sampling_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions that a process samples at once; the whole rollout if not given."},
    )
    normalization_samples: int = field(
        default=256, metadata={"help": "Completions of the SFT model that normalised rewards are measured on."}
    )

    def __post_init__(self):
        # GRPO compares completions of one prompt and so refuses a single one. PPO has a value head for that: show
        # GRPO's check a number that it accepts and that divides the rollout. An evaluation has its own number.
        num_generations, num_generations_eval = self.num_generations, self.num_generations_eval
        local_rollout = self.per_device_train_batch_size * (
            self.steps_per_generation or self.gradient_accumulation_steps
        )
        self.num_generations = self.generation_batch_size or local_rollout
        self.num_generations_eval = num_generations_eval or num_generations
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # The value head hangs on a hook, out of sight of DDP's search: it would count as unused and then get a
            # gradient.
            self.ddp_find_unused_parameters = False
        self.num_generations, self.num_generations_eval = num_generations, num_generations_eval
        Problems(
            f"{name} is {_plain(getattr(self, name))}, expected {text}" for name, text, ok in self._checks() if not ok
        ).check()

    def to_dict(self) -> dict:
        """As TRL's, for trackers and files: without the function that switches adapters under checkpointing."""
        found = super().to_dict()
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            if found.get(name):
                found[name] = {key: value for key, value in found[name].items() if not callable(value)}
        return found

    def check_run(self, *, has_lora: bool, prompts: int | None) -> None:
        """Refuse, before a model is loaded, what no trainer can run.

        Args:
            has_lora: whether the policy is an adapter.
            prompts: rows of the training data, or None if they are not known.

        Raises:
            ValueError: the policy is no adapter, or there are fewer prompts than one rollout takes.
        """
        if not has_lora:
            raise ValueError("PPO trains LoRA policies, but use_peft is false: set use_peft: true and lora_r")
        taken = self.generation_batch_size // self.num_generations
        if prompts is not None and prompts < taken:  # Trainer would stop at step 0 and save
            raise ValueError(
                f"train_dataset has {prompts} prompts, but one rollout takes {taken}: add prompts, or lower "
                "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation"
            )

    @property
    def steps_per_rollout(self) -> int:
        """The number of forward and backward passes that one rollout is used for."""
        return self.steps_per_generation * self.num_iterations

    def _checks(self) -> list[tuple[str, str, bool]]:
        """(setting, what is expected of it, whether it holds)."""
        sampling = "{}: samples of another distribution than the policy's make the KL estimate wrong, even negative"
        passes, of_update = max(self.steps_per_rollout, 1), self.gradient_accumulation_steps
        updates = math.lcm(passes, of_update) // of_update
        return [
            ("num_generations", "at least 1", (self.num_generations or 0) >= 1),
            ("beta", "0 (the KL cost is set by kl_coef)", self.beta == 0.0),
            ("kl_estimator", "k1 or k3", self.kl_estimator in KL_ESTIMATORS),
            ("kl_coef", "a number >= 0", math.isfinite(self.kl_coef) and self.kl_coef >= 0),
            ("kl_target", "a positive number", _absent_or(self.kl_target, lambda x: x > 0)),
            ("kl_coef", "a positive number where kl_target adapts it", self.kl_target is None or self.kl_coef > 0),
            ("kl_gain", "a number in (0, 1]", 0 < self.kl_gain <= 1),
            ("max_kl", "a positive number", _absent_or(self.max_kl, lambda x: x > 0)),
            ("max_update_kl", "a positive number", _absent_or(self.max_update_kl, lambda x: x > 0)),
            # The gradient scaler of float16 stops at an update without gradients.
            ("max_update_kl", "none with fp16 (use bf16)", self.max_update_kl is None or not self.fp16),
            *((name, sampling.format(value), getattr(self, name) == value) for name, value in PLAIN_SAMPLING.items()),
            ("temperature", "a positive number", math.isfinite(self.temperature) and self.temperature > 0),
            ("vf_coef", "a number >= 0", math.isfinite(self.vf_coef) and self.vf_coef >= 0),
            ("num_iterations", "at least 1", self.num_iterations >= 1),
            ("value_learning_rate", "a positive number", _absent_or(self.value_learning_rate, lambda x: x > 0)),
            ("missing_eos_penalty", "a number >= 0", _absent_or(self.missing_eos_penalty, lambda x: x >= 0)),
            ("sampling_batch_size", "at least 1", self.sampling_batch_size is None or self.sampling_batch_size >= 1),
            ("normalization_samples", "at least 2", self.normalization_samples >= 2),
            (
                "multi_objective_aggregation",
                "sum_then_normalize (PPO adds weighted scores)",
                self.multi_objective_aggregation == "sum_then_normalize",
            ),
            ("scale_rewards", "none (advantages are whitened)", self.scale_rewards == "none"),
            ("importance_sampling_level", "token", self.importance_sampling_level == "token"),
            ("off_policy_mask_threshold", "none", self.off_policy_mask_threshold is None),
            ("gamma", "a number in [0, 1]", 0 <= self.gamma <= 1),
            ("lam", "a number in [0, 1]", 0 <= self.lam <= 1),
            ("value_clip_range", "a positive number", self.value_clip_range > 0),
            ("mask_truncated_completions", "false (use missing_eos_penalty)", not self.mask_truncated_completions),
            ("loss_type", "dapo (the mean over tokens)", self.loss_type == "dapo"),
            (
                "generation_batch_size",
                f"a multiple of num_generations ({self.num_generations})",
                self.generation_batch_size % max(self.num_generations or 1, 1) == 0,
            ),
            (
                "gradient_accumulation_steps",
                f"a divisor or a multiple of {passes}, the passes of a rollout: no update is of two rollouts",
                passes % of_update == 0 or of_update % passes == 0,
            ),
            # A checkpoint stands between two rollouts, and holds policy and value function of one moment.
            ("save_strategy", "steps, epoch or no", self.save_strategy != "best"),
            (
                "load_best_model_at_end",
                "false (the policy is that of the last update)",
                not self.load_best_model_at_end,
            ),
            (
                "save_steps",
                f"a multiple of {updates}, the updates of a rollout: a checkpoint stands between two rollouts",
                self.save_strategy != "steps" or self.save_steps % updates == 0,
            ),
        ]


def _absent_or(value: float | None, holds: Callable[[float], bool]) -> bool:
    return value is None or (math.isfinite(value) and holds(value))


def _plain(value: object) -> object:
    """The value as a config says it: transformers turns some texts into members of an enumeration."""
    return value.value if isinstance(value, Enum) else value
