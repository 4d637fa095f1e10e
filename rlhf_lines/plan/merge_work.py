"""What a merge reads, computes and writes, for its plan; where the inputs exist they are checked as the merge would."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf_lines.config import parse_size
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter, is_adapter, parameters_of
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.lines import lines_scales, streamed_alpha
from rlhf_lines.merge.output.dense import layout
from rlhf_lines.merge.output.hub import check_hub
from rlhf_lines.merge.output.record import check_repeat
from rlhf_lines.merge.prepare import check_settings, open_merge
from rlhf_lines.merge.rules import RULES, merge_lazily
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.order_statistics import DIRECT
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.residuals import Piece, residuals_in_memory
from rlhf_lines.merge.tensors.spans import Span


if TYPE_CHECKING:
    from rlhf_lines.merge.stage import MergeConfig
    from rlhf_lines.plan.stage import Plan

SEARCHING = 3  # passes: two digits of a quantile, and the merge
_NAME, _COLUMNS = "model.layers.0.weight", 64  # of what a rule is rehearsed on


def check_merge(config: MergeConfig, *, overwrite: bool) -> None:
    """Refuse settings as the merge would, whether its inputs exist or not.

    Raises:
        ValueError, FileExistsError: the merge could not run.
    """
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    config.shard_bytes()
    parse_size(config.max_memory)
    check_settings(
        [config.sft_model, *config.policies],
        config.spec(),
        save=config.save,
        output_dir=config.output_dir,
        rank=config.rank,
        dtype=config.dtype,
        device=config.device,
        overwrite=overwrite,
        statistics=config.statistics or (),
    )


def add_merge_work(plan: Plan, config: MergeConfig, *, num_layers: int) -> int:
    """Fill in `work`, `read`, `disk` and the warnings among `notes` of a merge's plan; return the number of passes.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the merge could not run; all problems of inputs that exist.
    """
    spec, folders, statistics = config.spec(), [config.sft_model, *config.policies], config.statistics or []
    options = "".join(f", {key} {json.dumps(value)}" for key, value in sorted(spec.options.items()))
    plan.work.append(("rule", f"{spec.rule}{options}"))
    plan.work.append(("factors of LiNeS", _factors_text(spec, num_layers)))
    if RULES[spec.rule].on_factors:
        passes = int(config.save == "dense")  # combined as factors; the residual of the adapter they make is written
    elif config.save == "adapter" and RULES[spec.rule].is_linear:
        passes = 2 * (spec.alpha == "auto")  # over the residuals, and over the merged one
    else:
        passes = passes_over_inputs(spec)
    if passes:
        plan.work.append(("passes over the inputs", str(passes)))
        plan.work.append(("arithmetic on dense residuals", f"float32 or wider, on {config.device}"))
    if config.rank is not None:
        plan.work.append(("truncated to rank", f"{config.rank}; what that loses is told"))
    if statistics:
        plan.work.append((f"statistics for {spec.rule}", ", ".join(statistics)))
    if all(_has_weights(folder) for folder in folders):
        _look_at_inputs(plan, config, folders)
    return passes


def check_disk(plan: Plan, output_dir: str) -> None:
    """Say how much is free where a merge writes, and stop with a ValueError if that is less than it needs."""
    free = _free_bytes(Path(output_dir))
    plan.work.append(("free where it is written", f"{free / 2**30:,.2f} GiB"))
    needed = sum(plan.disk.values())
    if needed > free:
        raise ValueError(
            f"output_dir {output_dir} needs {needed / 2**30:,.2f} GiB, but {free / 2**30:,.2f} GiB are free "
            "there: choose another disk, a narrower --dtype, or --save adapter"
        )


def passes_over_inputs(spec: MergeSpec) -> int:
    """How often a merge reads all residuals: counted while it merges noise that is too large to be sorted at once.

    The measurements of the rule (quantiles, norms) and of alpha, and the merge itself, rounded up to whole passes.
    """
    shape = (DIRECT // _COLUMNS + 1, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    noise = [{_NAME: torch.randn(shape, generator=generator)} for _ in spec.weights]
    needed = RULES[spec.rule].statistics
    statistics = [{_NAME: needed.example(tau[_NAME])} for tau in noise] if needed else []
    residuals = residuals_in_memory(noise, sft=noise[0], statistics=statistics)
    read = 0

    def counted(span: Span) -> Piece:
        nonlocal read
        read += span.stop - span.start
        return residuals.read(span)

    residuals_read = replace(residuals, read=counted)
    merged = merge_lazily(residuals_read, spec.rule, weights=spec.weights, **spec.options)
    if spec.alpha == "auto":
        streamed_alpha(residuals_read, merged)
    for _ in merged.residuals.map(lambda piece: merged.compute(piece).numel(), merged.unit):
        pass
    return math.ceil(read / math.prod(shape))


def _look_at_inputs(plan: Plan, config: MergeConfig, folders: list[str]) -> None:
    spec, statistics = config.spec(), config.statistics or []
    with contextlib.ExitStack() as stack:
        prepared = open_merge(
            folders,
            spec,
            stack,
            save=config.save,
            rank=config.rank,
            device=config.device,
            statistics=statistics,
            max_memory=parse_size(config.max_memory),
        )
        sft, warnings = prepared.sft, prepared.warnings
        if config.repeats:
            warnings = [*check_repeat(config.repeats, folders[0], folders[1:], statistics), *warnings]
        plan.notes += [f"warning: {warning}" for warning in warnings]
        files = [path for folder in folders for path in _weight_files(folder)]
        files += [Path(folder) / RULES[spec.rule].statistics.file for folder in statistics]
        plan.read |= {str(path): path.stat().st_size for path in files}
        sizes = {name: math.prod(shape) for name, shape in sft.shapes.items()}
        changed = set().union(
            *(
                parameters_of(policy, sft) if isinstance(policy, Adapter) else policy.shapes
                for policy in prepared.policies
            )
        )
        count = sum(sizes[name] for name in changed)
        share = count / sum(sizes.values())
        plan.work.append(("parameters that may change", f"{count:,} ({share:.1%}), {len(changed)} tensors"))
        if config.save == "dense":
            entries, files = layout(sft, config.dtype, config.shard_bytes())
            for file, names in files.items():
                plan.disk[file] = sum(entries[name].nbytes for name in names)
            plan.work.append(("written dtype", config.dtype or "that of each tensor of the SFT model"))
        else:
            rank = prepared.rank or prepared.merge.stored_rank
            plan.disk["merged adapter"] = _adapter_bytes(prepared.merge.adapters, rank, config.dtype)
            plan.work.append(("rank of the adapter", str(rank)))


def _adapter_bytes(adapters: Sequence[Adapter], rank: int, dtype: str | None) -> int:
    """Bytes of the factors of all adapted modules, of one rank."""
    modules = {module: factors for one in adapters for module, factors in one.modules.items()}
    widths = sum(factors.B.shape[0] + factors.A.shape[1] for factors in modules.values())
    widest = max(factors.A.element_size() for factors in modules.values())
    return rank * widths * (DTYPES[dtype].itemsize if dtype else widest)


def _factors_text(spec: MergeSpec, num_layers: int) -> str:
    if spec.alpha == "auto":
        return f"alpha measured on the residuals, beta {spec.beta:g}, schedule {spec.schedule}"
    scales = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule).tolist()
    return f"block 1: {scales[0]:g}, block {num_layers}: {scales[-1]:g}, outside the blocks: {spec.alpha:g}"


def _has_weights(folder: str) -> bool:
    return is_adapter(folder) or any(Path(folder).glob("model*.safetensors*"))


def _weight_files(folder: str) -> list[Path]:
    if is_adapter(folder):
        return [Path(folder) / WEIGHTS_FILE]
    with Checkpoint(folder) as checkpoint:
        return [checkpoint.folder / file for file in checkpoint.files]


def _free_bytes(output: Path) -> int:
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
