"""Plans of the stages that train: sft, reward, ppo."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import TrainingArguments
from trl import ModelConfig

from reward_models.conversation import CHAT
from rlhf_lines import skeleton
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import TrainingDataConfig
from rlhf_lines.limits import check_length
from rlhf_lines.merge.inputs.checkpoint import holds_weights
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.models import lora_config
from rlhf_lines.plan import counts
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.device import planned_device
from rlhf_lines.plan.example import show_demonstration, show_pair, show_prompts
from rlhf_lines.plan.memory import Phase, cache_sizes, gumbel_bytes, head_bytes, kv_cache_bytes, optimizer_bytes
from rlhf_lines.plan.plan import Options, Plan
from rlhf_lines.plan.rehearsal import Rehearsal, checkpoint
from rlhf_lines.plan.rewards import RewardPlan, plan_rewards
from rlhf_lines.plan.rows import Rows, completion_lengths, look_at
from rlhf_lines.plan.shapes import find_shape
from rlhf_lines.plan.time import Tokens, padded
from rlhf_lines.plan.timing import (
    EVALUATION,
    STARTING,
    WORDS_AT_ONCE,
    Rollouts,
    functions,
    judged,
    sampled,
    scored,
    supposed,
    tell_time,
)
from rlhf_lines.plan.trial import Trial, shortened, updating
from rlhf_lines.task_rewards import check_names, reward_weights
from rlhf_lines.train.adapted import check_4bit, check_adapted, check_fits
from rlhf_lines.train.checkpoints import choose_checkpoint
from rlhf_lines.train.config import RewardsConfig, RewardTextConfig
from rlhf_lines.train.layerwise import check_depth, freeze_first_layers, without_first_layers
from rlhf_lines.train.lora import add_in_place
from rlhf_lines.train.ppo_config import PPOConfig
from rlhf_lines.train.ppo_trainer import HEAD_TILE
from rlhf_lines.train.progress import describe_chosen
from rlhf_lines.train.reward import check_labels
from rlhf_lines.train.settings import LayerwiseSettings, check_model
from rlhf_lines.train.sft import ADAPTER


def plan_sft(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of supervised fine-tuning; the merge of the adapter after it takes a few buffers and no phase."""
    run = _Training(configs, given, beside, options, kind="causal")
    kind, columns = ("text", (("text",),)) if run.args.packing else ("demonstrations", (("prompt", "completion"),))
    rows = run.look_at(kind, columns)
    length = run.length(rows, filled=run.args.packing)
    if run.peft_config is not None:
        run.check_adapter("sft")
        names = [name for name, _ in skeleton.causal_lm(run.shape.config).named_parameters()]
        layer_indices(names, num_layers=run.shape.config.get_text_config().num_hidden_layers)
    batch = run.args.per_device_train_batch_size
    plan = run.plan("sft")
    show_demonstration(plan, rows)
    plan.phases.append(run.update_phase(batch, length, head=batch * (length - 1)))
    if run.peft_config is not None:
        plan.disk["merged model"] = run.dense_bytes
    updates = _add_work(plan, run, rows, batch, length)
    run.tell_time(plan, updates, partial(_add_time, plan, run, rows, batch=batch, length=length, judges=True))
    return plan


