"""The plan of a sweep: one base and all adapters in memory, batches of any specs, all reward models."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from rlhf_lines import skeleton
from rlhf_lines.data.config import DataConfig
from rlhf_lines.errors import Problems
from rlhf_lines.limits import check_length
from rlhf_lines.merge.audit import audit_policies
from rlhf_lines.merge.inputs.adapter import is_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.outliers import unlike_policies
from rlhf_lines.plan import counts
from rlhf_lines.plan.adapters import AdapterSizes, adapter_sizes, changed, stacked
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.device import planned_device
from rlhf_lines.plan.example import show_prompts
from rlhf_lines.plan.memory import FLOAT32, Phase, cache_sizes, gumbel_bytes, kv_cache_bytes
from rlhf_lines.plan.plan import Options, Plan
from rlhf_lines.plan.rehearsal import Rehearsal
from rlhf_lines.plan.rewards import RewardPlan, plan_rewards
from rlhf_lines.plan.rows import Rows, completion_lengths, look_at, look_at_texts
from rlhf_lines.plan.shapes import Shape, find_shape
from rlhf_lines.plan.time import Tokens
from rlhf_lines.plan.timing import (
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
from rlhf_lines.plan.trial import Trial, shortened
from rlhf_lines.reading import AT_ONCE
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.choices import profile_problems
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.batches import free_bytes, most_rows, rows_that_fit
from rlhf_lines.sweep.engines.prefix_tree import MOST_NODES
from rlhf_lines.sweep.engines.sampling import rows_of_pass
from rlhf_lines.sweep.engines.vllm_arguments import INSTEAD, check_dtype
from rlhf_lines.sweep.forgetting import CHUNK
from rlhf_lines.sweep.groups import LINES, REVERSED, SCALED, SOUP, first_weights, simplex
from rlhf_lines.sweep.inputs import REWARD_BATCH, check_count, checked_objectives, prompt_counts
from rlhf_lines.sweep.reuse import check_sampling


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BYTES_PER_COMPLETION = 600  # a row of the run store: text, numbers and index, for completions of about 50 tokens
BYTES_PER_NLL = 30  # a row of a text outside the task under a spec
USUAL_GPU = 80 * 10**9  # bytes, where a GPU is planned for and none is here


def plan_sweep(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of a sweep; of engine vllm, that of the local engine with notes on what differs."""
    config = of_type(configs, SweepConfig)
    if config.reuse is not None:
        check_sampling(config.reuse, config.sampling, config.output_dir)

    def work(prompts: Mapping[str, int], texts: int) -> Work:
        of_splits = {f"{split}_prompts": count for split, count in prompts.items()}
        return _work(replace(config, **of_splits, control_texts=texts))

    data, asked = of_type(configs, DataConfig), prompt_counts(config)
    plan = plan_completions("sweep", config, data, asked, work, beside, options)
    plan.notes += config.without_effect
    return plan


