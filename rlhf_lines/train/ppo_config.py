"""The settings of PPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from trl import GRPOConfig

from rlhf_lines import distributed
from rlhf_lines.errors import one_of
from rlhf_lines.train.evaluation import metric_names
from rlhf_lines.train.settings import Check, LayerwiseSettings, OnThisMachine, installed, refuse


KL_ESTIMATORS = ("k1", "k3")
BATCH_SIZE, SAVE_STEPS = 8, 500  # where nothing is given: TRL's defaults, made to fit
# What makes generation draw from another distribution than the one whose log-probabilities are computed.
PLAIN_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "vllm_structured_outputs_regex": None,
}
# Settings of TRL and transformers that change nothing here, with the reason; and those that only count beside another.
WITHOUT_EFFECT = {
    "the loss is PPO's": (
        *("label_smoothing_factor", "average_tokens_across_devices", "use_bias_correction_kl"),
        *("sapo_temperature_neg", "sapo_temperature_pos"),
        *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    ),
    "the reference is the base without its adapter": (
        *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    ),
    "prompts are drawn by seed and epoch": (
        *("data_seed", "train_sampling_strategy", "length_column_name", "dataloader_drop_last"),
    ),
    "an evaluation samples and scores, and keeps no predictions": (
        *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches"),
        *("eval_use_gather_object", "eval_accumulation_steps", "label_names", "bf16_full_eval", "fp16_full_eval"),
    ),
    "prompts are texts, and no tools are called": ("log_multimodal", "max_tool_calling_iterations"),
    "rollouts keep a cache of their own": ("cache_implementation",),
}
BELONGS_TO = {
    "use_adaptive_entropy": ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    "use_transformers_continuous_batching": ("transformers_continuous_batching_config",),
    "kl_target": ("kl_gain",),
    "log_completions": ("num_completions_to_print",),
}
# What TRL's own PPO called its settings, while it had one, and what they are here.
ELSEWHERE = {
    **dict.fromkeys(("num_ppo_epochs", "ppo_epochs"), "num_iterations"),
    "cliprange": "epsilon",
    "cliprange_value": "value_clip_range",
    "response_length": "max_completion_length",
    "total_episodes": "max_steps, which counts updates: total_episodes * num_iterations / "
    "(per_device_train_batch_size * gradient_accumulation_steps * processes)",
    "num_mini_batches": "steps_per_generation / gradient_accumulation_steps, the updates of one epoch over a rollout",
    "mini_batch_size": "per_device_train_batch_size",
    "local_rollout_forward_batch_size": "sampling_batch_size",
    "whiten_rewards": "whiten_advantages",
    "init_kl_coef": "kl_coef",
    "kl_penalty": "kl_estimator",
    "target": "kl_target",
    "target_kl": "max_update_kl",
    "horizon": "kl_gain",
    **dict.fromkeys(("stop_token", "stop_token_id"), "the end token of the tokenizer, which is no setting"),
    "reward_model_path": "rewards",
    "sft_model_path": "model_name_or_path",
}


@dataclass
class PPOConfig(OnThisMachine, LayerwiseSettings, GRPOConfig):
    """The settings of PPO beside those of TRL's GRPOConfig; a field that TRL names keeps its name.

    `num_iterations` is the number of epochs over a rollout, `per_device_train_batch_size *
    gradient_accumulation_steps` the minibatch of one update, `steps_per_generation *
    per_device_train_batch_size` the rollout, `epsilon` the clip range of the policy ratio, and `max_steps` counts
    updates. `beta`, the KL term in GRPO's loss, stays 0: here the KL cost is part of the reward.
    """

    ELSEWHERE: ClassVar = ELSEWHERE

    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": f"Completions in one forward and backward pass of a process; if not given, {BATCH_SIZE}, or what "
            "fits the prompts and num_generations."
        },
    )
    save_steps: float | None = field(
        default=None,
        metadata={
            "help": f"Updates between two checkpoints; if not given, the first number from {SAVE_STEPS} on that is "
            "whole rollouts."
        },
    )
    router_aux_loss_coef: float | None = field(
        default=0.0, metadata={"help": "0: PPO has no loss that balances the experts of a mixture."}
    )
    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: with it a policy differs from itself between two passes."}
    )
    num_iterations: int = field(default=4, metadata={"help": "Epochs over each rollout."})
    scale_rewards: str = field(default="none", metadata={"help": "Unused by PPO: advantages are whitened instead."})
    log_completions: bool = field(
        default=True, metadata={"help": "Keep the newest rollout of every log in completions/*.parquet."}
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
        self._chooses_batch = self.per_device_train_batch_size is None
        self._chooses_save_steps = self.save_steps is None
        if self._chooses_batch:
            step = self._batch_step()
            self.per_device_train_batch_size = math.ceil(BATCH_SIZE / step) * step
        if self._chooses_save_steps:
            self.save_steps = SAVE_STEPS
        # GRPO compares completions of one prompt and so refuses a single one. PPO has a value head for that: show
        # GRPO's check a number that it accepts and that divides the rollout. An evaluation has its own number.
        num_generations, num_generations_eval = self.num_generations, self.num_generations_eval
        rollout = self.generation_batch_size or self._rollout_of(self.per_device_train_batch_size)
        if rollout == 1:
            raise ValueError(
                "a rollout has 1 completion, expected at least 2: raise per_device_train_batch_size, "
                "gradient_accumulation_steps or steps_per_generation"
            )
        self.num_generations, self.num_generations_eval = rollout or None, num_generations_eval or num_generations
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # The value head hangs on a hook, out of sight of DDP's search: it would count as unused and then get a
            # gradient.
            self.ddp_find_unused_parameters = False
        self.num_generations, self.num_generations_eval = num_generations, num_generations_eval
        if self._chooses_save_steps and self.num_iterations >= 1:
            updates = self.updates_per_rollout
            self.save_steps = math.ceil(SAVE_STEPS / updates) * updates
        refuse(self, self._checks())
        if self._chooses_batch:
            self.chosen["per_device_train_batch_size"] = str(self.per_device_train_batch_size)
        if self._chooses_save_steps and self.save_strategy == "steps":
            self.chosen["save_steps"] = str(self.save_steps)

    def differing(self, names: Iterable[str]) -> list[str]:
        """Those of the settings that were given, and do not hold their default."""
        return [name for name in super().differing(names) if name != "save_steps" or not self._chooses_save_steps]

    def _batch_step(self) -> int:
        """The smallest batch of a process with which a rollout holds all completions of its prompts."""
        of_one = self._rollout_of(1)
        return (self.num_generations or 1) // math.gcd(self.num_generations or 1, of_one or 1)

    def _rollout_of(self, batch_size: int) -> int:
        """The completions of a rollout of all processes, if each has this batch."""
        return batch_size * distributed.count() * (self.steps_per_generation or self.gradient_accumulation_steps)

    def fit(self, prompts: int | None) -> None:
        """Take as many completions at once as there are prompts, where the batch was left open.

        Args:
            prompts: rows of the training data, or None if they are not known.
        """
        if prompts is None or not self._chooses_batch:
            return
        step = self._batch_step()
        most = prompts * self.num_generations // self._rollout_of(1) // step * step
        if most * self.steps_per_generation * self.world_size >= 2 and most < self.per_device_train_batch_size:
            self.per_device_train_batch_size = most
            self.generation_batch_size = most * self.steps_per_generation * self.world_size
            self.chosen["per_device_train_batch_size"] = f"{most} (there are {prompts} prompts)"

    def to_dict(self) -> dict:
        """As TRL's, for trackers and files: without the function that switches adapters under checkpointing."""
        found = super().to_dict()
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            if found.get(name):
                found[name] = {key: value for key, value in found[name].items() if not callable(value)}
        return found

    def check_policy(self, has_lora: bool) -> None:
        """Refuse a policy that is no adapter.

        Raises:
            ValueError: it is none.
        """
        if not has_lora:
            raise ValueError("PPO trains LoRA policies, but use_peft is false: leave it out")

    def check_run(self, *, has_lora: bool, prompts: int | None) -> None:
        """Refuse, before a model is loaded, what no trainer can run.

        Args:
            has_lora: whether the policy is an adapter.
            prompts: rows of the training data, or None if they are not known.

        Raises:
            ValueError: the policy is no adapter, or there are fewer prompts than one rollout takes.
        """
        self.check_policy(has_lora)
        taken = self.generation_batch_size // self.num_generations
        if prompts is not None and prompts < taken:  # Trainer would stop at step 0 and save
            raise ValueError(
                f"train_dataset has {prompts} prompts, but one rollout takes {taken}: add prompts, or lower "
                "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation"
            )

    def check_metric(self, rewards: Sequence[str], sets: Sequence[str] = ()) -> None:
        """Refuse a `metric_for_best_model` that an evaluation would not have, on which a schedule waits.

        Args:
            rewards: the names of the rewards.
            sets: the names of the data sets of an evaluation, where there are several.

        Raises:
            ValueError: it would not.
        """
        if (metric := self.metric_for_best_model) is not None:
            found = metric_names(rewards)
            known = [f"{name}_{of}" for name in sets for of in found] or found
            one_of("metric_for_best_model", metric.removeprefix("eval_"), known)

    @property
    def steps_per_rollout(self) -> int:
        """The number of forward and backward passes that one rollout is used for."""
        return self.steps_per_generation * self.num_iterations

    @property
    def updates_per_rollout(self) -> int:
        """The number of updates after which a rollout is used up."""
        return (
            math.lcm(max(self.steps_per_rollout, 1), self.gradient_accumulation_steps)
            // self.gradient_accumulation_steps
        )

    def _checks(self) -> list[Check]:
        sampling = "{}: samples of another distribution than the policy's make the KL estimate wrong, even negative"
        passes, of_update = max(self.steps_per_rollout, 1), self.gradient_accumulation_steps
        updates = self.updates_per_rollout
        best = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        best = best or self.save_strategy == "best" or self.load_best_model_at_end  # which are refused below
        return [
            *self._without_effect(),
            # Noise in one reading and not in the next makes ratios and KL of a policy that has not changed.
            (
                "neftune_noise_alpha",
                "none: noise on embeddings makes a policy differ from itself",
                not self.neftune_noise_alpha,
            ),
            (
                "disable_dropout",
                "true: with dropout a policy differs from itself between two passes",
                self.disable_dropout,
            ),
            (
                "router_aux_loss_coef",
                "0: PPO has no loss that balances the experts of a mixture",
                not self.router_aux_loss_coef,
            ),
            (
                "cast_lm_head_to_fp32",
                "false: TRL cannot with an adapter (dtype: float32 computes all of it so)",
                not self.cast_lm_head_to_fp32,
            ),
            (
                "remove_unused_columns",
                "false: reward models are shown other columns than the prompt",
                not self.remove_unused_columns,
            ),
            (
                "ddp_find_unused_parameters",
                "false: the search does not see the value head",
                not self.ddp_find_unused_parameters,
            ),
            (
                "accelerator_config",
                "without split_batches: the batch is that of one process",
                not self.accelerator_config.split_batches,
            ),
            (
                "metric_for_best_model",
                "none: no checkpoint is called the best",
                best or self.metric_for_best_model is None,
            ),
            ("greater_is_better", "none: no checkpoint is called the best", best or self.greater_is_better is None),
            (
                "use_vllm",
                "false: vllm is not installed (pip install vllm)",
                not self.use_vllm or installed("vllm"),
            ),
            ("num_generations", "at least 1", (self.num_generations or 0) >= 1),
            ("num_generations_eval", "at least 1", _absent_or(self.num_generations_eval, lambda x: x >= 1)),
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
            ("epsilon", "a positive number", math.isfinite(self.epsilon) and self.epsilon > 0),
            (
                "epsilon_high",
                f"a number >= epsilon ({self.epsilon:g})",
                # A wrong epsilon is told by itself.
                _absent_or(self.epsilon_high, lambda x: not x < self.epsilon),
            ),
            ("delta", "a number > 1: it bounds the ratio, which begins at 1", _absent_or(self.delta, lambda x: x > 1)),
            ("top_entropy_quantile", "a number in (0, 1]", 0 < self.top_entropy_quantile <= 1),
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
                f"a divisor or a multiple of {passes}, the passes of a rollout: no update ends inside one and begins "
                "in another",
                passes % of_update == 0 or of_update % passes == 0,
            ),
            # A checkpoint stands between two rollouts, and holds policy and value function of one moment.
            (
                "enable_jit_checkpoint",
                "false: it saves inside rollouts, from where no run goes on (use save_strategy: steps)",
                not self.enable_jit_checkpoint,
            ),
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

    def _without_effect(self) -> list[Check]:
        """Of every setting that differs from its default and changes nothing, a check that fails."""
        reasons = {name: f"its default: {reason}" for reason, names in WITHOUT_EFFECT.items() for name in names}
        for switch, names in BELONGS_TO.items():
            if not getattr(self, switch):
                reasons |= dict.fromkeys(names, f"its default: it counts only with {switch}")
        if not self.use_vllm:
            vllm = [entry.name for entry in fields(self) if entry.name.startswith("vllm_")]
            reasons |= dict.fromkeys(vllm, "its default: it counts only with use_vllm")
        return [(name, reasons[name], False) for name in self.differing(reasons)]


def _absent_or(value: float | None, holds: Callable[[float], bool]) -> bool:
    return value is None or (math.isfinite(value) and holds(value))
