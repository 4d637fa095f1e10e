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

from rlhf_lines.merge.checkpoint import Checkpoint
from rlhf_lines.merge.hub import check_hub
from rlhf_lines.merge.lines import lines_scales, streamed_alpha
from rlhf_lines.merge.order import DIRECT
from rlhf_lines.merge.pieces import Piece, Span, residuals_in_memory
from rlhf_lines.merge.precision import DTYPES
from rlhf_lines.merge.prepare import check_settings, open_merge
from rlhf_lines.merge.repeat import check_repeat
from rlhf_lines.merge.residuals import WEIGHTS_FILE, Adapter, is_adapter, parameters_of
from rlhf_lines.merge.rules import ADAPTER_RULES, merge_lazily
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.statistics_files import FILES
from rlhf_lines.sizes import parse_size


if TYPE_CHECKING:
    from rlhf_lines.merge.stage import MergeConfig
    from rlhf_lines.plan.stage import Plan

_COLUMNS = 1024  # of the tensor that a rule is rehearsed on


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


def add_merge_work(plan: Plan, config: MergeConfig, *, num_layers: int) -> None:
    """Fill in `work`, `read`, `disk` and the warnings among `notes` of a merge's plan.

    Raises:
        ValueError, FileNotFoundError: the merge could not run; all problems of inputs that exist.
    """
    spec, folders = config.spec(), [config.sft_model, *config.policies]
    options = "".join(f", {key} {json.dumps(value)}" for key, value in sorted(spec.options.items()))
    plan.work.append(("rule", f"{spec.rule}{options}"))
    plan.work.append(("factors of LiNeS", _factors_text(spec, num_layers)))
    if config.save == "dense":
        plan.work.append(("passes over the inputs", str(passes_over_inputs(spec))))
    if all(_has_weights(folder) for folder in folders):
        _look_at_inputs(plan, config, folders)
    free = _free_bytes(Path(config.output_dir))
    plan.work.append(("free where it is written", f"{free / 2**30:,.2f} GiB"))
    needed = sum(plan.disk.values())
    if needed > free:
        raise ValueError(
            f"output_dir {config.output_dir} needs {needed / 2**30:,.2f} GiB, but {free / 2**30:,.2f} GiB are free "
            "there: choose another disk, a narrower --dtype, or --save adapter"
        )


def passes_over_inputs(spec: MergeSpec) -> int:
    """How often a merge reads all residuals: counted while it merges noise that is too large to be sorted at once.

    The measurements of the rule (quantiles, norms) and of alpha, and the merge itself, rounded up to whole passes.
    """
    if spec.rule in ADAPTER_RULES:  # combined as factors; what is written is the residual of the one adapter they make
        return 1
    shape = (DIRECT // _COLUMNS + 1, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    noise = [{"model.layers.0.weight": torch.randn(shape, generator=generator)} for _ in spec.weights]
    statistics = {
        "fisher": [{name: tensor.square() for name, tensor in tensors.items()} for tensors in noise],
        "regmean": [dict.fromkeys(tensors, torch.eye(_COLUMNS)) for tensors in noise],
    }
    residuals = residuals_in_memory(noise, sft=noise[0], statistics=statistics.get(spec.rule, ()))
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
        files += [Path(folder) / FILES[spec.rule] for folder in statistics]
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
            plan.disk.clear()
            for file, names in sft.files.items():
                plan.disk[file] = sum(sizes[name] * _itemsize(sft.entries[name].dtype, config.dtype) for name in names)
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


def _itemsize(stored: torch.dtype, dtype: str | None) -> int:
    """Bytes of an element as it is written: only floating-point tensors are cast."""
    return (DTYPES[dtype] if dtype and stored.is_floating_point else stored).itemsize


def _free_bytes(output: Path) -> int:
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
