"""PPO for LoRA policies, on the text rewards, checkpoints, logging and distributed code of TRL's GRPOTrainer.

GRPOTrainer computes one advantage per completion and documents that subclasses may give one per token, `[B, T]`.
That is the seam: everything around the rollout and everything after the advantages is TRL's, and this file adds

1. rollouts whose noise is placed by position, so that they depend on neither batches, processes nor a resume;
2. a value function: a head on the last hidden state of the trunk, read by a forward hook, so that it costs no forward
   pass, or (`value_lora`) on the trunk with an adapter of its own;
3. the reference log-probabilities: the same base with its adapter disabled;
4. the reward per token (score at the end, KL cost everywhere), generalised advantage estimation and whitening;
5. the value loss, and control of the KL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn import functional
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import unwrap_model_for_generation
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import utils
from trl.trainer.utils import RepeatSampler

from reward_models import Generative
from reward_models.normalize import Normalization
from reward_models.padding import takes
from rlhf_lines.completions import completion_texts
from rlhf_lines.distributed import leads
from rlhf_lines.limits import check_writes
from rlhf_lines.models import keep_unpacked
from rlhf_lines.reading import masks_padding, of_one_length
from rlhf_lines.sampling import prompt_key, sample_numbers, sample_tokens
from rlhf_lines.train.adapted import check_adapted
from rlhf_lines.train.adapters import checkpoint_contexts, merged_weights, use_adapter
from rlhf_lines.train.advantages import (
    adapted_kl_coef,
    explained_variance,
    gae,
    kl_estimate,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_lines.train.attention import attend_in_float32
from rlhf_lines.train.between_rollouts import BetweenRollouts, check_between_rollouts
from rlhf_lines.train.card import OwnCard
from rlhf_lines.train.checkpoints import WholeCheckpoints
from rlhf_lines.train.evaluation import FOLDER, completion_rows, evaluation_metrics, write_completions
from rlhf_lines.train.finite import FiniteTraining
from rlhf_lines.train.given import check_arguments, check_policy, check_template, first_rows, names_of_sets
from rlhf_lines.train.layerwise import LayerLearningRates, check_depth, check_frozen
from rlhf_lines.train.lora import add_in_place
from rlhf_lines.train.padded import deal, number_positions, of_length, spread, states_of_choices
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.rewards import Reward, check_shown, given_rewards, reward_function
from rlhf_lines.train.steady import distance, hold_steady, tolerance
from rlhf_lines.train.told import ToldSettings
from rlhf_lines.train.window import TOKENS, check_noted, of_window


POLICY, VALUE = "default", "value"  # names of the adapters; PEFT gives the first
VALUE_HEAD = "value_head.safetensors"
STATE = "ppo_state.json"
# Not any name with "value" in it: some models call a projection of theirs so.
_VALUE_PARAMETER = re.compile(rf"^value_head\.|\.lora_\w+\.{VALUE}(\.|$)")


# Nats between two ways to the log-probability of one token: rounding.
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
HEAD_TILE = 1024  # words of which TRL makes the logits at once: on a CPU, so few that they stay in its cache


class _Reading(NamedTuple):
    """What a model says of completions: each `[B, T]`, zero on padding."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor


class ValueHead(nn.Linear):
    """A linear module that computes in float32, also where FSDP or DeepSpeed hands it its weights in bfloat16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The values `[..., 1]` of hidden states `[..., H]`."""
        return functional.linear(hidden_states.float(), self.weight.float(), self.bias.float())