def plan_reward(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of a reward model: chosen and rejected texts go through the model in one batch."""
    run = _Training(configs, given, beside, options, kind="classifier")
    columns = (("prompt", "chosen"), ("prompt", "rejected"))
    text_config = of_type(configs, RewardTextConfig)
    rows = run.look_at("preferences", columns, with_turns=text_config.template == CHAT)
    length = run.length(rows)
    batch = run.args.per_device_train_batch_size
    plan = run.plan("reward")
    show_pair(plan, rows, text_config, run.shape.config)
    plan.phases.append(run.update_phase(2 * batch, length, head=0))
    updates = _add_work(plan, run, rows, batch, length)
    run.tell_time(plan, updates, partial(_add_time, plan, run, rows, batch=2 * batch, length=length, judges=False))
    return plan


def plan_ppo(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of PPO: rollouts, their scores and log-probabilities, and updates.

    Completions are sampled `sampling_batch_size` at a time, or all at once; everything after that goes by
    `per_device_train_batch_size`.
    """
    run = _Training(configs, given, beside, options, kind="causal")
    args = run.args
    rows = run.look_at("prompts", (("prompt",),))
    args.fit(rows.count)
    rollout = args.per_device_train_batch_size * args.steps_per_generation
    prompts = args.generation_batch_size // args.num_generations
    args.check_run(has_lora=run.peft_config is not None, prompts=rows.count)
    run.check_adapter("ppo")
    if rows.known:
        check_length(run.shape.config, rows.longest, max_completion_length=args.max_completion_length)
    entries = of_type(configs, RewardsConfig).rewards
    reward_weights(entries, args.reward_weights)  # which refuses what does not fit
    rewards = plan_rewards(entries, beside=beside)
    check_names(names := [reward.name for reward in rewards])
    args.check_metric(names)
    batch, length = args.per_device_train_batch_size, rows.longest + args.max_completion_length
    plan = run.plan("ppo")
    show_prompts(plan, rows, rewards)
    plan.models += [(f"reward {reward.name}", reward.source) for reward in rewards]
    scorers = sum(reward.weights for reward in rewards)
    held = {**run.held(), "reward models": scorers}
    config = run.shape.config.get_text_config()
    at_once = min(args.sampling_batch_size or rollout, rollout)
    cache, per_layer = run.kv_cache(at_once, length)
    prompt_cache, _ = run.kv_cache(at_once, rows.longest)
    prefill = max(0, run.rehearsal().forward(at_once, rows.longest, use_cache=True) - prompt_cache)
    # A step of generation lengthens the cache of one layer by copying it.
    working = max(prefill, per_layer + gumbel_bytes(at_once, config.vocab_size)) + run.unpacked
    plan.phases.append(Phase("generation", {**held, "KV cache": cache, "activations": working}))
    scoring = max((reward.forward(rollout, length) for reward in rewards), default=0)
    plan.phases.append(Phase("scoring", {**held, "activations": scoring}))
    # Prompts and padding cost no logits.
    positions = batch * args.max_completion_length
    head = run.head(positions, backward=False)
    passes = run.rehearsal().forward(batch, length) + run.unpacked
    plan.phases.append(Phase("log-probabilities", {**held, "activations": passes, "logits": head}))
    update = run.update_phase(batch, length, head=positions)
    plan.phases.append(replace(update, parts={**update.parts, "reward models": scorers}))
    updates, samples = _add_ppo_work(plan, run, rows, rollout, prompts), 0
    if any(entry.normalize for entry in entries):
        samples = min(args.normalization_samples, rows.count or args.normalization_samples)
        most = f"at most {samples * args.max_completion_length:,} tokens"
        plan.work.append(("completions to normalise rewards on", f"{samples:,}, {most}"))
    sampling = {"rollout": rollout, "at_once": at_once, "samples": samples}
    run.tell_time(plan, updates, partial(_add_ppo_time, plan, run, rows, rewards, **sampling))
    return plan


class _Training:
    """What the three stages have in common: the model without weights, and what is held all the time."""

    def __init__(self, configs: dict, given: dict, beside: Path | None, options: Options, *, kind: str) -> None:
        self.args = of_type(configs, TrainingArguments)
        self.model_config = of_type(configs, ModelConfig)
        self.data = of_type(configs, TrainingDataConfig)
        self.is_ppo = isinstance(self.args, PPOConfig)
        self.options = options
        check_model(self.model_config, given, causal=kind == "causal")
        trained = ADAPTER if kind == "causal" and self.model_config.use_peft and not self.is_ppo else "."
        choose_checkpoint(self.args, of_type(configs, RunConfig), given, trained=trained)
        name = self.model_config.model_name_or_path
        if not name:
            raise ValueError("no model was given: set model_name_or_path to a folder or a Hub id")
        self.shape = find_shape(name, beside=beside, base_model=options.base_model)
        self.peft_config = lora_config(self.model_config, self.shape.config.model_type)
        if kind == "classifier":
            check_labels(self.shape.config, self.args, name)
            self.shape.config.num_labels = 1
            if self.peft_config is not None:
                self.peft_config.task_type = "SEQ_CLS"
        wanted = self.model_config
        self.bits, nested = counts.held_as(
            self.shape.config,
            load_in_4bit=wanted.load_in_4bit,
            load_in_8bit=wanted.load_in_8bit,
            nested=wanted.use_bnb_nested_quant,
        )
        self._make = skeleton.causal_lm if kind == "causal" else skeleton.classifier
        base = self._base(self.shape.config)
        self.parameters, self.dense_bytes = counts.count(base), sum(p.nbytes for p in base.parameters())
        self.model = self._adapted(base)
        self.device = planned_device(
            options.device,
            lambda: check_4bit(self.model, wanted, self.args),
            use_cpu=bool(given.get("use_cpu")),
            needs_gpu=self.args.fp16 or getattr(self.args, "use_vllm", False),
        )
        if self.device == "cpu":
            check_4bit(self.model, wanted, self.args)
        self.hidden = self.shape.config.get_text_config().hidden_size
        copies = 2 if self.is_ppo and self.args.value_lora else 1  # the value's own adapter is as large
        value = self.hidden + 1 if self.is_ppo else 0
        self.trainable = copies * counts.count(self.model, trainable=True) + value
        self.trainable_bytes = copies * counts.trainable_bytes(self.model) + 4 * value
        self.adapter_copies = copies
        self.weights = counts.frozen_bytes(self.model, bits=self.bits, nested=nested, device=self.device)
        self.unpacked = counts.largest_quantised(self.model, bits=self.bits)
        if self.peft_config is not None and self.trainable == value:
            raise ValueError(f"lora_target_modules {self.model_config.lora_target_modules!r} leave nothing to train")
        self._rehearsal: Rehearsal | None = None

    def check_adapter(self, stage: str) -> None:
        """As the stage itself does before it trains; names in files only where the files are here."""
        check_adapted(self.model, self.model_config, stage=stage)
        folder = Path(self.model_config.model_name_or_path)
        if holds_weights(folder):
            check_fits(self.model, folder, stage=stage)

    def plan(self, stage: str) -> Plan:
        plan = Plan(stage, self.device, self.parameters, self.trainable)
        plan.models.append((self.model_config.model_name_or_path, self.shape.source))
        held, computed = str(self._dtype()).removeprefix("torch."), self._autocast()
        mixed = f", {str(computed).removeprefix('torch.')} in forward and backward passes" if computed else ""
        plan.work.append(("numbers", f"{held}{mixed}"))
        chosen = describe_chosen(self.args, self.model_config, self.model)
        if chosen:
            plan.notes.append(f"chosen, because not given: {chosen}")
        plan.notes += self.args.without_effect
        return plan

    def look_at(self, kind: str, columns, *, with_turns: bool = False) -> Rows:
        return look_at(
            self.data,
            kind,
            columns=columns,
            tokenizer_from=self.model_config.model_name_or_path,
            given=self.options.prompt_tokens,
            chat_template_kwargs=self.args.chat_template_kwargs if self.is_ppo else None,
            with_turns=with_turns,
        )

    def length(self, rows: Rows, *, filled: bool = False) -> int:
        """The tokens of the longest sequence, which `max_length` bounds, and sets where nothing is known."""
        limit = self.args.max_length
        unknown = rows.count is None and self.options.prompt_tokens is None
        return limit if limit and (filled or unknown) else min(limit or rows.longest, rows.longest)

    def held(self) -> dict[str, int]:
        """What every phase holds from the first update on."""
        trained = "adapters" if self.peft_config is not None else "trained weights"
        optimizer = str(getattr(self.args.optim, "value", self.args.optim))
        state = optimizer_bytes(self.trainable, self.trainable_bytes, optimizer)
        return {"weights": self.weights, trained: self.trainable_bytes, "optimizer": state}

    def update_phase(self, batch: int, length: int, *, head: int) -> Phase:
        """The phase that trains on a microbatch, of which `head` positions go through the output head."""
        step = self.rehearsal().step(batch, length, checkpointing=self._checkpointing())
        kept = step.kept * self.adapter_copies  # a second adapter has a forward pass of its own
        logits = self.head(head, backward=True) if head else 0
        # Logits come when all activations are there; the backward pass of the layers, when the logits are gone.
        beside = max(step.forward, step.backward) + self.unpacked
        parts = {**self.held(), "gradients": self.trainable_bytes, "activations": kept}
        return Phase("update", {**parts, "logits": logits, "working memory": max(0, beside - logits)})

    def head(self, positions: int, *, backward: bool) -> int:
        config = self.shape.config.get_text_config()
        size = 2 if self._autocast() is not None else self._dtype().itemsize
        on = {"compute_bytes": size, "kernel": self.device == "cuda"}
        return head_bytes(positions, config.vocab_size, self.hidden, **on, backward=backward)

    def kv_cache(self, batch: int, length: int) -> tuple[int, int]:
        """The bytes of the cache, and those of one layer's."""
        sizes = cache_sizes(self.shape.config.get_text_config())
        size = kv_cache_bytes(**sizes, length=length, batch=batch, dtype_bytes=self._dtype().itemsize)
        return size, size // sizes["layers"]

    def rehearsal(self) -> Rehearsal:
        """The one of this model, whose passes come before its step."""
        if self._rehearsal is None:
            self._rehearsal = Rehearsal(self.model, autocast=self._autocast())
        return self._rehearsal

    def trial(self) -> Trial:
        """Models of few layers of this one, adapted and read as the stage does it; no layer is frozen."""

        def make(depth: int):
            model = self._adapted(self._base(shortened(self.shape.config, depth)), frozen=0)
            if self.is_ppo:
                add_in_place(model)
            if (settings := self._checkpointing()) is not None:
                checkpoint(model, settings)
            return model

        layers = self.shape.config.get_text_config().num_hidden_layers
        return Trial(make, layers, device=self.device, autocast=self._autocast())

    def tell_time(self, plan: Plan, updates: int | None, add: Callable[[int], None]) -> None:
        """Let `add` put the seconds of so many updates into the plan, if they are asked for and can be told."""
        why_not = "the number of updates is not known" if updates is None else None
        if self.options.timed:
            tell_time(plan, lambda: add(updates), bits=self.bits, why_not=why_not)

    def _checkpointing(self) -> dict | None:
        if not self.args.gradient_checkpointing:
            return None
        return self.args.gradient_checkpointing_kwargs or {"use_reentrant": False}

    def _base(self, config):
        return self._make(config, dtype=self.model_config.dtype, attention=self.model_config.attn_implementation)

    def _adapted(self, model, *, frozen: int | None = None):
        """The model as the stage trains it, with its adapter or frozen layers."""
        if frozen is None:
            frozen = 0
            if isinstance(self.args, LayerwiseSettings):
                frozen = self.args.frozen_layers
                check_depth(model, policy=self.args.layer_learning_rates, frozen=frozen)
        if self.peft_config is None:
            freeze_first_layers(model, frozen)
            return model
        # A copy: PEFT puts the names of this model's modules in place of all-linear.
        model = skeleton.adapt(model, without_first_layers(copy.deepcopy(self.peft_config), model, frozen))
        if self.bits in (4, 8):  # as TRL does
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        return model

    def _dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters())

    @property
    def computed(self) -> torch.dtype:
        """In which dtype passes compute."""
        return self._autocast() or self._dtype()

    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None


