"""Plans of the stages that merge: merge, sweep."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from trl import ModelConfig, get_peft_config

from rlhf_lines.config import DataConfig, RunConfig
from rlhf_lines.merge.prepare import not_an_adapter
from rlhf_lines.merge.residuals import WEIGHTS_FILE
from rlhf_lines.merge.stage import MergeConfig, check_same_merge, is_kept
from rlhf_lines.plan import skeleton
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.memory import FLOAT32, Phase, gumbel_bytes, kv_cache_bytes
from rlhf_lines.plan.merge_work import add_merge_work, check_merge
from rlhf_lines.plan.rehearsal import Rehearsal
from rlhf_lines.plan.rewards import plan_rewards
from rlhf_lines.plan.rows import look_at
from rlhf_lines.plan.shapes import Shape, find_shape, makers
from rlhf_lines.plan.stage import Options, Plan
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.run import simplex
from rlhf_lines.sweep.sampling import KL_ROWS
from rlhf_lines.task_rewards import reward_entries


SHARD = 50 * 10**9  # transformers' largest file of weights
BYTES_PER_COMPLETION = 600  # a row of the run store: text, numbers and index, for completions of about 50 tokens


def plan_merge(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """Return the plan of a merge, which runs on the CPU: the adapters' factors, and one file of weights at a time."""
    config = of_type(configs, MergeConfig)
    if options.device is not None:  # planned for a machine that is named: the devices of this one do not matter
        config = replace(config, device="cpu")
    run_config = of_type(configs, RunConfig)
    kept = is_kept(run_config, config)
    if kept:
        check_same_merge(config)
    check_merge(config, overwrite=run_config.overwrite or kept)
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters = [_adapter_parameters(policy, shape, beside) for policy in config.policies]
    model = skeleton.causal_lm(shape.config, dtype=config.dtype or "auto")
    plan = Plan("merge", "cpu", skeleton.count(model))
    plan.models.append((config.sft_model, shape.source))
    plan.models += [(policy, source) for policy, (_, source) in zip(config.policies, adapters, strict=True)]
    factors = sum(count for count, _ in adapters if count) * FLOAT32
    dense = sum(p.nbytes for p in model.parameters())
    if config.save == "adapter":
        dense_policy = next((name for name, (n, _) in zip(config.policies, adapters, strict=True) if n is None), None)
        if dense_policy is not None:
            raise ValueError(not_an_adapter(dense_policy))
        # Read, stacked, and cast to be written.
        plan.phases.append(Phase("merge", {"adapters": factors, "merged adapter": 2 * factors}))
        plan.disk["merged adapter"] = factors
    else:
        largest = max(p.numel() for p in model.parameters())
        # The residual of one tensor, its sum with the SFT model's, and the copy that is cast, in float32.
        parts = {
            "adapters": factors,
            "merged weights of one file": min(dense, SHARD),
            "one tensor": 3 * largest * FLOAT32,
        }
        plan.phases.append(Phase("merge", parts))
        plan.disk["merged model"] = dense
    add_merge_work(plan, config, num_layers=shape.config.get_text_config().num_hidden_layers)
    if kept:
        plan.notes.append(f"{config.output_dir} holds this merge and is kept (--resume)")
    return plan


