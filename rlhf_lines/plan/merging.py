"""The plan of a merge: what it reads, computes, holds and writes.

Settings are refused as the merge refuses them; inputs that exist are opened and checked as it would.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from rlhf_lines import skeleton
from rlhf_lines.config import RunConfig
from rlhf_lines.merge.config import MergeConfig
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter, is_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.statistics_files import open_statistics, statistics_path
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.opened import not_an_adapter, open_merge
from rlhf_lines.merge.output.checkpoint import layout
from rlhf_lines.merge.output.hub import check_hub
from rlhf_lines.merge.output.record import check_repeat
from rlhf_lines.merge.policies import check_output
from rlhf_lines.merge.rules import RULES, merge_lazily
from rlhf_lines.merge.rules.profile import options_text
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.stage import check_same_merge, is_kept, merge_of
from rlhf_lines.merge.tensors.order_statistics import DIRECT
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.residuals import Chunk, residuals_in_memory
from rlhf_lines.merge.tensors.spans import Span
from rlhf_lines.plan import counts, memory
from rlhf_lines.plan.adapters import AdapterSizes, adapter_sizes, changed, stacked
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.plan import Options, Plan, note_existing
from rlhf_lines.plan.shapes import Shape, find_shape


_NAME, _COLUMNS = "model.layers.0.weight", 64  # of what a rule is rehearsed on


def plan_merge(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of a merge: factors of adapters, and the chunks of checkpoints that are read at a time."""
    run_config, config = of_type(configs, RunConfig), of_type(configs, MergeConfig)
    merge = merge_of(config)
    if options.device is not None:  # planned for a machine that is named: the devices of this one do not matter
        merge = replace(merge, device="cpu")
    kept = is_kept(run_config, config)
    if kept:
        check_same_merge(config.output_dir, merge)
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    merge.check()
    overwrite = run_config.overwrite or kept
    notes = note_existing(lambda: check_output(merge, config.output_dir, overwrite=overwrite), overwrite=overwrite)
    shape = find_shape(merge.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters = [adapter_sizes(policy, shape, beside) for policy in merge.policies]
    for policy, adapter in zip(merge.policies, adapters, strict=True):
        if merge.save == "adapter" and adapter.count is None:
            raise ValueError(not_an_adapter(policy))
    model = skeleton.any_language_model(shape.config, dtype=merge.dtype or "auto")
    plan = Plan("merge", "cpu", counts.count(model))
    plan.models.append((merge.sft_model, shape.source))
    plan.models += [(policy, adapter.source) for policy, adapter in zip(merge.policies, adapters, strict=True)]
    passes = _passes(merge)
    _add_work(plan, merge, passes, _num_layers(merge, shape, adapters))
    if all(is_adapter(folder) or any(Path(folder).glob("model*.safetensors*")) for folder in merge.models):
        _look_at_inputs(plan, merge, config)
    merged = stacked(adapters, merge.rank)
    plan.phases.append(memory.Phase("merge", _parts(merge, shape, adapters, merged=merged, passes=passes)))
    if not plan.disk:  # the files of the SFT model are not here
        dense = sum(p.nbytes for p in model.parameters())
        written = merged * _adapter_dtype(merge).itemsize
        plan.disk |= {"merged adapter": written} if merge.save == "adapter" else {"merged model": dense}
    _check_disk(plan, config.output_dir)
    if kept:
        plan.notes.append(f"{config.output_dir} holds this merge and is kept (--resume)")
    plan.notes += notes + config.without_effect
    return plan


def passes_over_inputs(spec: MergeSpec) -> int:
    """How often a merge reads all residuals: the measurements of the rule and of alpha, and the merge itself.

    Those of the rule (quantiles, norms) are counted on noise that is too large to be held at once, rounded up to
    whole passes; alpha takes one over the residuals and one over the merged one.
    """
    shape = (DIRECT // _COLUMNS + 1, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    noise = [{_NAME: torch.randn(shape, generator=generator)} for _ in spec.weights]
    needed = RULES[spec.rule].statistics
    statistics = [{_NAME: needed.example(tau[_NAME])} for tau in noise] if needed else []
    residuals = residuals_in_memory(noise, sft=noise[0], statistics=statistics)
    read = 0

    def counted(span: Span) -> Chunk:
        nonlocal read
        read += span.stop - span.start
        return residuals.read(span)

    residuals_read = replace(residuals, read=counted)
    merge_lazily(residuals_read, spec.rule, weights=spec.weights, **spec.options)
    measuring = math.ceil(read / math.prod(shape))
    return measuring + 2 * (spec.alpha == "auto") + 1


def _passes(merge: Merge) -> int:
    """How often the merge reads residuals; 0 where it only combines the factors of adapters."""
    if merge.rule.on_factors:
        return int(merge.save == "dense")  # the residual of the adapter that the factors make is written
    if merge.save == "adapter" and merge.rule.is_linear:
        return 2 * (merge.spec.alpha == "auto")  # over the residuals, and over the merged one
    return passes_over_inputs(merge.spec)


def _num_layers(merge: Merge, shape: Shape, adapters: Sequence[AdapterSizes]) -> int:
    """The layers of the part that the policies change, from the files of the SFT model where they are here."""
    if not any(Path(merge.sft_model).glob("model*.safetensors*")):
        return shape.config.get_text_config().num_hidden_layers
    with Checkpoint(merge.sft_model) as sft:
        return sft.num_layers(sorted(changed(adapters)))


def _add_work(plan: Plan, merge: Merge, passes: int, num_layers: int) -> None:
    spec = merge.spec
    options = "".join(f", {key} {json.dumps(value)}" for key, value in sorted(spec.options.items()))
    if spec.profile is not None:
        spec.profile.check(num_layers=num_layers)
        options = f", {options_text(spec.options)}"
    plan.work.append(("rule", f"{spec.rule}{options}"))
    if spec.alpha == "auto":
        factors = f"alpha measured on the residuals, beta {spec.beta:zg}, schedule {spec.schedule}"
    else:
        scales = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule).tolist()
        factors = f"layer 1: {scales[0]:zg}, layer {num_layers}: {scales[-1]:zg}, outside the layers: {spec.alpha:zg}"
    plan.work.append(("factors of LiNeS", factors + (", before the rule" if spec.lines == "before" else "")))
    if passes:
        plan.work.append(("passes over the inputs", str(passes)))
        plan.work.append(("arithmetic on dense residuals", f"float32 or wider, on {merge.device}"))
    if merge.rank is not None:
        plan.work.append(("truncated to rank", f"{merge.rank}; what that loses is told"))
    if merge.statistics:
        plan.work.append((f"statistics for {spec.rule}", ", ".join(merge.statistics)))


def _look_at_inputs(plan: Plan, merge: Merge, config: MergeConfig) -> None:
    """Fill in what only the inputs tell: files that are read and written, parameters, warnings.

    Raises:
        ValueError, FileNotFoundError: they do not fit together.
    """
    with open_merge(merge, max_memory=config.max_memory) as opened:
        repeated = check_repeat(config.repeats, merge) if config.repeats else []
        plan.notes += [f"warning: {warning}" for warning in [*repeated, *opened.warnings]]
        files = [path for folder in merge.models for path in _weight_files(folder)]
        files += [statistics_path(merge.rule.statistics, folder) for folder in merge.statistics]
        plan.read |= {str(path): path.stat().st_size for path in files}
        sft = opened.sft
        # Weights that are packed, and heads that are tied, count as what they are in the model.
        touched = {
            (sft.parameter(f"{module}.weight") or module): math.prod((len(factors.B), factors.A.shape[1]))
            for policy in opened.adapters
            for module, factors in policy.modules.items()
        }
        for policy in opened.policies:
            if isinstance(policy, Checkpoint):
                touched |= {name: math.prod(shape) for name, shape in policy.shapes.items()}
        count = sum(touched.values())
        share = count / (plan.parameters if sft.quantisation else sum(map(math.prod, sft.shapes.values())))
        plan.work.append(("parameters that may change", f"{count:,} ({share:.1%}), {len(touched)} tensors"))
        if merge.save == "dense":
            entries, files = layout(sft, merge.dtype, merge.max_shard_size)
            plan.disk |= {file: sum(entries[name].nbytes for name in names) for file, names in files.items()}
            plan.work.append(("written dtype", merge.dtype or "that of each tensor of the SFT model"))
        else:
            rank = opened.rank or opened.stored_rank
            plan.disk["merged adapter"] = _adapter_bytes(opened.adapters, rank, merge.dtype)
            plan.work.append(("rank of the adapter", str(rank)))


def _weight_files(folder: str) -> list[Path]:
    if is_adapter(folder):
        return [Path(folder) / WEIGHTS_FILE]
    with Checkpoint(folder) as checkpoint:
        return [checkpoint.folder / file for file in checkpoint.files]


def _adapter_bytes(adapters: Sequence[Adapter], rank: int, dtype: str | None) -> int:
    """Bytes of the factors of all adapted modules, of one rank."""
    modules = {module: factors for one in adapters for module, factors in one.modules.items()}
    widths = sum(factors.B.shape[0] + factors.A.shape[1] for factors in modules.values())
    widest = max(factors.A.element_size() for factors in modules.values())
    return rank * widths * (DTYPES[dtype].itemsize if dtype else widest)


def _adapter_dtype(merge: Merge) -> torch.dtype:
    """Of the factors that are written; those that are not cast are taken for float32."""
    return DTYPES[merge.dtype] if merge.dtype else torch.float32


def _parts(merge: Merge, shape: Shape, adapters: Sequence[AdapterSizes], *, merged: int, passes: int) -> dict[str, int]:
    """What a merge holds at its peak, in bytes by part.

    Args:
        merge: the settings.
        shape: of the SFT model.
        adapters: the sizes of the policies.
        merged: parameters of the merged adapter.
        passes: over the residuals.
    """
    factors = sum(adapter.count for adapter in adapters if adapter.count) * memory.FLOAT32
    parts = {memory.LIBRARIES_PART: memory.MERGE_LIBRARIES[merge.save], "adapters": factors}
    if merge.save == "adapter":
        parts["merged adapter"] = merged * memory.FLOAT32
        if (dtype := _adapter_dtype(merge)) != torch.float32:
            parts["merged adapter, cast"] = merged * dtype.itemsize
    if passes == 0:
        return parts
    as_stored = skeleton.any_language_model(shape.config, dtype="auto")
    shapes = {name: tuple(parameter.shape) for name, parameter in as_stored.named_parameters()}
    shapes = {name: shape for name, shape in shapes.items() if name in _changed(merge, adapters, shapes)}
    stored = next(as_stored.parameters()).element_size()
    threads, policies = len(os.sched_getaffinity(0)), len(merge.policies)
    parts["adapters"] += sum(adapter.ups for adapter in adapters) * memory.FLOAT32
    parts["chunks"] = memory.chunk_bytes(policies, stored, threads)
    if searched := merge.rule.searches(merge.rule.options | merge.spec.options):
        ranks, among = searched
        sizes = [math.prod(found) for found in shapes.values()]
        sizes = sizes if among == "parameter" else [sum(sizes)]
        parts["search for quantiles"] = memory.search_bytes(policies, ranks, sizes, stored)
    if whole := memory.whole_bytes(merge.rule.whole, shapes, policies, stored):
        parts["one whole parameter"] = whole
    if merge.save == "adapter" and not merge.rule.is_linear:
        largest = max((found for found in shapes.values() if len(found) == 2), key=math.prod, default=(0, 0))
        parts["one module"] = memory.module_bytes(largest)
    return parts


def _changed(merge: Merge, adapters: Sequence[AdapterSizes], shapes: Mapping[str, object]) -> set[str]:
    """The parameters that the policies may change, and of which there are statistics where those are here."""
    names = set(shapes)
    if all(adapter.count is not None for adapter in adapters):
        names &= changed(adapters)
    with ExitStack() as stack:
        needed = merge.rule.statistics
        folders = [folder for folder in merge.statistics if needed and statistics_path(needed, folder).is_file()]
        for statistics in open_statistics(needed, folders, stack):
            names &= statistics.shapes.keys()
    return names


def _check_disk(plan: Plan, output_dir: str) -> None:
    """Say how much is free where a merge writes, and stop with a ValueError if that is less than it needs."""
    folder = Path(output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, sum(plan.disk.values())
    plan.work.append(("free where it is written", f"{free / 2**30:,.2f} GiB"))
    if needed > free:
        raise ValueError(
            f"output_dir {output_dir} needs {needed / 2**30:,.2f} GiB, but {free / 2**30:,.2f} GiB are free "
            "there: choose another disk, a narrower --dtype, or --save adapter"
        )