def _add_work(plan: Plan, run: _Training, rows: Rows, batch: int, length: int) -> int | None:
    """Say how much work there is, and return the number of updates, or None where it is not known."""
    args = run.args
    updates = args.max_steps if args.max_steps > 0 else None
    count = rows.count
    if getattr(args, "packing", False):
        count = math.ceil(rows.count * statistics.mean(rows.lengths) / length) if rows.lengths else None
    if updates is None and count is not None:
        batches = math.ceil(count / batch)
        updates = math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)
    plan.work.append(("rows", _count(rows)))
    plan.work.append(("sequences of one update", f"{batch * args.gradient_accumulation_steps:,}"))
    plan.work.append(
        ("tokens of the longest sequence", f"{length:,} ({'max_length' if length == args.max_length else rows.source})")
    )
    plan.work.append(("updates", f"{updates:,}" if updates is not None else "not known before the rows are read"))
    _add_disk(plan, run, updates)
    return updates


def _add_time(plan: Plan, run: _Training, rows: Rows, updates: int, *, batch: int, length: int, judges: bool) -> None:
    """Tell the time of updates of microbatches of so many texts, whose tokens are all judged by the head, or none."""
    if rows.lengths and not getattr(run.args, "packing", False):
        length = min(length, math.ceil(padded(rows.lengths, batch)))
    texts = Tokens(batch * run.args.gradient_accumulation_steps * updates, length)
    trial = run.trial()
    positions = texts.count if judges else 0
    learned = judged(trial, texts, positions, tile=WORDS_AT_ONCE, learns=True)
    plan.seconds["updates"] = learned + updates * trial.seconds(updating)
    plan.untimed += [STARTING, EVALUATION]