def plan_sweep(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """Return the plan of a sweep: one base and all adapters in memory, a batch of any specs, all reward models."""
    config = of_type(configs, SweepConfig)
    data = of_type(configs, DataConfig)
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters = [_adapter_parameters(policy, shape, beside) for policy in config.policies]
    for policy, (count, _) in zip(config.policies, adapters, strict=True):
        if count is None:
            raise ValueError(f"policy {policy} is a dense checkpoint, and a sweep mixes adapters")
    rows = look_at(
        data,
        "prompts",
        columns=(("prompt",),),
        tokenizer_from=config.sft_model,
        split="test",
        given=options.prompt_tokens,
    )
    rewards = plan_rewards(reward_entries(config.rewards), beside=beside, batch_size=config.batch_size)
    device = options.device or ("cuda" if torch.cuda.is_available() or config.dtype != "float32" else "cpu")
    model = skeleton.causal_lm(shape.config, dtype=config.dtype)
    plan = Plan("sweep", device, skeleton.count(model))
    plan.models.append((config.sft_model, shape.source))
    plan.models += [(policy, source) for policy, (_, source) in zip(config.policies, adapters, strict=True)]
    plan.models += [(f"reward {reward.name}", reward.source) for reward in rewards]
    held = {
        "weights": skeleton.frozen_bytes(model.requires_grad_(False)),
        "adapters": sum(count for count, _ in adapters) * FLOAT32,
        "reward models": sum(reward.weights for reward in rewards),
    }
    batch, length = config.batch_size, rows.longest + config.max_new_tokens
    text = shape.config.get_text_config()
    heads, size = text.num_attention_heads, getattr(torch, config.dtype).itemsize
    of_length = kv_cache_bytes(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        length=1,
        batch=batch,
        dtype_bytes=size,
    )
    # Beside the model's own activations, a hook holds input and residual of one module in float32.
    hook = 3 * batch * rows.longest * max(text.hidden_size, getattr(text, "intermediate_size", 0) or 0) * FLOAT32
    prefill = Rehearsal(model).forward(batch, rows.longest, use_cache=True) - of_length * rows.longest + hook
    noise = gumbel_bytes(batch, text.vocab_size)
    cache = of_length * length
    plan.phases.append(Phase("generation", {**held, "KV cache": cache, "activations": max(prefill, noise)}))
    few = min(KL_ROWS, batch)
    again = skeleton.causal_lm(shape.config, dtype=config.dtype)
    logits = few * (config.max_new_tokens + 1) * text.vocab_size * (size + 3 * FLOAT32)
    passes = Rehearsal(again).forward(few, length)
    plan.phases.append(Phase("reference", {**held, "activations": passes, "logits": logits}))
    scoring = max((reward.forward(batch, length) for reward in rewards), default=0)
    plan.phases.append(Phase("scoring", {**held, "activations": scoring}))
    _add_work(plan, config, rows)
    return plan


def _add_work(plan: Plan, config: SweepConfig, rows) -> None:
    policies = len(config.policies)
    validation = len(config.alphas) * len(config.betas) * len(simplex(policies, config.validation_weights))
    test = 1 + 2 * len(simplex(policies, config.num_weights))
    samples = config.samples_per_prompt
    completions = samples * (validation * config.validation_prompts + test * config.test_prompts)
    plan.work.append(("tokens of the longest prompt", f"{rows.longest:,} ({rows.source})"))
    plan.work.append(("points", f"{validation:,} on validation prompts, {test:,} on test prompts"))
    plan.work.append(("completions to generate", f"at most {completions:,}"))
    plan.work.append(("tokens to generate", f"at most {completions * config.max_new_tokens:,}"))
    plan.work.append(("batches", f"{math.ceil(completions / config.batch_size):,} of {config.batch_size:,}"))
    plan.disk["run store"] = completions * BYTES_PER_COMPLETION


def _adapter_parameters(policy: str, shape: Shape, beside: Path | None) -> tuple[int | None, str]:
    """Return the parameters of an adapter (None for a dense policy), and where that was read.

    Raises:
        FileNotFoundError: the folder does not exist, and no config beside this one makes it.
    """
    folder = Path(policy)
    if (folder / WEIGHTS_FILE).is_file():
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a mapping)
        count = sum(map(math.prod, shapes))
        return count, f"{count:,} parameters; {folder / WEIGHTS_FILE}"
    if (folder / "config.json").is_file():
        return None, f"{folder / 'config.json'}"
    if folder.is_dir():
        raise FileNotFoundError(f"policy {policy} has no {WEIGHTS_FILE}: expected an adapter or a checkpoint")
    for path, content in makers(policy, beside):
        if content.get("use_peft"):
            names = ModelConfig.__dataclass_fields__
            peft_config = get_peft_config(ModelConfig(**{k: v for k, v in content.items() if k in names}))
            model = skeleton.adapt(skeleton.causal_lm(shape.config), peft_config)
            count = skeleton.count(model, trainable=True)
            return count, f"{count:,} parameters; {path}, which makes it"
    raise FileNotFoundError(
        f"policy {policy} does not exist, and no config beside this one makes it; make it with: rlhf-lines ppo"
    )