def plan_completions(
    stage: str,
    config: SweepConfig,
    data: DataConfig,
    asked: Mapping[str, int],
    work_of: Callable[[Mapping[str, int], int], Work],
    beside: Path | None,
    options: Options,
) -> Plan:
    """The plan of a stage that samples many specs from one loaded base, and scores them.

    Args:
        stage: the verb.
        config: of a sweep with the same models, rewards and settings of sampling.
        data: where prompts come from.
        asked: how many prompts are asked for, by split; the last split is what is shown.
        work_of: from how many there are, and how many control texts, to what is done with them.
        beside: the folder of the config.
        options: what is asked beside it.
    """
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters, unlike = _look_at_policies(config, shape, beside)
    rows_of, prompts, notes = _look_at_prompts(data, config, asked, options)
    shown = rows_of[list(prompts)[-1]]
    texts = look_at_texts(config.control, config.control_texts, config.control_tokens, shown.tokenizer)
    if texts is not None:
        config = replace(config, control_texts=len(texts))
    rows = max(rows_of.values(), key=lambda rows: rows.longest)
    if rows.known:
        check_length(shape.config, rows.longest, max_new_tokens=config.max_new_tokens)
    rewards = plan_rewards(config.rewards, beside=beside, batch_size=config.batch_size or REWARD_BATCH)
    checked_objectives(config, [reward.name for reward in rewards])
    bits, nested = counts.held_as(shape.config, load_in_4bit=config.load_in_4bit, load_in_8bit=config.load_in_8bit)
    model = skeleton.causal_lm(shape.config, dtype=config.dtype).requires_grad_(False)
    check_cpu = partial(skeleton.check_4bit_on_cpu, model) if config.load_in_4bit else lambda: None
    by_vllm = config.engine == "vllm"
    device = planned_device(options.device, check_cpu, needs_gpu=by_vllm and config.dtype != "float32")
    if by_vllm:
        check_dtype(config.dtype, cpu=device == "cpu", instead=INSTEAD)
    plan = Plan(stage, device, counts.count(model), notes=notes)
    plan.models.append((config.sft_model, shape.source))
    plan.models += [(policy, adapter.source) for policy, adapter in zip(config.listed_policies, adapters, strict=True)]
    plan.models += [(f"reward {reward.name}", reward.source) for reward in rewards]
    show_prompts(plan, shown, rewards)
    if device == "cpu":
        check_cpu()
    held = {
        "weights": counts.frozen_bytes(model, bits=bits, nested=nested, device=plan.device),
        "adapters": (stacked(adapters) + _exclusive_parts(config, adapters)) * model.dtype.itemsize,
        "reward models": sum(reward.weights for reward in rewards),
    }
    if any(not entry.is_linear for entry in config.groups):
        names = changed(adapters)
        held["merged weights of one spec"] = sum(p.nbytes for name, p in model.named_parameters() if name in names)
    batch = _batch(plan, config, shape.config.get_text_config(), rows.longest, held=sum(held.values()))
    unpacked = counts.largest_quantised(model, bits=bits)
    _add_memory(plan, config, shape, model, held=held, batch=batch, longest=rows.longest, unpacked=unpacked)
    scoring = max((reward.forward(batch, rows.longest + config.max_new_tokens) for reward in rewards), default=0)
    plan.phases.append(Phase("scoring", {**held, "activations": scoring}))
    work = work_of(prompts, config.control_texts)
    _add_work(plan, config, work, rows, batch, adapters, model.dtype.itemsize)
    plan.notes += unlike
    if options.timed:
        mean = statistics.mean([n for found in rows_of.values() for n in found.lengths] or [rows.longest])
        lengths = completion_lengths(data, rows.tokenizer)
        prompt = min(rows.longest, math.ceil(mean))
        rollouts = Rollouts.of(work.completions, batch, prompt, config.max_new_tokens, lengths)
        why_not = "vLLM has kernels of its own" if config.engine == "vllm" else None
        add = partial(_add_time, plan, config, shape, adapters, rewards, rollouts, work, texts)
        tell_time(plan, add, bits=bits, why_not=why_not)
        if plan.seconds:
            plan.notes.append(supposed(rollouts, lengths))
    return plan


def _look_at_policies(config: SweepConfig, shape: Shape, beside: Path | None) -> tuple[list[AdapterSizes], list[str]]:
    """The sizes of all policies, and what is to be said of those that are unlike.

    Raises:
        ValueError: one is dense, or does not fit, or factors of a group are of another number of layers.
    """
    sft, policies = Path(config.sft_model), config.listed_policies
    adapters = [adapter_sizes(policy, shape, beside) for policy in policies]
    for policy, adapter in zip(policies, adapters, strict=True):
        if adapter.count is None:
            raise ValueError(f"policy {policy} is a dense checkpoint, and a sweep mixes adapters")
    num_layers, unlike = shape.config.get_text_config().num_hidden_layers, []
    if any(sft.glob("model*.safetensors*")) and all(map(is_adapter, policies)):
        folders = [Path(policy) for policy in policies]
        loaded = load_policies(folders, sft, sft_renamed=config.sft_renamed, quantise=config.quantized)
        with Checkpoint(sft) as checkpoint:
            num_layers = checkpoint.num_layers([module for policy in loaded for module in policy.modules])
        unlike = unlike_policies(audit_policies(loaded, num_layers=num_layers))
    Problems(profile_problems(config.groups, num_layers=num_layers)).check()
    return adapters, unlike


