"""The plan of a merge, and the sizes of policies before they are read."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import safe_open
from trl import ModelConfig, get_peft_config

from rlhf_lines.config import RunConfig
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE
from rlhf_lines.merge.inputs.statistics_files import open_statistics
from rlhf_lines.merge.prepare import not_an_adapter
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.stage import MergeConfig, check_same_merge, is_kept
from rlhf_lines.plan import merge_memory, skeleton
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.memory import FLOAT32, LIBRARIES_PART, Phase
from rlhf_lines.plan.merge_work import SEARCHING, add_merge_work, check_disk, check_merge
from rlhf_lines.plan.shapes import Shape, find_shape, makers
from rlhf_lines.plan.stage import Options, Plan


def plan_merge(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of a merge: factors of adapters, and the pieces of checkpoints that are read at a time."""
    config = of_type(configs, MergeConfig)
    if options.device is not None:  # planned for a machine that is named: the devices of this one do not matter
        config = replace(config, device="cpu")
    run_config = of_type(configs, RunConfig)
    kept = is_kept(run_config, config)
    if kept:
        check_same_merge(config)
    check_merge(config, overwrite=run_config.overwrite or kept)
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters = [adapter_sizes(policy, shape, beside) for policy in config.policies]
    if config.save == "adapter":
        for policy, adapter in zip(config.policies, adapters, strict=True):
            if adapter.count is None:
                raise ValueError(not_an_adapter(policy))
    model = skeleton.causal_lm(shape.config, dtype=config.dtype or "auto")
    plan = Plan("merge", "cpu", skeleton.count(model))
    plan.models.append((config.sft_model, shape.source))
    plan.models += [(policy, adapter.source) for policy, adapter in zip(config.policies, adapters, strict=True)]
    widths = {module: width for adapter in adapters for module, width in adapter.widths.items()}
    rank = config.rank or sum(adapter.rank for adapter in adapters)
    merged = rank * sum(widths.values()) * FLOAT32
    passes = add_merge_work(plan, config, num_layers=shape.config.get_text_config().num_hidden_layers)
    plan.phases.append(Phase("merge", _merge_parts(config, shape, adapters, merged=merged, passes=passes)))
    if not plan.disk:  # the files of the SFT model are not here
        dense = sum(p.nbytes for p in model.parameters())
        plan.disk |= {"merged adapter": merged} if config.save == "adapter" else {"merged model": dense}
    check_disk(plan, config.output_dir)
    if kept:
        plan.notes.append(f"{config.output_dir} holds this merge and is kept (--resume)")
    return plan


def _merge_parts(
    config: MergeConfig, shape: Shape, adapters: list[AdapterSizes], *, merged: int, passes: int
) -> dict[str, int]:
    """What a merge holds at its peak; see `merge_memory`."""
    factors = sum(adapter.count for adapter in adapters if adapter.count) * FLOAT32
    parts = {LIBRARIES_PART: merge_memory.LIBRARIES[config.save], "adapters": factors}
    if config.save == "adapter":
        parts["merged adapter"] = 2 * merged  # and cast to be written
    if passes == 0:
        return parts
    as_stored = skeleton.causal_lm(shape.config, dtype="auto")
    shapes = {name: tuple(parameter.shape) for name, parameter in as_stored.named_parameters()}
    shapes = {name: shape for name, shape in shapes.items() if name in _changed(config, adapters, shapes)}
    stored = next(as_stored.parameters()).element_size()
    threads, policies = len(os.sched_getaffinity(0)), len(config.policies)
    parts["adapters"] += factors  # with their scale
    parts["pieces"] = merge_memory.piece_bytes(policies, stored, threads)
    if passes >= SEARCHING:
        parts["counts for quantiles"] = merge_memory.count_bytes(policies, threads)
    if whole := merge_memory.whole_bytes(RULES[config.rule].whole, shapes, policies, stored):
        parts["one whole parameter"] = whole
    if config.save == "adapter" and not RULES[config.rule].is_linear:
        largest = max((found for found in shapes.values() if len(found) == 2), key=math.prod, default=(0, 0))
        parts["one module"] = merge_memory.module_bytes(largest)
    return parts


def _changed(config: MergeConfig, adapters: list[AdapterSizes], shapes: Mapping[str, object]) -> set[str]:
    """The parameters that the policies may change, and of which there are statistics where those are here."""
    names = set(shapes)
    if all(adapter.count is not None for adapter in adapters):
        modules = {module for adapter in adapters for module in adapter.widths}
        names &= {f"{module.removeprefix('base_model.model.')}.weight" for module in modules}
    with contextlib.ExitStack() as stack:
        needed = RULES[config.rule].statistics
        folders = [folder for folder in config.statistics or () if needed and (Path(folder) / needed.file).is_file()]
        for statistics in open_statistics(needed, folders, stack):
            names &= statistics.shapes.keys()
    return names


@dataclass(frozen=True)
class AdapterSizes:
    """What is known about a policy before it is read.

    Attributes:
        count: parameters of an adapter; None for a dense policy.
        source: where that was read.
        rank: the largest of its modules.
        widths: in + out by module: so many parameters each rank has.
    """

    count: int | None
    source: str
    rank: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)


def adapter_sizes(policy: str, shape: Shape, beside: Path | None) -> AdapterSizes:
    """The sizes of an adapter, or that a policy is dense.

    Raises:
        FileNotFoundError: the folder does not exist, and no config beside this one makes it.
    """
    folder = Path(policy)
    if (folder / WEIGHTS_FILE).is_file():
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return _sizes(shapes, str(folder / WEIGHTS_FILE))
    if (folder / "config.json").is_file():
        return AdapterSizes(None, f"{folder / 'config.json'}")
    if folder.is_dir():
        raise FileNotFoundError(f"policy {policy} has no {WEIGHTS_FILE}: expected an adapter or a checkpoint")
    for path, content in makers(policy, beside):
        if content.get("use_peft"):
            names = ModelConfig.__dataclass_fields__
            peft_config = get_peft_config(ModelConfig(**{k: v for k, v in content.items() if k in names}))
            model = skeleton.adapt(skeleton.causal_lm(shape.config), peft_config)
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
            return _sizes(shapes, f"{path}, which makes it")
    raise FileNotFoundError(
        f"policy {policy} does not exist, and no config beside this one makes it; make it with: rlhf-lines ppo"
    )


def _sizes(shapes: Mapping[str, tuple[int, ...]], source: str) -> AdapterSizes:
    """The sizes of factors A `[r, in]` and B `[out, r]` by their names."""
    count = sum(map(math.prod, shapes.values()))
    ranks = [shape[0] if ".lora_A." in name else shape[-1] for name, shape in shapes.items()]
    widths: dict[str, int] = {}
    for rank, (name, shape) in zip(ranks, shapes.items(), strict=True):
        module = name.partition(".lora_")[0]
        widths[module] = widths.get(module, 0) + math.prod(shape) // rank
    return AdapterSizes(count, f"{count:,} parameters; {source}", max(ranks), widths)
