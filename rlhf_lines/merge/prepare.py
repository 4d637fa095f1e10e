"""Everything that is checked before a merge makes its folder: the same for the merge and for its plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rlhf_lines.artifact import check_place, refuse_existing, refuse_replacing
from rlhf_lines.errors import unknown_name
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.provenance import load_inputs
from rlhf_lines.merge.inputs.statistics_files import check_statistics, coverage_warnings, open_statistics
from rlhf_lines.merge.lora.low_rank import not_linear
from rlhf_lines.merge.lora.truncate import check_rank
from rlhf_lines.merge.output.dense import DenseMerge
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.writing import PolicyMerge


SAVES = ("adapter", "dense")


@dataclass(frozen=True)
class Prepared:
    """A merge whose inputs are open and fit together.

    Attributes:
        sft: the SFT model.
        policies: K policies.
        merge: their merge, ready to be written.
        rank: to which the adapter is truncated, None for the exact one and for a dense checkpoint.
        warnings: what cannot be known, or is not done as asked.
    """

    sft: Checkpoint
    policies: list[Adapter | Checkpoint]
    merge: PolicyMerge
    rank: int | None
    warnings: list[str]


def check_settings(
    inputs: Sequence[str | Path],
    spec: MergeSpec,
    *,
    save: str,
    output_dir: str | Path,
    rank: int | None,
    dtype: str | None,
    device: str | torch.device,
    overwrite: bool,
    statistics: Sequence[str | Path] = (),
) -> None:
    """Stop where the settings of a merge do not fit together, or its folder cannot be made; no input has to exist yet.

    Args:
        inputs: the folders of the SFT model and of the policies.
        spec, save, output_dir, rank, dtype, device, overwrite, statistics: as for `merge_policies`.

    Raises:
        ValueError: a value that is unknown, does not fit another one, or cannot be had on this machine.
        FileExistsError: the folder exists and `overwrite` is False, or is needed.
    """
    if save not in SAVES:
        raise ValueError(unknown_name("save", save, SAVES))
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    _, *policies = inputs
    if len(spec.weights) != len(policies):
        raise ValueError(f"{len(spec.weights)} weights for {len(policies)} policies; give one weight per policy")
    _check_rank(rank, save, spec)
    _check_device(device)
    refuse_existing(output_dir, overwrite=overwrite)
    refuse_replacing(output_dir, [*inputs, *statistics])
    check_place(Path(output_dir))


def open_merge(
    inputs: Sequence[str | Path],
    spec: MergeSpec,
    stack: contextlib.ExitStack,
    *,
    save: str,
    rank: int | None,
    device: str | torch.device,
    statistics: Sequence[str | Path] = (),
    max_memory: int | None = None,
    progress: Callable[[str, int, int | None], object] = lambda phase, elements, total: None,
) -> Prepared:
    """The merge of inputs that exist, open until `stack` closes, once all that their headers and configs tell fits.

    Args:
        inputs: the folders of the SFT model and of the policies.
        spec, save, rank, device, statistics, max_memory, progress: as for `merge_policies`, checked by
            `check_settings`.

    Raises:
        ValueError: anything that cannot be merged exactly, with the reason.
        FileNotFoundError: a folder or file is missing.
    """
    sft_model, *policies = inputs
    sft = stack.enter_context(Checkpoint(sft_model))
    loaded, warnings = load_inputs(sft, policies, stack)
    needed = RULES[spec.rule].statistics
    check_statistics(spec.rule, needed, statistics, policies)
    if save == "adapter" or RULES[spec.rule].on_factors:
        _check_all_adapters(loaded, spec)
    make_dense = partial(DenseMerge, sft, device=str(device), max_memory=max_memory, progress=progress)
    opened = open_statistics(needed, statistics, stack)
    merge = PolicyMerge(spec, sft, loaded, opened, make_dense)
    warnings += coverage_warnings(needed, opened, merge.shapes)
    if rank is not None and rank > merge.full_rank:
        warnings.append(
            f"rank {rank} is more than the merged residual has: the adapter gets rank {merge.full_rank}, which holds "
            "all of it"
        )
        rank = merge.full_rank
    return Prepared(sft, loaded, merge, rank, warnings)


def not_an_adapter(policy: str | Path) -> str:
    """Why a dense policy cannot go into an adapter, and what to do instead."""
    return f"policy {str(policy)!r} is a dense checkpoint, which no adapter holds exactly; use --save dense"


def _check_rank(rank: int | None, save: str, spec: MergeSpec) -> None:
    if rank is None:
        if save == "adapter" and not RULES[spec.rule].makes_adapter:
            raise ValueError(not_linear(spec.rule))
        return
    check_rank(rank)
    if save == "dense":
        raise ValueError(f"rank is {rank}, but a dense checkpoint has none; leave it out, or use --save adapter")


def _check_device(device: str | torch.device) -> None:
    try:
        found = torch.device(device)
    except RuntimeError:  # torch lists all backends that it was ever built for
        found = None
    if found is None or found.type not in ("cpu", "cuda") or (found.type == "cpu" and found.index):
        raise ValueError(f"device is {str(device)!r}, expected cpu, cuda, or one of several GPUs as in cuda:1")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch sees no GPU here; leave it out, or use cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(device)!r}, but torch sees {torch.cuda.device_count()} GPUs here, counted from 0"
        )


def _check_all_adapters(loaded: Sequence[Adapter | Checkpoint], spec: MergeSpec) -> None:
    dense = next((policy for policy in loaded if isinstance(policy, Checkpoint)), None)
    if dense is None:
        return
    if RULES[spec.rule].on_factors:
        raise ValueError(
            f"rule {spec.rule!r} combines the factors of adapters, but policy {str(dense.folder)!r} is a dense "
            "checkpoint; use rule linear"
        )
    raise ValueError(not_an_adapter(dense.folder))