def _look_at_prompts(
    data: DataConfig, config: SweepConfig, asked: Mapping[str, int], options: Options
) -> tuple[dict[str, Rows], dict[str, int], list[str]]:
    """By split the prompts, and how many of those that are asked for there are; and a note on each that has few."""
    rows_of, prompts, notes = {}, dict(asked), []
    for split, count in asked.items():
        settings = {"columns": (("prompt",),), "tokenizer_from": config.sft_model, "given": options.prompt_tokens}
        rows_of[split] = look_at(data, "prompts", split=split, **settings)
        if (found := rows_of[split].prompts) is not None:
            notes += filter(None, [check_count(found, count, split, data.dataset_name)])
            prompts[split] = min(count, found)
    return rows_of, prompts, notes


def _add_memory(
    plan: Plan,
    config: SweepConfig,
    shape: Shape,
    model: PreTrainedModel,
    *,
    held: Mapping[str, int],
    batch: int,
    longest: int,
    unpacked: int,
) -> None:
    """Tell the memory of generation, and of the passes over tokens that are given.

    Args:
        plan: that is told.
        config: of a sweep.
        shape: of the SFT model.
        model: it, without weights.
        held: bytes of what stays in memory.
        batch: completions of one batch.
        longest: tokens of the longest prompt.
        unpacked: bytes of the largest matrix, of a quantised model.
    """
    text, size, length = shape.config.get_text_config(), model.dtype.itemsize, longest + config.max_new_tokens
    of_length = kv_cache_bytes(**cache_sizes(text), length=1, batch=batch, dtype_bytes=size)
    # Prompts are read a few at a time on a CPU.
    few = batch if plan.device != "cpu" else min(batch, max(1, AT_ONCE // longest))
    prefill = Rehearsal(model).forward(few, longest, use_cache=True) - of_length * longest * few // batch
    generating = max(prefill + unpacked, gumbel_bytes(batch, text.vocab_size))
    plan.phases.append(Phase("generation", {**held, "KV cache": of_length * length, "activations": generating}))

    def reading(name: str, most: int, length: int, judged: int, *, of_one_tree: int = 0) -> Phase:
        """The pass over given tokens of which some are judged."""
        few = min(most, rows_of_pass(text.vocab_size, plan.device, length, judged))
        logits = max(few * (judged + 1), of_one_tree) * text.vocab_size * (size + 3 * FLOAT32)
        passes = Rehearsal(skeleton.causal_lm(shape.config, dtype=config.dtype)).forward(few, length)
        return Phase(name, {**held, "activations": passes + unpacked, "logits": logits})

    tree = min(MOST_NODES, batch * config.max_new_tokens)  # completions of one prompt are read together
    plan.phases.append(reading("reference", batch, length, config.max_new_tokens, of_one_tree=tree))
    if config.control:
        plan.phases.append(reading("control texts", CHUNK, config.control_tokens, config.control_tokens - 1))


def _batch(plan: Plan, config: SweepConfig, text: PreTrainedConfig, longest: int, *, held: int) -> int:
    """The completions in one batch: as given, or as the sweep would find it from this machine's memory."""
    if config.batch_size is not None:
        return config.batch_size
    elsewhere = plan.device == "cuda" and not torch.cuda.is_available()
    free = max((USUAL_GPU if elsewhere else free_bytes(torch.device(plan.device))) - held, 0)
    length = longest + config.max_new_tokens
    rows = rows_that_fit(text, length, getattr(torch, config.dtype).itemsize, free=free, device=plan.device)
    most = "" if rows < most_rows(text, plan.device) else f", and at most {rows:,} for a model of this size"
    where = f"of a GPU of {USUAL_GPU // 10**9} GB (none is here)" if elsewhere else "that is free here"
    plan.notes.append(
        f"batch_size is left out: {rows:,} rows of the longest prompt, by the memory {where}, "
        f"{free / 2**30:,.1f} GiB beside the models{most}"
    )
    return rows


def _exclusive_parts(config: SweepConfig, adapters: Sequence[AdapterSizes]) -> int:
    """The numbers of the exclusive parts of the merged policies, of every rank that a group with a router has."""
    policies = adapters[: len(config.policies)]
    options = [entry.options for entry in config.groups if entry.router is not None]
    ranks = {(one["rank"], one.get("shared")) for one in options if one.get("rank") is not None}
    most = sum(adapter.rank for adapter in policies)
    return sum(stacked(policies, len(policies) * min(rank, most)) for rank, _ in ranks)


def _validation_points(config: SweepConfig) -> tuple[int, int]:
    """How many points there are to choose from, with all that may come beyond an edge, and without."""
    if not config.chooses:
        return 0, 0
    weights = len(simplex(len(config.policies), config.validation_weights))
    least = sum(config.merge_counts.values()) * weights + 1 + len(config.policies)
    least += config.search_points if config.searches else 0
    return least + config.most_extensions * weights, least


class Work(NamedTuple):
    """What a stage does at most.

    Attributes:
        points: how many there are, in words.
        completions: that it makes.
        together: the number of specs that share a prompt, and its noise, in most batches.
        texts: that are read outside the task.
        alone: specs that are merged one by one.
        mixed: how many specs there are by the places of the policies that they mix, whose weight is not 0; each is
            counted once, of a sweep.
    """

    points: str
    completions: int
    together: int
    texts: int = 0
    alone: int = 0
    mixed: Mapping[tuple[int, ...], int] = MappingProxyType({})


def _work(config: SweepConfig) -> Work:
    """How much a sweep does."""
    validation, least = _validation_points(config)
    while_choosing = len(simplex(len(config.policies), config.validation_weights)) if config.chooses else 0
    entries = config.groups
    # The soup, LiNeS, its controls, further groups, further sets of policies.
    of_weights = 2 + 2 * config.controls + len(entries) + len(config.policy_sets)
    weights = len(first_weights(config)) + (config.map_points if config.sampler == "map" else 0)
    of_weights += config.searches
    test = 1 + of_weights * weights + len(config.morlhf) + len(config.wise_ft_names) * config.num_weights
    completions = config.samples_per_prompt * (validation * config.validation_prompts + test * config.test_prompts)
    chosen = "none on validation prompts (one scaling), "
    if validation:
        beyond = f" (and up to {validation - least:,} beyond the edge)" if validation > least else ""
        chosen = f"{least:,} on validation prompts{beyond}, "
    texts = 0
    if config.control:
        texts = (test + (validation if config.max_forgetting is not None else 0)) * config.control_texts
    tried = Counter(config.candidate_counts if validation else {})  # 0 of a group whose scaling is given
    alone = sum(
        weights + (tried[entry.name] + config.edge_extensions * (tried[entry.name] > 1)) * while_choosing
        for entry in entries
        if not entry.is_linear
    )
    return Work(f"{chosen}{test:,} on test prompts", completions, test, texts, alone, _mixed(config))


def _mixed(config: SweepConfig) -> Counter[tuple[int, ...]]:
    """How many specs a sweep has at most by the places of the policies that they mix, in the order of their weights.

    The SFT model mixes none, and a policy as it is belongs to the soup alone, whichever group asks for it.
    """
    own, listed = len(config.policies), config.listed_policies
    every, rows = tuple(range(own)), first_weights(config)
    if config.sampler == "map":
        rows = [*rows, *[(1.0,) * own] * config.map_points]  # nothing tells yet where they lie
    mixed = Counter((own + run,) for run in range(len(config.morlhf)))
    mixed.update({(k,): config.num_weights - 2 for k in config.wise_ft_names.values()})

    def add(policies: Sequence[int], rows: Sequence[Sequence[float]], times: int, *, all_of: bool) -> None:
        for row in rows:
            used = (k for k, weight in zip(policies, row, strict=True) if weight or all_of)
            mixed[tuple(used)] += times

    # Policies, and whether all of them have a weight at every preference.
    groups = dict.fromkeys((SOUP, LINES, *((SCALED, REVERSED) if config.controls else ())), (every, False))
    groups |= {entry.name: (every, entry.router is not None) for entry in config.groups}
    for entry in config.policy_sets:
        groups[entry.name] = (tuple(map(listed.index, entry.policies)), entry.mixing is not None)
    tried = config.candidate_counts if config.chooses else {}
    for name, (policies, all_of) in groups.items():
        add(policies, rows, 1, all_of=all_of)
        if count := tried.get(name):
            beyond = config.edge_extensions * (count > 1)
            times = config.merge_counts[name] + beyond
            add(policies, simplex(own, config.validation_weights), times, all_of=all_of)
    if config.searches:
        mixed[every] += config.search_points  # its front is of these
    return mixed


def _add_work(
    plan: Plan, config: SweepConfig, work: Work, rows: Rows, batch: int, adapters: Sequence[AdapterSizes], size: int
) -> None:
    """Say how much work there is."""
    plan.work.append(("tokens of the longest prompt", f"{rows.longest:,} ({rows.source})"))
    plan.work.append(("points", work.points))
    plan.work.append(("completions to generate", f"at most {work.completions:,}"))
    plan.work.append(("tokens to generate", f"at most {work.completions * config.max_new_tokens:,}"))
    plan.work.append(("batches", f"{math.ceil(work.completions / batch):,} of {batch:,}"))
    plan.disk["run store"] = work.completions * BYTES_PER_COMPLETION
    if config.control:
        tokens = work.texts * config.control_tokens
        plan.work.append(("control texts to read", f"at most {work.texts:,}, {tokens:,} tokens"))
        plan.disk["run store"] += work.texts * BYTES_PER_NLL
    if work.alone:
        plan.work.append(("points merged one by one", f"{work.alone:,}: their rules are not linear"))
    if config.engine == "vllm":
        numbers = (count * stacked([adapters[k] for k in used]) for used, count in work.mixed.items())
        plan.disk["adapters for vLLM"] = sum(numbers) * size
        plan.notes.append(
            "engine vllm: what vLLM holds is its own to plan (gpu_memory_utilization, tensor_parallel_size); the "
            "memory above is that of engine local"
        )


def _add_time(
    plan: Plan,
    config: SweepConfig,
    shape: Shape,
    adapters: Sequence[AdapterSizes],
    rewards: Sequence[RewardPlan],
    rollouts: Rollouts,
    work: Work,
    lengths: Sequence[int] | None,
) -> None:
    """Tell the time of completions, their scores and what the SFT model says of them, and of control texts.

    `lengths` are the tokens of control texts, where they are here.
    """

    def make(depth: int):
        return skeleton.causal_lm(shortened(shape.config, depth), dtype=config.dtype).requires_grad_(False)

    layers, samples = shape.config.get_text_config().num_hidden_layers, config.samples_per_prompt
    trial = Trial(make, layers, device=plan.device, policies=adapters)
    prompts = math.ceil(rollouts.completions / (work.together * samples))  # the SFT model reads each once
    read = Tokens(prompts, rollouts.prompt + math.ceil(work.together * samples * rollouts.mean))
    judged_by = partial(judged, trial, tile=WORDS_AT_ONCE)
    plan.seconds |= {
        "sampling": sampled(trial, rollouts, distinct=math.ceil(rollouts.batch / work.together), policies=True),
        "reference": judged_by(read, rollouts.tokens),
        "scores": scored(rewards, rollouts.texts, device=plan.device),
    }
    if work.texts:
        length = math.ceil(statistics.mean(lengths)) if lengths else config.control_tokens
        texts = Tokens(work.texts, length)
        plan.seconds["control texts"] = judged_by(texts, texts.count, policies=True)
    merged = [f"merging {work.alone:,} points one by one"] if work.alone else []
    plan.untimed += [STARTING, *functions(rewards), *merged]
