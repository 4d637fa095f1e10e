"""PPO for LoRA policies, on the rollouts, text rewards, checkpoints and distributed code of TRL's GRPOTrainer.

GRPOTrainer computes one advantage per completion and documents that subclasses may give one per token, ``[B, T]``.
That is the seam: everything up to the rollout and everything after the advantages is TRL's, and this file adds

1. a value head on the last hidden state of the trunk, read by a forward hook, so that it costs no forward pass;
2. the reference log-probabilities: the same base with its adapter disabled;
3. the reward per token (score at the end, KL cost everywhere), generalised advantage estimation and whitening;
4. the value loss.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from reward_models import RewardModel
from reward_models.base import checked_scores
from rlhf_lines.train.advantages import explained_variance, gae, kl_estimate, token_rewards, value_loss, whiten


VALUE_HEAD = "value_head.safetensors"


@dataclass
class PPOConfig(GRPOConfig):
    """TRL's GRPOConfig with the settings of PPO; a field that TRL names keeps its name.

    ``num_iterations`` is the number of epochs over a rollout, ``per_device_train_batch_size *
    gradient_accumulation_steps`` the minibatch of one update, ``steps_per_generation *
    per_device_train_batch_size`` the rollout, ``epsilon`` the clip range of the policy ratio, and ``max_steps`` counts
    updates. ``beta``, the KL term in GRPO's loss, stays 0: here the KL cost is part of the reward.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: with it a policy differs from itself between two passes."}
    )
    num_iterations: int = field(default=4, metadata={"help": "Epochs over each rollout."})
    scale_rewards: str = field(default="none", metadata={"help": "Unused by PPO: advantages are whitened instead."})
    kl_coef: float = field(
        default=0.05, metadata={"help": "Cost of one nat of KL to the SFT model, in units of score."}
    )
    kl_estimator: str = field(default="k1", metadata={"help": "k1 or k3, see train/advantages.py."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip_range: float = field(default=0.2, metadata={"help": "Clip range of the value head, in units of score."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value head; the one of the adapter if not given."}
    )
    whiten_advantages: bool = field(default=True, metadata={"help": "Whiten the advantages over each rollout."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion that was cut before its end token."}
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
        problems = [
            f"{name} is {getattr(self, name)}, expected {expectation}"
            for name, expectation, holds in (
                ("num_generations", "at least 1", (num_generations or 0) >= 1),
                ("beta", "0 (the KL cost is set by kl_coef)", self.beta == 0.0),
                ("kl_estimator", "k1 or k3", self.kl_estimator in ("k1", "k3")),
                ("kl_coef", "a number >= 0", math.isfinite(self.kl_coef) and self.kl_coef >= 0),
                ("vf_coef", "a number >= 0", math.isfinite(self.vf_coef) and self.vf_coef >= 0),
                ("num_iterations", "at least 1", self.num_iterations >= 1),
                ("value_learning_rate", "a positive number", _absent_or(self.value_learning_rate, lambda x: x > 0)),
                ("missing_eos_penalty", "a number >= 0", _absent_or(self.missing_eos_penalty, lambda x: x >= 0)),
                ("multi_objective_aggregation", "sum_then_normalize (PPO adds weighted scores)",
                 self.multi_objective_aggregation == "sum_then_normalize"),
                ("scale_rewards", "none (advantages are whitened)", self.scale_rewards == "none"),
                ("importance_sampling_level", "token", self.importance_sampling_level == "token"),
                ("off_policy_mask_threshold", "none", self.off_policy_mask_threshold is None),
                ("use_vllm", "false (rollouts by vLLM are not supported yet)", not self.use_vllm),
                ("gamma", "a number in [0, 1]", 0 <= self.gamma <= 1),
                ("lam", "a number in [0, 1]", 0 <= self.lam <= 1),
                ("value_clip_range", "a positive number", self.value_clip_range > 0),
                ("mask_truncated_completions", "false (use missing_eos_penalty)", not self.mask_truncated_completions),
                ("loss_type", "dapo (the mean over tokens)", self.loss_type == "dapo"),
                ("generation_batch_size", f"a multiple of num_generations ({num_generations})",
                 self.generation_batch_size % max(num_generations or 1, 1) == 0),
            )
            if not holds
        ]  # fmt: skip
        if problems:
            raise ValueError("; ".join(problems))


class PPOTrainer(GRPOTrainer):
    """Trains a LoRA policy and a value head on one frozen base.

    Args:
        model: the SFT model, a path or a loaded model; it gets the adapter of ``peft_config``.
        reward_models: score text; with several, ``args.reward_weights`` weighs them (default 1 each).
        args: the settings.
        **kwargs: everything else goes to GRPOTrainer (``train_dataset`` with a column ``prompt``, ``peft_config``,
            ``processing_class``, ``quantization_config``, ``callbacks``, ...).

    Raises:
        ValueError: there is no ``peft_config``: the reference is the base without its adapter. Or there are fewer
            prompts than one rollout takes.
    """

    _tag_names = ("trl", "ppo", "rlhf-lines")
    _name = "PPO"

    def __init__(self, model, reward_models: Sequence[RewardModel], args: PPOConfig, *, peft_config, **kwargs):
        if peft_config is None:
            raise ValueError("PPO trains LoRA policies, but use_peft is false: set use_peft: true and lora_r")
        prompts, dataset = args.generation_batch_size // args.num_generations, kwargs.get("train_dataset")
        if hasattr(dataset, "__len__") and len(dataset) < prompts:  # Trainer would stop at step 0 and save
            raise ValueError(
                f"train_dataset has {len(dataset)} prompts, but one rollout takes {prompts}: add prompts, or lower "
                "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation"
            )
        super().__init__(
            model=model,
            reward_funcs=[_reward_function(reward_model) for reward_model in reward_models],
            args=args,
            peft_config=peft_config,
            **kwargs,
        )
        causal_lm = self.model.get_base_model()
        self._trunk = getattr(causal_lm, causal_lm.base_model_prefix)
        if "position_ids" in inspect.signature(self._trunk.forward).parameters:
            self._trunk.register_forward_pre_hook(_count_positions, with_kwargs=True)
        # float32: returns differ by less than bfloat16 resolves. Zero: no advantage is invented before training.
        head = nn.Linear(causal_lm.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.model.value_head = head.to(causal_lm.get_output_embeddings().weight.device)
        self._values: Tensor | None = None  # [B, T], of the latest policy forward
        self._scores: Tensor | None = None  # [all processes' B, rewards], of the latest rollout

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.args.value_learning_rate is not None:
            head = list(self.model.value_head.parameters())
            for parameter in head:
                parameter.requires_grad_(False)  # keeps them out of the groups that Trainer makes
            super().create_optimizer(model)
            for parameter in head:
                parameter.requires_grad_(True)
            self.optimizer.add_param_group({"params": head, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
            return self.optimizer
        return super().create_optimizer(model)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """As GRPOTrainer's, and leaves the values of the same states in ``self._values``, ``[B, T]``."""
        chunks = []
        with self._trunk.register_forward_hook(lambda module, inputs, output: chunks.append(self._value(output[0]))):
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        # The hidden state at position j has read tokens 0..j: it is the state in which token j + 1 is chosen.
        values = torch.cat(chunks).to(input_ids.device)  # a model on several devices ends on another one
        self._values = values[:, -logits_to_keep - 1 : -1]
        return result

    def _value(self, hidden_states: Tensor) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.model.value_head(hidden_states.float()).squeeze(-1)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scores = scores
        return scores

    def _generate_and_score_completions(self, inputs):
        rollout = super()._generate_and_score_completions(inputs)
        mask = rollout["completion_mask"]
        if "old_per_token_logps" not in rollout:
            self._score_policy(rollout)
        old_values = self._values * mask
        reference = self._reference_logprobs(rollout)

        kl = kl_estimate(rollout["old_per_token_logps"], reference, self.args.kl_estimator) * mask
        scores = self._local_scores(len(inputs)) - self._missing_eos(rollout) * (self.args.missing_eos_penalty or 0.0)
        rewards = token_rewards(scores, kl, mask, self.args.kl_coef)
        advantages, returns = gae(rewards, old_values, mask, gamma=self.args.gamma, lam=self.args.lam)
        self._log_rollout(kl, rewards, old_values, returns, mask)
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_processes)
        return {**rollout, "advantages": advantages, "returns": returns, "old_values": old_values}

    def _compute_loss(self, model, inputs):
        policy_loss = super()._compute_loss(model, inputs)
        mode = "train" if self.model.training else "eval"
        loss = value_loss(self._values, inputs["old_values"], inputs["returns"], self.args.value_clip_range)
        # The divisor of GRPOTrainer's policy loss: mean tokens of one update on one process. It is the same for every
        # microbatch, so that neither their number nor the number of processes changes the gradient.
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        total = (loss * inputs["completion_mask"]).sum()
        sums = self._sum_over_processes(torch.stack([total.detach(), inputs["completion_mask"].sum().to(total.dtype)]))
        self._metrics[mode]["value_loss"].append((sums[0] / sums[1]).item())
        return policy_loss + self.args.vf_coef * total / tokens

    def _score_policy(self, rollout) -> None:
        """Set the log-probabilities of the rollout and ``self._values``, where GRPOTrainer had no need of them."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            rollout["old_per_token_logps"] = self._get_per_token_logps_and_entropies(
                self.model, *self._sequences(rollout), batch_size=self._forward_batch_size()
            )[0]

    def _reference_logprobs(self, rollout) -> Tensor:
        """Return the log-probabilities of the sampled tokens under the SFT model, ``[B, T]``."""
        policy = self.accelerator.unwrap_model(self.model)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            policy.disable_adapter(),
        ):
            return super()._get_per_token_logps_and_entropies(
                self.model, *self._sequences(rollout), batch_size=self._forward_batch_size()
            )[0]

    def _sequences(self, rollout) -> tuple[Tensor, Tensor, int]:
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        return ids, mask, rollout["completion_ids"].shape[1]

    def _forward_batch_size(self) -> int:
        training = self.model.training
        return self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size

    def _local_scores(self, count: int) -> Tensor:
        """Return the weighted scores ``[B]`` of this process."""
        start = self.accelerator.process_index * count
        weights = self.reward_weights.to(self._scores.device)
        return (self._scores * weights).sum(dim=1)[start : start + count]

    def _missing_eos(self, rollout) -> Tensor:
        """Return 1 for completions ``[B]`` that do not end in an end token, else 0."""
        last = rollout["completion_mask"].sum(dim=1, keepdim=True).long() - 1
        last_token = rollout["completion_ids"].gather(1, last).squeeze(1)
        ends = torch.tensor(self.eos_token_ids, device=last_token.device)
        return (~torch.isin(last_token, ends)).float()

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    def _log_rollout(self, kl, rewards, old_values, returns, mask) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        gather = self.accelerator.gather
        metrics["kl"].append(gather(kl.sum(dim=1)).mean().item())
        metrics["reward_minus_kl"].append(gather(rewards.sum(dim=1)).mean().item())
        metrics["explained_variance"].append(gather(explained_variance(old_values, returns, mask)).mean().item())
        metrics.pop("frac_reward_zero_std", None)  # speaks of groups of completions, which PPO has not

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # Under sharding only the state that Trainer gathered is whole.
            state = state_dict or {f"value_head.{k}": v for k, v in self.model.value_head.state_dict().items()}
            head = {
                k.removeprefix("value_head."): v.contiguous() for k, v in state.items() if k.startswith("value_head.")
            }
            save_file(head, str(Path(output_dir or self.args.output_dir) / VALUE_HEAD))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.model.value_head.load_state_dict(load_file(str(Path(resume_from_checkpoint) / VALUE_HEAD)))


def _count_positions(module, args, kwargs):
    """Number the tokens from the first that is no padding, where the caller left it to the model.

    Prompts are padded on the left, and TRL gives no positions. Rotary models see only differences; a model with
    absolute positions would read every prompt as if it stood further right.
    """
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and ids is not None and mask is not None and mask.shape == ids.shape:
        kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return args, kwargs


def _absent_or(value: float | None, holds: Callable[[float], bool]) -> bool:
    return value is None or (math.isfinite(value) and holds(value))


def _reward_function(reward_model: RewardModel):
    """Return a reward function of TRL's form, which stops at a score that is no number."""

    def score(prompts, completions, **_):
        return checked_scores(reward_model.name, reward_model.score(prompts, completions), prompts)

    score.__name__ = reward_model.name
    return score
