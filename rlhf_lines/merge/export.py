"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, versions
from rlhf_lines.merge.card import model_card
from rlhf_lines.merge.checkpoint import Checkpoint
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.precision import DTYPES
from rlhf_lines.merge.provenance import MERGE_RECORD, load_inputs, loss_warnings, weights_sha256
from rlhf_lines.merge.recipe import mergekit_recipe
from rlhf_lines.merge.residuals import Adapter
from rlhf_lines.merge.rules import ADAPTER_RULES, LINEAR_RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.statistics_files import check_statistics, coverage_warnings, open_statistics, statistics_sha256
from rlhf_lines.merge.truncate import check_rank
from rlhf_lines.merge.writing import PolicyMerge
from rlhf_lines.suggestion import unknown_name


SAVES = ("adapter", "dense")


def merge_policies(
    sft_model: str | Path,
    policies: Sequence[str | Path],
    spec: MergeSpec,
    *,
    save: str,
    output_dir: str | Path,
    rank: int | None = None,
    dtype: str | None = None,
    statistics: Sequence[str | Path] = (),
    max_shard_size: int | None = None,
    max_memory: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    warnings: Sequence[str] = (),
    progress: Callable[[str, int, int | None], object] = lambda phase, elements, total: None,
) -> Path:
    """Write the merged policy theta_SFT + LiNeS(rule(tau_1..tau_K)) and return its folder.

    Everything that headers and configs can tell is checked before anything is written. The folder is written under a
    hidden name beside `output_dir` and renamed when it is complete, so that a failure leaves nothing behind.

    Args:
        sft_model: folder of the SFT model.
        policies: K folders, adapters (PEFT) or dense checkpoints.
        spec: what to merge how.
        save: `adapter` (adapters only; exact, of rank sum_k r_k, where the rule is linear) or `dense` (a full
            checkpoint).
        output_dir: the folder to make; besides weights it gets `merge_spec.json`, `README.md` and, where mergekit can
            express the merge, `mergekit.yaml`.
        rank: of the written adapter. None: that of the exact merge. A smaller one keeps the nearest residual of that
            rank in every module, and the share that is lost is recorded. Rules that are not linear need one.
        dtype: float16, bfloat16, float32 or float64 of the written weights. None: for `dense` that of the SFT model,
            for `adapter` float32 or that of wider factors.
        statistics: K folders that `rlhf-lines fisher` or `rlhf-lines gram` made, for the rules of these names.
        max_shard_size: bytes of a written weight file; None shards as the SFT model is.
        max_memory: bytes that the work on one parameter may take, for rules that need whole ones; None is no bound.
        device: where the arithmetic on dense residuals is done.
        overwrite: replace an existing `output_dir`, once the new one is complete.
        warnings: what the record and the card should say beside the warnings of `check_inputs`.
        progress: told the phase (`measure`, `write`), the number of elements done since the last call, and the total
            of the phase where it is known.

    Raises:
        ValueError: anything that cannot be merged exactly, with the reason.
        FileNotFoundError: a folder or file is missing.
        FileExistsError: `output_dir` exists and `overwrite` is False.
        OSError: the disk is full.
    """
    if save not in SAVES:
        raise ValueError(unknown_name("save", save, SAVES))
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    if not policies or isinstance(policies, (str, Path)):
        raise ValueError(f"policies is {policies!r}, expected a list of one or more folders")
    if len(spec.weights) != len(policies):
        raise ValueError(f"{len(spec.weights)} weights for {len(policies)} policies; give one weight per policy")
    _check_rank(rank, save, spec)
    _check_device(device)
    output = Path(output_dir)
    refuse_existing(output, overwrite=overwrite)
    refuse_replacing(output, [sft_model, *policies, *statistics])
    with contextlib.ExitStack() as stack:
        sft = stack.enter_context(Checkpoint(sft_model))
        loaded, found = load_inputs(sft, policies, stack)
        check_statistics(spec.rule, statistics, policies)
        if save == "adapter" or spec.rule in ADAPTER_RULES:
            _check_all_adapters(loaded, spec)
        make_dense = partial(DenseMerge, sft, device=device, max_memory=max_memory, progress=progress)
        opened = open_statistics(spec.rule, statistics, stack)
        merge = PolicyMerge(spec, sft, loaded, opened, make_dense)
        found += coverage_warnings(spec.rule, opened, merge.shapes)
        # Hashing takes a core, so it goes on beside the merge.
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        hashes = hashing.map(weights_sha256, [sft_model, *policies])
        with new_folder(output, overwrite=overwrite) as folder:
            if save == "adapter":
                written = merge.write_adapter(folder, str(sft_model), rank=rank, dtype=dtype)
            else:
                written = merge.write_dense(folder, dtype=dtype, max_shard_size=max_shard_size)
            found += loss_warnings(
                written.lost, dtype=written.dtype, save=save, adapters_only=len(merge.adapters) == len(policies)
            )
            sft_sha256, *sha256 = hashes
            record = {
                "format": 1,
                "spec": spec.to_dict(),
                "alpha": merge.alpha,
                "sft_model": str(sft_model),
                "sft_sha256": sft_sha256,
                "policies": [
                    {"path": str(path), "sha256": known} for path, known in zip(policies, sha256, strict=True)
                ],
                "statistics": [
                    {"path": str(path), "sha256": statistics_sha256(spec.rule, path)} for path in statistics
                ],
                "save": save,
                "dtype": written.dtype,
                "asked_dtype": dtype,
                "max_shard_size": max_shard_size,
                "device": device,
                "versions": versions(),
                "lost_residual": asdict(written.lost),
                "warnings": [*warnings, *found],
            }
            if save == "adapter":
                record["rank"] = written.rank
            if written.truncation is not None:
                record["truncation"] = asdict(written.truncation)
            (folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (folder / "README.md").write_text(model_card(record))
            recipe = mergekit_recipe(
                merge.resolved,
                str(sft_model),
                [one if isinstance(one, Adapter) else str(path) for one, path in zip(loaded, policies, strict=True)],
                num_layers=sft.num_layers(),
                out_dtype=written.dtype,
            )
            if recipe is not None and written.truncation is None:
                (folder / "mergekit.yaml").write_text(recipe)
    return output


def _check_rank(rank: int | None, save: str, spec: MergeSpec) -> None:
    if rank is None:
        if save == "adapter" and spec.rule not in (*LINEAR_RULES, *ADAPTER_RULES):
            raise ValueError(
                f"rule {spec.rule!r} is not linear in the residuals, so no adapter holds it exactly; give --rank, "
                "which truncates it and says what that loses, or use --save dense"
            )
        return
    check_rank(rank)
    if save == "dense":
        raise ValueError(f"rank is {rank}, but a dense checkpoint has none; leave it out, or use --save adapter")


def _check_device(device: str) -> None:
    kind = torch.device(device).type if device.split(":")[0] in ("cpu", "cuda") else None
    if kind is None:
        raise ValueError(f"device is {device!r}, expected cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no GPU here; leave it out, or use cpu")


def _check_all_adapters(loaded: Sequence[Adapter | Checkpoint], spec: MergeSpec) -> None:
    dense = next((policy for policy in loaded if isinstance(policy, Checkpoint)), None)
    if dense is None:
        return
    if spec.rule in ADAPTER_RULES:
        raise ValueError(
            f"rule {spec.rule!r} combines the factors of adapters, but policy {str(dense.folder)!r} is a dense "
            "checkpoint; use rule linear"
        )
    raise ValueError(
        f"policy {str(dense.folder)!r} is a dense checkpoint, which no adapter holds exactly; use --save dense"
    )