class EpochSampler(RepeatSampler):
    """TRL's RepeatSampler, with the order of every epoch drawn from `seed + epoch`.

    TRL draws the epochs' orders from one generator, one after the other: a run that goes on in its second epoch meets
    the prompts in the order of the first.
    """

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch; Trainer calls this before every one."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class PPOTrainer(
    LayerLearningRates, ToldSettings, BetweenRollouts, WholeCheckpoints, OwnCard, FiniteTraining, GRPOTrainer
):
    """Train a LoRA policy and a value function on one frozen base.

    Args:
        model: the SFT model, a path or a loaded model; it gets the adapter of `peft_config`.
        reward_models: score text: reward models, functions, texts such as `rule:length`, or one of these; with several,
            `args.reward_weights` weighs them (default 1 each).
        args: the settings.
        peft_config: the LoRA of the policy, and of the value function with `args.value_lora`.
        **kwargs: everything else goes to GRPOTrainer (`train_dataset` with a column `prompt` and perhaps
            `scored_prompt`, `processing_class`, `quantization_config`, `callbacks`, ...), but `tools`, `rollout_func`
            and `environment_factory`. Functions may ask for the other columns of `train_dataset`, as TRL's do.

    Attributes:
        normalizations: one per reward model: what its scores go through before they are weighed and added.
        kl_coef: the KL coefficient of the next rollout.
        counted: what reward models have counted in the rollouts of all processes since the run began, by metric.
        is_sharded: whether FSDP or DeepSpeed shares out the model.

    Raises:
        ValueError: there is no `peft_config`: the reference is the base without its adapter. Or there are fewer
            prompts than one rollout takes, or layers that are not to be trained have an adapter. Or the adapter is
            more than factors of linear maps, a reward cannot be taken or read the prompts, or no completion could end.
    """

    _tag_names = ("trl", "ppo", "rlhf-lines")
    _name = "PPO"
    _rates = (*LayerLearningRates._rates, "value_learning_rate")

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_models: Reward | Sequence[Reward],
        args: PPOConfig,
        *,
        peft_config: LoraConfig | None,
        **kwargs: Any,
    ):
        check_policy(model, peft_config)
        check_arguments(kwargs)
        models = given_rewards(reward_models, args, names_of_sets(kwargs))
        rows = first_rows(kwargs, evaluates=args.eval_strategy != "no")
        check_shown(models, rows)
        asked = copy(peft_config)  # in which PEFT puts what it finds
        dataset = kwargs.get("train_dataset")
        args.check_run(has_lora=True, prompts=len(dataset) if hasattr(dataset, "__len__") else None)
        if args.value_lora and args.gradient_checkpointing:
            own = {"use_reentrant": False, "context_fn": checkpoint_contexts}
            # Two names of one setting: Trainer reads the second at the start, TRL the first after every rollout.
            args.gradient_checkpointing_kwargs = {**(args.gradient_checkpointing_kwargs or {}), **own}
            args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs
        super().__init__(
            model=model,
            reward_funcs=[reward_function(model) for model in models],
            args=args,
            peft_config=peft_config,
            **kwargs,
        )
        check_adapted(self.model, asked, stage="ppo")
        check_writes(self.model.config, self._tokenizer)
        check_template(self._tokenizer, rows.values())
        self.is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_sharded and (args.value_lora or args.max_update_kl is not None):
            raise ValueError("value_lora and max_update_kl do not work under FSDP and DeepSpeed: leave them out")
        if self.is_fsdp_enabled:
            _keep_float32(self.accelerator.state.fsdp_plugin)
        check_depth(self.model, policy=args.layer_learning_rates, frozen=args.frozen_layers)
        check_frozen(self.model, args.frozen_layers)
        self._add_value_function(peft_config)
        hold_steady(self.model)
        keep_unpacked(self.model)
        if self.use_vllm:
            self.vllm_generation._iter_named_params = self._vllm_weights
        self.normalizations = [Normalization() for _ in models]
        self.kl_coef = args.kl_coef
        self._reward_models = models
        self.counted = dict.fromkeys(self._counts(), 0)
        self._newly_counted: Counter[str] = Counter()  # by this process, and not logged yet
        self._values: Tensor | None = None  # [B, T], of the latest policy forward
        self._logprobs: Tensor | None = None  # [B, T], of the latest policy forward
        self._entropies: Tensor | None = None  # [B, T], of the latest policy forward
        self._scores: Tensor | None = None  # [all processes' B, rewards], raw, of the latest rollout
        self._evaluated_count: int | None = None  # rows of an evaluation, if they can be known
        self._evaluated_prompts: Counter[int] = Counter()  # by their keys, in the batches of an evaluation
        self._evaluated_as = "eval"  # what stands before the names of its numbers
        self._evaluated_rows: list[Tensor] = []  # [all processes' B, columns] of every batch of an evaluation
        self._evaluated_scores: list[Tensor] = []  # [all processes' B, rewards], raw, of the same
        self._update_kl: list[Tensor] = []  # (sum, tokens) of every minibatch of the current update
        self._leaves_out_updates = False
        self._sampled: _Reading | None = None  # of the latest rollout, where we sample ourselves
        self._has_compared = False  # two readings of the first rollout
        if self.accelerator.device.type == "cpu":
            utils._CHUNKED_LOGPROB_CHUNK_SIZE = HEAD_TILE
            if self._reading_dtype() != torch.float32:
                attend_in_float32(self.model.get_base_model())
        if not self.is_sharded:
            add_in_place(self.model)
            self._check_head()
        self._rollouts = 0  # since the start of the run, which a resumed one goes on with
        self._written_rollouts = 0  # the rollouts at the last log: a table of completions holds the newest
        self._rollout_began: float | None = None  # seconds
        self._rollout_tokens = 0.0

    def _add_value_function(self, peft_config: LoraConfig) -> None:
        causal_lm = self.model.get_base_model()
        self._trunk = getattr(causal_lm, causal_lm.base_model_prefix)
        self._masks_padding = masks_padding(causal_lm)
        if not self._masks_padding and self.accelerator.num_processes > 1:
            raise ValueError(
                f"{causal_lm.config.model_type} models read padding, so only rows of one length are read together: in "
                "other numbers of passes in each process, and processes wait for each other; train in one process"
            )
        if self._masks_padding and takes(self._trunk, "position_ids"):
            self._trunk.register_forward_pre_hook(number_positions, with_kwargs=True)
        if self.args.value_lora:
            self.model.add_adapter(VALUE, peft_config)
        # float32: returns differ by less than bfloat16 resolves. Zero: no advantage is invented before training.
        head = ValueHead(causal_lm.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.model.value_head = head.to(causal_lm.get_output_embeddings().weight.device)
        self._train_value_function()

    def _check_head(self) -> None:
        """Stop where the head that TRL reads in parts, without ever holding all logits, is not that of the model."""
        ids = torch.arange(1, 5, device=self.model.device).unsqueeze(0) % self.model.config.get_text_config().vocab_size
        with torch.no_grad(), self.accelerator.autocast():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
        own = (logits / self.temperature).log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            found = self._read(self.model, ids, torch.ones_like(ids), ids.shape[1] - 1, None).logprobs
        if (found - own).abs().max() > HEAD_TOLERANCE[self.model.dtype]:
            raise ValueError(
                f"TRL does not make the logits of {self.model.config.get_text_config().model_type} models as they do "
                "themselves, so PPO would not know its own probabilities: choose another architecture"
            )

    def _value_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if _VALUE_PARAMETER.search(name)]

    def _train_value_function(self) -> None:
        """Switch on the gradients of the value function: PEFT trains the active adapter alone."""
        for parameter in self._value_parameters():
            parameter.requires_grad_(True)

    def create_optimizer(self, model=None):
        """Trainer's optimizer, with the value function in a group of its own if it has a learning rate of its own."""
        if self.optimizer is not None or self.args.value_learning_rate is None:
            return super().create_optimizer(model)
        own = self._value_parameters()
        for parameter in own:
            parameter.requires_grad_(False)  # keeps them out of the groups that Trainer makes
        super().create_optimizer(model)
        self._train_value_function()
        self.optimizer.add_param_group({"params": own, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
        return self.optimizer

    def _has_full_rate(self, name: str) -> bool:
        """Whether a parameter is of the value function, which is no part of the policy."""
        return _VALUE_PARAMETER.search(name) is not None

    # --- rollouts

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.args.steps_per_rollout,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % self.args.steps_per_rollout == 0 or self._buffered_inputs is None:
            self._log_speed()
            rollout = self._generate_and_score_completions(generation_batch)
            if not self._has_compared:
                self._compare_readings(rollout)
            self._buffered_inputs = deal(rollout, self.args.steps_per_generation)
            self._rollouts += 1
            self._rollout_ends = self.state.global_step + self.args.updates_per_rollout
            self._rollout_tokens = rollout["num_items_in_batch"].item()
            self._leaves_out_updates = False
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """As GRPOTrainer's, with noise placed by position where this process holds the whole model."""
        if self.use_vllm or self.use_transformers_continuous_batching or self.is_sharded:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        keys = gather_object([prompt_key(ids) for ids in prompt_ids])  # of all processes, in the order of the data
        training, count = self.model.training, num_generations
        seen, first = (Counter(), self._rollouts * count) if training else (self._evaluated_prompts, -count)
        start = self.accelerator.process_index * len(prompt_ids)
        numbers = sample_numbers(keys, seen, count=count, first=first)[start : start + len(prompt_ids)]
        return self.sample(prompt_ids, numbers), None

    def _generate(self, prompts):
        """As GRPOTrainer's, which decodes completions alone: here they are the texts that follow their prompts."""
        prompt_ids, completion_ids, tool_mask, _, *others = super()._generate(prompts)
        texts = completion_texts(self.processing_class, prompt_ids, completion_ids)
        return prompt_ids, completion_ids, tool_mask, texts, *others

    def _vllm_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and weights of the policy, without the value function."""
        if not self.is_sharded:
            return merged_weights(self.model, POLICY)
        # TRL gathers what is shared out, and merges in place.
        named = VLLMGeneration._iter_named_params(self.vllm_generation)
        return ((name, weight) for name, weight in named if not name.startswith("value_head."))

    def sample(self, prompt_ids: Sequence[Sequence[int]], samples: Sequence[int]) -> list[list[int]]:
        """The token ids of one completion per prompt, the end token included, from the adapter in use.

        Args:
            prompt_ids: token ids of the prompts.
            samples: a number per prompt, which places its noise beside seed and prompt.
        """
        keys = [(prompt_key(ids), sample) for ids, sample in zip(prompt_ids, samples, strict=True)]
        size, completions, readings = self.args.sampling_batch_size or len(prompt_ids), [], []
        kwargs = self.args.gradient_checkpointing_kwargs
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=kwargs
            ) as policy,
            self.accelerator.autocast(),
        ):
            for start in range(0, len(prompt_ids), size):
                part = prompt_ids[start : start + size]
                with self._watch(len(part)) as (watch, entropies, values):
                    tokens, lengths, logprobs = sample_tokens(
                        policy.get_base_model(),
                        part,
                        keys[start : start + size],
                        max_new_tokens=self.max_completion_length,
                        temperature=self.temperature,
                        eos_token_ids=self.eos_token_ids,
                        pad_token_id=self._tokenizer.pad_token_id,
                        seed=self.args.seed,
                        watch=watch,
                    )
                completions += [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
                readings.append(_Reading(logprobs, entropies, values))
        self._sampled = _Reading(*(torch.cat(column) for column in zip(*readings, strict=True)))
        return completions

    @contextlib.contextmanager
    def _watch(self, count: int):
        """Inside, a `watch` of `sample_tokens` fills entropies (of an evaluation) and values, each `[count, T]`."""
        entropies, values = torch.zeros(2, count, self.max_completion_length, device=self.accelerator.device)
        states = []

        def watch(rows: Tensor, step: int, logits: Tensor) -> None:
            values[rows, step] = self._value(states.pop()).to(values.device)
            if not self.model.training:
                logprobs = (logits.float() / self.temperature).log_softmax(-1)
                entropies[rows, step] = -(logprobs.exp() * logprobs).sum(-1).to(entropies.device)

        def keep(module, inputs, output) -> None:
            states[:] = [output.last_hidden_state[:, -1]]

        # Some models (OPT, BART) leave out their trunk on the way to the head, and none its decoder.
        with self.model.get_base_model().get_decoder().register_forward_hook(keep):
            yield watch, entropies, values

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        before = self._counts()
        self._scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        check_noted(self._pending_metrics, self.reward_func_names)
        self._newly_counted.update({name: count - before[name] for name, count in self._counts().items()})
        return self._scores

    def _generate_and_score_completions(self, inputs):
        """As GRPOTrainer's, with advantages per token, `[B, T]`, and what the value loss needs."""
        self._sampled = None
        rollout = super()._generate_and_score_completions(inputs)
        mask = rollout["completion_mask"]
        if "old_per_token_logps" not in rollout:
            self._score_policy(rollout)
        old_values = self._values * mask
        reference = self._reference_logprobs(rollout)

        kl = kl_estimate(rollout["old_per_token_logps"], reference, self.args.kl_estimator) * mask
        ends = self._has_end(rollout)
        total = self._total_scores()
        start = self.accelerator.process_index * len(inputs)
        own = total[start : start + len(inputs)]
        scores = own - (~ends).float() * (self.args.missing_eos_penalty or 0.0)
        rewards = token_rewards(scores, kl, mask, self.kl_coef)
        advantages, returns = gae(rewards, old_values, mask, gamma=self.args.gamma, lam=self.args.lam)
        kl_of_completions = self.accelerator.gather(kl.sum(dim=1))
        self.check_finite("the KL of a completion", kl_of_completions)
        if not self.model.training:
            rows = completion_rows(
                own,
                rewards.sum(dim=1),
                kl.sum(dim=1),
                mask,
                ends=ends,
                terminated=ends | (self._last_tokens(rollout) == self._tokenizer.pad_token_id),
                returns=returns,
                values=old_values,
                advantages=advantages,
                entropies=self._entropies,
            )
            self._evaluated_rows.append(self.accelerator.gather(rows).cpu())
            self._evaluated_scores.append(self._scores.cpu())
            self._log_completions(total, kl_of_completions, advantages.sum(dim=1) / mask.sum(dim=1))
            return rollout
        explained = explained_variance(old_values, returns, mask, reduce=self._sum_over_processes)
        self._log_rollout(total, kl_of_completions, rewards.sum(dim=1), ends, explained)
        self._control_kl(kl_of_completions.mean().item())
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_processes)
        self._log_completions(total, kl_of_completions, advantages.sum(dim=1) / mask.sum(dim=1))
        return {**rollout, "advantages": advantages, "returns": returns, "old_values": old_values}

    def _total_scores(self) -> Tensor:
        """The weighted sum of the normalised scores of all processes, `[all processes' B]`."""
        columns = [
            normalization.apply(column)
            for normalization, column in zip(self.normalizations, self._scores.unbind(1), strict=True)
        ]
        return (torch.stack(columns, dim=1) * self.reward_weights.to(self._scores.device)).sum(dim=1)

    def _has_end(self, rollout) -> Tensor:
        """Whether the completions `[B]` end in an end token."""
        last_tokens = self._last_tokens(rollout)
        return torch.isin(last_tokens, torch.tensor(self.eos_token_ids, device=last_tokens.device))

    def _last_tokens(self, rollout) -> Tensor:
        last = rollout["completion_mask"].sum(dim=1, keepdim=True).long() - 1
        return rollout["completion_ids"].gather(1, last).squeeze(1)

    # --- policy, value function and reference: three readings of one base

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **images,
    ):
        """As GRPOTrainer's, and leaves the values of the same states in `self._values`, `[B, T]`.

        Without gradients, a rollout is asked about. In float32 its numbers are taken from the sampling; coarser ones
        depend on how they were read, and updates read all tokens at once.
        """
        if torch.is_grad_enabled() or self._sampled is None or not self._reads_alike():
            reading = self._read(model, input_ids, attention_mask, logits_to_keep, batch_size)
        else:
            reading = _Reading(*(of_length(x, logits_to_keep) for x in self._sampled))
        self._logprobs, self._values = reading.logprobs.detach(), reading.values
        self._entropies = reading.entropies.detach()
        if self.args.value_lora:
            self._values = self._values_of_own_trunk(input_ids, attention_mask, logits_to_keep, batch_size)
        return reading.logprobs, reading.entropies, None

    def _read(self, model, input_ids, attention_mask, length: int, batch_size: int | None) -> _Reading:
        def read(ids: Tensor, attention: Tensor) -> _Reading:
            return self._read_chunk(model, ids, attention, length)

        return _Reading(*self._in_chunks(read, input_ids, attention_mask, batch_size))

    def _in_chunks(self, read, input_ids: Tensor, attention_mask: Tensor, size: int | None) -> list[Tensor]:
        """What `read(ids, mask)` returns of all rows, read in chunks; of one prompt length where padding is seen."""
        readings, order = [], []
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(size or len(input_ids)):
            padding = [0] * len(rows) if self._masks_padding else attention_mask[rows].argmax(dim=1).tolist()
            for part in of_one_length(padding):
                chosen, start = rows[part], padding[part[0]]
                readings.append(read(input_ids[chosen, start:], attention_mask[chosen, start:]))
                order.append(chosen)
        back = torch.cat(order).argsort()
        return [torch.cat(column)[back.to(column[0].device)] for column in zip(*readings, strict=True)]

    def _read_chunk(self, model, input_ids: Tensor, attention_mask: Tensor, length: int) -> _Reading:
        """What the model says of the last `length` tokens, reading only those that are no padding.

        On its way from the trunk to the head, the hidden state is reduced to the states in which those tokens are
        chosen: prompts and padding cost no logits.
        """
        mask, tokens = attention_mask[:, -length:].bool(), input_ids[:, -length:]
        values = []

        def select(module, inputs, output):
            states = states_of_choices(output.last_hidden_state, mask)
            values.append(self._value(states))  # here, inside the forward pass, FSDP has the head's weights together
            output.last_hidden_state = states.unsqueeze(0)
            return output

        with self._trunk.register_forward_hook(select), self.accelerator.autocast():
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                shift_labels=tokens[mask].unsqueeze(0),
                fused_lm_head=True,
            )
        flat = (output.log_probs, output.entropy, values[0])
        return _Reading(*(spread(x.flatten(), mask) for x in flat))

    def _values_of_own_trunk(self, input_ids, attention_mask, length: int, batch_size: int | None) -> Tensor:
        def read(ids: Tensor, attention: Tensor) -> tuple[Tensor]:
            mask = attention[:, -length:].bool()
            hidden = self._trunk(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
            return (spread(self._value(states_of_choices(hidden, mask)), mask),)

        with use_adapter(self.accelerator.unwrap_model(self.model), VALUE), self.accelerator.autocast():
            return self._in_chunks(read, input_ids, attention_mask, batch_size)[0]

    def _value(self, hidden_states: Tensor) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.model.value_head(hidden_states).squeeze(-1)

    def _score_policy(self, rollout) -> None:
        """Set the log-probabilities of the rollout and `self._values`, where GRPOTrainer had no need of them."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            rollout["old_per_token_logps"] = self._get_per_token_logps_and_entropies(
                self.model, *self._sequences(rollout), batch_size=self._forward_batch_size()
            )[0]

    def _reference_logprobs(self, rollout) -> Tensor:
        """The log-probabilities of the sampled tokens under the SFT model, `[B, T]`."""
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            use_adapter(self.accelerator.unwrap_model(self.model), None),
        ):
            return self._read(self.model, *self._sequences(rollout), self._forward_batch_size()).logprobs

    def _compare_readings(self, rollout) -> None:
        """Stop where log-probabilities of one policy depend on how it is read: all that PPO compares would be off.

        A part of the first rollout is read in training and in evaluation mode; and what it was sampled with is beside
        what is read of it at once.

        Raises:
            ValueError: two readings differ by more than rounding.
        """
        self._has_compared = True
        rows = self.args.per_device_train_batch_size
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        part = {name: rollout[name][:rows] for name in names}
        mask, training = part["completion_mask"], self._read_part(part)
        self.model.eval()
        others = {
            "in evaluation mode": (self._read_part(part), "draws noise, or keeps statistics of batches, in training")
        }
        self.model.train()
        if self._sampled is not None:
            sampled = of_length(self._sampled.logprobs[:rows], mask.shape[1])
            others["token by token, with a cache"] = (sampled, "has a cache or positions that depend on the batch")
        allowed = tolerance(self._reading_dtype(), quantised=self._is_quantised())
        for how, (other, why) in others.items():
            total, tokens = self._sum_over_processes(torch.stack(distance(training, other.to(training), mask)))
            if not total / tokens <= allowed:
                raise ValueError(
                    f"the SFT model reads one batch in two ways: log-probabilities in training mode and {how} are "
                    f"{(total / tokens).item():.2g} nats apart per token, expected at most {allowed:g}: PPO cannot "
                    f"train this {self.model.config.model_type} model, which {why}"
                )

    def _read_part(self, rollout) -> Tensor:
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return self._read(self.model, *self._sequences(rollout), None).logprobs

    def _reading_dtype(self) -> torch.dtype:
        """The coarser dtype of the weights' and of autocast's."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        return half or self.model.get_base_model().dtype

    def _is_quantised(self) -> bool:
        return bool(getattr(self.model, "is_quantized", False))

    def _reads_alike(self) -> bool:
        """Whether a token's numbers are the same, but for float32's rounding, however they are read."""
        return self._reading_dtype() == torch.float32 and not self._is_quantised()

    def _sequences(self, rollout) -> tuple[Tensor, Tensor, int]:
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        return ids, mask, rollout["completion_ids"].shape[1]

    def _forward_batch_size(self) -> int:
        training = self.model.training
        return self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size

    # --- updates

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As Trainer's, or nothing where the rest of a rollout's updates is left out."""
        if self._leaves_out_updates and self._step % self.args.steps_per_rollout != 0:
            # No gradient: the optimizer leaves every parameter as it is.
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        """GRPOTrainer's loss of the policy plus `vf_coef` times the loss of the value function."""
        policy_loss = super()._compute_loss(model, inputs)
        loss = value_loss(self._values, inputs["old_values"], inputs["returns"], self.args.value_clip_range)
        total = (loss * inputs["completion_mask"]).sum()
        # The divisor of GRPOTrainer's policy loss: mean tokens of one update on one process. It is the same for every
        # microbatch, so that neither their number nor the number of processes changes the gradient.
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        update_kl = self._log_update(total.detach(), inputs)
        if self.model.training and self.args.max_update_kl is not None:
            self._control_update_kl(update_kl)
        return policy_loss + self.args.vf_coef * total / tokens

    def _control_kl(self, kl: float) -> None:
        """Adapt the KL coefficient to a rollout's KL per completion, and stop the run where that is too large."""
        if self.args.kl_target is not None:
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, self.args.kl_target, self.args.kl_gain)
        if self.args.max_kl is not None and kl > self.args.max_kl:
            self.control.should_training_stop = True

    def _control_update_kl(self, of_minibatch: Tensor) -> None:
        """Leave out the rest of the rollout's updates once the policy is too far from the one that sampled it."""
        self._update_kl.append(of_minibatch)
        if self.accelerator.sync_gradients:  # the last minibatch of an update
            kl, tokens = torch.stack(self._update_kl).sum(dim=0)
            self._leaves_out_updates = bool(kl / tokens > self.args.max_update_kl)
            self._update_kl = []

    # --- evaluations

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As Trainer's, whose completions are kept apart from those of training, and whose numbers are of all rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, dict):  # of which Trainer evaluates one after the other, by its name
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        began, training, logs = time.perf_counter(), self.model.training, self._logs
        self._evaluated_count = len(rows) * self.num_generations_eval if hasattr(rows, "__len__") else None
        self._evaluated_rows, self._evaluated_scores, self._evaluated_prompts = [], [], Counter()
        self._evaluated_as = metric_key_prefix
        self._logs = {name: defaultdict(list) if isinstance(held, dict) else [] for name, held in logs.items()}
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._logs = logs
            self.model.train(training)  # what is logged next is of training
            if self._rollout_began is not None:
                self._rollout_began += time.perf_counter() - began

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Sample and score a batch of an evaluation; `log` has the numbers of all of them."""
        with torch.no_grad():
            self._prepare_inputs(inputs)
        return None, None, None

    def log(self, logs, start_time=None):
        """As GRPOTrainer's, of all updates since the last time as a whole; of an evaluation as a whole."""
        evaluated, writes = not self.model.training and bool(self._evaluated_rows), self.log_completions
        if evaluated:
            logs.update(self._of_evaluation())
            self._metrics["eval"].clear()
        elif self.model.training:
            self._metrics["train"] = of_window(self._metrics["train"])
        self.log_completions = writes and not evaluated and self._rollouts > self._written_rollouts
        try:
            super().log(logs, start_time)
        finally:
            self.log_completions = writes
        if not evaluated:
            self._written_rollouts = self._rollouts
        elif writes and leads():
            name = self._evaluated_as.removeprefix("eval").removeprefix("_")
            folder = Path(self.args.output_dir, FOLDER, name)
            write_completions(folder, self.state.global_step, self._logs, self._evaluated_count)

    def _of_evaluation(self) -> dict[str, float]:
        """The numbers of the evaluation that is done, by their names in the log."""
        # Where the last batch is short on several processes, the first rows are read again to fill it.
        rows, scores = (torch.cat(x)[: self._evaluated_count] for x in (self._evaluated_rows, self._evaluated_scores))
        self._evaluated_rows, self._evaluated_scores, self._evaluated_count = [], [], len(rows)
        names = [model.name for model in self._reward_models]
        whitened = self.args.whiten_advantages
        found = evaluation_metrics(rows, scores, names, vf_coef=self.args.vf_coef, whitened=whitened)
        found |= {"kl_coef": self.kl_coef, "num_tokens": self.state.num_input_tokens_seen, **self._take_counts()}
        return {f"{self._evaluated_as}_{name}": value for name, value in found.items()}

    # --- logs

    def _own_metrics(self) -> dict[str, list[float]]:
        return self._metrics["train" if self.model.training else "eval"]

    def _log_rollout(self, total: Tensor, kl: Tensor, rewards: Tensor, ends: Tensor, explained: Tensor) -> None:
        """Log a rollout: `total` and `kl` of the completions of all processes, `rewards` and `ends` of this one."""
        metrics, gather = self._own_metrics(), self.accelerator.gather
        metrics["reward"][-1], metrics["reward_std"][-1] = total.mean().item(), total.std(correction=1).item()
        metrics["kl"].append(kl.mean().item())
        metrics["kl_coef"].append(self.kl_coef)
        metrics["reward_minus_kl"].append(gather(rewards).mean().item())
        metrics["eos_rate"].append(gather(ends.float()).mean().item())
        metrics["explained_variance"].append(explained.item())
        metrics.pop("frac_reward_zero_std", None)  # speaks of groups of completions, which PPO has not
        for name, count in self._take_counts().items():
            metrics[name].append(float(count))
            self.counted[name] += count

    def _take_counts(self) -> dict[str, int]:
        """How many texts each reward model has cut to its longest input since this was last asked, or strayed on."""
        new = torch.tensor([self._newly_counted[name] for name in self.counted], device=self.accelerator.device)
        self._newly_counted.clear()
        return dict(zip(self.counted, self._sum_over_processes(new).tolist(), strict=True))

    def _counts(self) -> dict[str, int]:
        """What reward models have counted so far, by the names of metrics."""
        found = {}
        for model in self._reward_models:
            found[f"rewards/{model.name}/truncated"] = getattr(model, "truncated", 0)
            if isinstance(model, Generative):
                found[f"rewards/{model.name}/strayed"] = model.strayed
        return found

    def _log_completions(self, total: Tensor, kl: Tensor, advantages: Tensor) -> None:
        """Complete the rows of this rollout in the table of completions; GRPO's advantages are those of groups."""
        gathered = self.accelerator.gather(advantages).tolist()
        for _ in gathered:
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(gathered)
        self._logs["extra"]["reward"].extend(total.tolist())
        self._logs["extra"]["kl"].extend(kl.tolist())

    def _log_update(self, value_loss_sum: Tensor, inputs) -> Tensor:
        """Log one minibatch of all processes; returns its KL to the policy that sampled it, as (sum, tokens)."""
        mask = inputs["completion_mask"]
        moved = (self._values.detach() - inputs["old_values"]).abs() > self.args.value_clip_range
        update_kl = kl_estimate(inputs["old_per_token_logps"], self._logprobs, "k3")
        local = torch.stack([value_loss_sum, *((x * mask).sum() for x in (moved, update_kl)), mask.sum()])
        sums = self._sum_over_processes(local.float())
        names = ("value_loss", "value_clip_ratio", "update_kl", TOKENS)
        for name, x in zip(names, (*(sums[:3] / sums[3]), sums[3]), strict=True):
            self._own_metrics()[name].append(x.item())
        return sums[2:]

    def _log_speed(self) -> None:
        """Log generated tokens per second of a whole rollout, from its first prompt to its last update."""
        now = time.perf_counter()
        if self._rollout_began is not None:
            speed = self._rollout_tokens / (now - self._rollout_began)
            self._metrics["train"]["tokens_per_second"].append(speed)
        self._rollout_began = now

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    # --- files

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            # Under sharding only the state that Trainer gathered is whole.
            state = state_dict or {f"value_head.{k}": v for k, v in self.model.value_head.state_dict().items()}
            head = {
                k.removeprefix("value_head."): v.contiguous() for k, v in state.items() if k.startswith("value_head.")
            }
            save_file(head, str(folder / VALUE_HEAD))
            scales = [normalization.to_dict() for normalization in self.normalizations]
            own = {
                "kl_coef": self.kl_coef,
                "rollouts": self._rollouts,
                "rollout_ends": self._rollout_ends,
                "normalizations": scales,
                "counted": self.counted,
            }
            (folder / STATE).write_text(json.dumps(own) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.value_lora:  # beside an adapter in a folder of its own, transformers 5.16 forgets the policy's
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
        self._train_value_function()
        state = load_file(str(Path(resume_from_checkpoint) / VALUE_HEAD))
        # Under FSDP2 a process keeps a part of the head: torch takes it from the whole.
        set_model_state_dict(self.model.value_head, state, options=StateDictOptions(full_state_dict=True))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # Read here: DeepSpeed loads the weights by itself, and not by the method above.
            state = json.loads((Path(checkpoint) / STATE).read_text())
            ends = state.get("rollout_ends", 0)  # earlier runs did not say it
            check_between_rollouts(checkpoint, self.args.updates_per_rollout, self.state.max_steps, ends)
            self.kl_coef, self._rollouts, self.counted = state["kl_coef"], state["rollouts"], state["counted"]
            self._written_rollouts = self._rollouts
            scales = [normalization.to_dict() for normalization in self.normalizations]
            if state["normalizations"] != scales:
                raise ValueError(
                    f"the scales of the rewards are {scales}, but {checkpoint} was trained on "
                    f"{state['normalizations']}: restore normalization.json of the run, or start again with --overwrite"
                )


def _keep_float32(fsdp_plugin) -> None:
    """Leave what a module returns in its own dtype: in bfloat16, log-probabilities are too coarse for ratios and KL."""
    if fsdp_plugin.fsdp_version != 2:
        raise ValueError("PPO runs under FSDP2 only: set fsdp_version: 2, as in configs/accelerate/fsdp.yaml")
    if (policy := fsdp_plugin.mixed_precision_policy) is not None:
        own = dataclasses.replace(policy, output_dtype=None, reduce_dtype=torch.float32)
        fsdp_plugin.mixed_precision_policy = own