def _add_ppo_time(
    plan: Plan,
    run: _Training,
    rows: Rows,
    rewards: Sequence[RewardPlan],
    updates: int,
    *,
    rollout: int,
    at_once: int,
    samples: int,
) -> None:
    """Tell the time of rollouts, their scores and readings, and of updates, and that of samples to normalise on."""
    args, trial, lengths = run.args, run.trial(), completion_lengths(run.data, rows.tokenizer)
    microbatches = updates * args.gradient_accumulation_steps
    completions = math.ceil(microbatches / (args.num_iterations * args.steps_per_generation)) * rollout
    prompt = min(rows.longest, math.ceil(padded(rows.lengths, rollout))) if rows.lengths else rows.longest
    most = args.max_completion_length
    wanted = Rollouts.of(completions + samples, at_once, prompt, most, lengths)
    read = Rollouts.of(completions, rollout, prompt, most, lengths)
    learned = Rollouts.of(microbatches * args.per_device_train_batch_size, rollout, prompt, most, lengths)
    # The reference reads completions; so does the policy, where its sampling is too coarse, and the value's own trunk.
    readings = 1 + (run.computed != torch.float32) + args.value_lora
    passes = partial(judged, trial, tile=HEAD_TILE)
    plan.seconds |= {
        "sampling": sampled(trial, wanted),
        "scores": scored(rewards, wanted.texts, device=run.device),
        "log-probabilities": readings * passes(read.texts, read.tokens),
        "updates": run.adapter_copies * passes(learned.texts, learned.tokens, learns=True)
        + updates * trial.seconds(updating),
    }
    plan.notes.append(supposed(wanted, lengths))
    plan.untimed += [STARTING, EVALUATION, *functions(rewards)]


