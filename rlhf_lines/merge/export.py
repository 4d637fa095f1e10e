"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, versions
from rlhf_lines.merge.adapter_folder import write_adapter
from rlhf_lines.merge.card import model_card
from rlhf_lines.merge.checkpoint import Checkpoint
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.low_rank import merge_adapters
from rlhf_lines.merge.precision import DTYPES
from rlhf_lines.merge.provenance import MERGE_RECORD, load_inputs, loss_warnings, weights_sha256
from rlhf_lines.merge.recipe import mergekit_recipe
from rlhf_lines.merge.residuals import Adapter, parameters_of
from rlhf_lines.merge.rules import ADAPTER_RULES, LINEAR_RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.statistics_files import check_statistics, open_statistics, statistics_sha256
from rlhf_lines.merge.streamed import AdapterPolicy, DensePolicy, Policy
from rlhf_lines.merge.truncate import check_rank, factorise_residuals, truncate_adapter
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
    if not policies or isinstance(policies, (str, Path)):
        raise ValueError(f"policies is {policies!r}, expected a list of one or more folders")
    check_settings(spec, len(policies), save, rank, dtype)
    _check_device(device)
    output = Path(output_dir)
    refuse_existing(output, overwrite=overwrite)
    refuse_replacing(output, [sft_model, *policies, *statistics])
    with contextlib.ExitStack() as stack:
        sft = stack.enter_context(Checkpoint(sft_model))
        loaded, found = load_inputs(sft, policies, stack)
        check_statistics(spec.rule, statistics, policies)
        adapters = [policy for policy in loaded if isinstance(policy, Adapter)]
        if save == "adapter" or spec.rule in ADAPTER_RULES:
            _check_all_adapters(loaded, spec)

        def dense_merge(policies: Sequence[Policy], spec: MergeSpec) -> DenseMerge:
            held = open_statistics(spec.rule, statistics, stack)
            return DenseMerge(
                sft, policies, spec, statistics=held, device=device, max_memory=max_memory, progress=progress
            )

        residuals = None
        if spec.rule not in ADAPTER_RULES:
            residuals = dense_merge([_as_residuals(policy, sft) for policy in loaded], spec)
        elif spec.alpha == "auto":
            raise ValueError(f'alpha "auto" is measured on residuals, rule {spec.rule!r} has factors; give a number')
        # Hashing takes a core, so it goes on beside the merge.
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        hashes = hashing.map(weights_sha256, [sft_model, *policies])
        with new_folder(output, overwrite=overwrite) as folder:
            alpha = residuals.alpha if spec.alpha == "auto" else spec.alpha
            resolved = replace(spec, alpha=alpha)
            factors, truncation = None, None
            if spec.rule in ADAPTER_RULES or (save == "adapter" and spec.rule in LINEAR_RULES):
                factors = merge_adapters(adapters, resolved, num_layers=sft.num_layers())
                if rank is not None:
                    factors, truncation = truncate_adapter(factors, rank)
            elif save == "adapter":
                factors, truncation = factorise_residuals(_module_residuals(residuals, adapters, sft), rank)
            if save == "adapter":
                lost, written_dtype = write_adapter(folder, factors, adapters, sft, str(sft_model), dtype)
            else:
                if factors is not None:  # weights and LiNeS are in the factors already
                    whole = AdapterPolicy(replace(adapters[0], modules=factors), sft)
                    residuals = dense_merge([whole], MergeSpec("linear", (1.0,)))
                lost = residuals.write(folder, dtype=dtype, max_shard_size=max_shard_size)
                written_dtype = dtype or _stored_dtype(sft)
            names = [str(policy) for policy in policies]
            found += loss_warnings(lost, dtype=written_dtype, save=save, adapters_only=len(adapters) == len(policies))
            sft_sha256, *policy_hashes = hashes
            record = {
                "format": 1,
                "spec": spec.to_dict(),
                "alpha": alpha,
                "sft_model": str(sft_model),
                "sft_sha256": sft_sha256,
                "policies": [
                    {"path": name, "sha256": sha256} for name, sha256 in zip(names, policy_hashes, strict=True)
                ],
                "statistics": [
                    {"path": str(path), "sha256": statistics_sha256(spec.rule, path)} for path in statistics
                ],
                "save": save,
                "dtype": written_dtype,
                "asked_dtype": dtype,
                "max_shard_size": max_shard_size,
                "versions": versions(),
                "lost_residual": asdict(lost),
                "warnings": [*warnings, *found],
            }
            if save == "adapter":
                record["rank"] = next(iter(factors.values())).A.shape[0]
                if truncation is not None:
                    record["truncation"] = asdict(truncation)
            (folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (folder / "README.md").write_text(model_card(record))
            recipe = mergekit_recipe(
                resolved,
                str(sft_model),
                [policy if isinstance(policy, Adapter) else name for policy, name in zip(loaded, names, strict=True)],
                num_layers=sft.num_layers(),
                out_dtype=written_dtype,
            )
            if recipe is not None and truncation is None:
                (folder / "mergekit.yaml").write_text(recipe)
    return output


def check_settings(spec: MergeSpec, policies: int, save: str, rank: int | None, dtype: str | None) -> None:
    """Stop with a ValueError unless the settings of a merge of so many policies fit each other."""
    if save not in SAVES:
        raise ValueError(unknown_name("save", save, SAVES))
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    if len(spec.weights) != policies:
        raise ValueError(f"{len(spec.weights)} weights for {policies} policies; give one weight per policy")
    _check_rank(rank, save, spec)


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


def _as_residuals(policy: Adapter | Checkpoint, sft: Checkpoint) -> Policy:
    return AdapterPolicy(policy, sft) if isinstance(policy, Adapter) else DensePolicy(policy, sft)


def _module_residuals(merge: DenseMerge, adapters: Sequence[Adapter], sft: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every adapted module with its merged residual ``[out, in]``, one at a time."""
    modules = {name: module for adapter in adapters for name, module in parameters_of(adapter, sft).items()}
    for name, module in modules.items():
        residual = merge.scaled.tensor(name)
        yield module, (residual.T if adapters[0].transposed else residual)
    merge.check_inputs()


def _stored_dtype(sft: Checkpoint) -> str:
    """The dtype that most parameters of the SFT checkpoint have, as the files say (config.json may be silent)."""
    counts: dict[torch.dtype, int] = {}
    for entry in sft.entries.values():
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.size
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")