def _count(rows: Rows) -> str:
    return f"{rows.count:,}" if rows.count is not None else "not known: the data set is not here"


def _add_ppo_work(plan: Plan, run: _Training, rows: Rows, rollout: int, prompts: int) -> int | None:
    """Say how much work there is, and return the number of updates, or None where it is not known."""
    args = run.args
    of_rollout = args.num_iterations * args.steps_per_generation / args.gradient_accumulation_steps
    if args.max_steps > 0:
        updates = args.max_steps
    elif rows.count is not None:
        updates = math.ceil(rows.count // prompts * of_rollout * args.num_train_epochs)
    else:
        updates = None
    plan.work.append(("prompts", _count(rows)))
    plan.work.append(("tokens of the longest prompt", f"{rows.longest:,} ({rows.source})"))
    plan.work.append(("updates of one rollout", f"{of_rollout:g}"))
    if updates is None:
        plan.work.append(("updates", "not known before the prompts are read"))
    else:
        rollouts = math.ceil(updates / of_rollout)
        completions = rollouts * args.generation_batch_size
        plan.work.append(("updates", f"{updates:,}"))
        plan.work.append(("rollouts", f"{rollouts:,} of {args.generation_batch_size:,} completions"))
        plan.work.append(("completions to generate", f"{completions:,}"))
        plan.work.append(("tokens to generate", f"at most {completions * args.max_completion_length:,}"))
    _add_disk(plan, run, updates)
    return updates


def _add_disk(plan: Plan, run: _Training, updates: int | None) -> None:
    args = run.args
    saved = run.trainable_bytes if run.peft_config is not None else run.dense_bytes
    plan.disk["adapter" if run.peft_config is not None else "model"] = saved
    if args.save_strategy != "steps" or updates is None:
        return
    steps = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(args.save_steps * updates))
    count = updates // int(steps)
    kept = min(count, args.save_total_limit) if args.save_total_limit else count
    state = 0 if args.save_only_model else run.held()["optimizer"]
    plan.disk[f"checkpoints, {kept:,} at a time"] = kept * (saved + state)
