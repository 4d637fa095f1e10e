"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf_lines.artifact import new_folder, refuse_existing, versions
from rlhf_lines.merge.card import mergekit_recipe, model_card
from rlhf_lines.merge.checkpoint import Checkpoint, checkpoint_sha256, sha256_of
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.low_rank import difference, merge_adapters
from rlhf_lines.merge.precision import DTYPES, LostResidual
from rlhf_lines.merge.residuals import (
    RECORD_FILE,
    WEIGHTS_FILE,
    Adapter,
    Factors,
    is_adapter,
    load_adapters,
)
from rlhf_lines.merge.rules import ADAPTER_RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.streamed import AdapterPolicy, DensePolicy
from rlhf_lines.merge.truncate import Truncation, check_rank, truncate_adapter
from rlhf_lines.problems import Problems
from rlhf_lines.suggestion import unknown_name


SAVES = ("adapter", "dense")
MERGE_RECORD = "merge_spec.json"


def merge_policies(
    sft_model: str | Path,
    policies: Sequence[str | Path],
    spec: MergeSpec,
    *,
    save: str,
    output_dir: str | Path,
    rank: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the merged policy theta_SFT + LiNeS(rule(tau_1..tau_K)) and return its folder.

    Everything that headers and configs can tell is checked before anything is written. The folder is written under a
    hidden name beside `output_dir` and renamed when it is complete, so that a failure leaves nothing behind.

    Args:
        sft_model: folder of the SFT model.
        policies: K folders, adapters (PEFT) or dense checkpoints.
        spec: what to merge how.
        save: `adapter` (exact, rank sum_k r_k, adapters only) or `dense` (a full checkpoint).
        output_dir: the folder to make; besides weights it gets `merge_spec.json`, `README.md` and, where mergekit can
            express the merge, `mergekit.yaml`.
        rank: of the written adapter. None: that of the exact merge. A smaller one keeps the nearest residual of that
            rank in every module, and the share that is lost is recorded.
        dtype: float16, bfloat16, float32 or float64 of the written weights. None: for `dense` that of the SFT model,
            for `adapter` float32 or that of wider factors.
        overwrite: replace an existing `output_dir`, once the new one is complete.

    Raises:
        ValueError: anything that cannot be merged exactly, with the reason.
        FileNotFoundError: a folder or file is missing.
        FileExistsError: `output_dir` exists and `overwrite` is False.
    """
    if save not in SAVES:
        raise ValueError(unknown_name("save", save, SAVES))
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    if not policies or isinstance(policies, (str, Path)):
        raise ValueError(f"policies is {policies!r}, expected a list of one or more folders")
    if len(spec.weights) != len(policies):
        raise ValueError(f"{len(spec.weights)} weights for {len(policies)} policies; give one weight per policy")
    if rank is not None:
        check_rank(rank)
        if save == "dense":
            raise ValueError(f"rank is {rank}, but a dense checkpoint has none; leave it out, or use --save adapter")
    output = Path(output_dir)
    _check_output(output, [sft_model, *policies], overwrite)
    with contextlib.ExitStack() as stack:
        sft = stack.enter_context(Checkpoint(sft_model))
        loaded = _open_policies(policies, sft_model, stack)
        adapters = [policy for policy in loaded if isinstance(policy, Adapter)]
        merged, truncation = None, None
        if save == "adapter" or spec.rule in ADAPTER_RULES:
            merged, truncation = _merged_adapter(loaded, spec, sft.num_layers(), rank)
        if save == "dense":
            if merged is None:
                merge = DenseMerge(sft, [_as_residuals(policy, sft) for policy in loaded], spec)
            else:  # weights and LiNeS are in the factors already
                whole = AdapterPolicy(replace(adapters[0], modules=merged), sft)
                merge = DenseMerge(sft, [whole], MergeSpec("linear", (1.0,)))
        with new_folder(output, overwrite=overwrite) as folder:
            if save == "adapter":
                lost, written_dtype = _write_adapter(folder, merged, adapters, sft, str(sft_model), dtype)
            else:
                lost, written_dtype = merge.write(folder, dtype=dtype), dtype or _stored_dtype(sft)
            names = [str(policy) for policy in policies]
            record = {
                "format": 1,
                "spec": spec.to_dict(),
                "sft_model": str(sft_model),
                "policies": [{"path": name, "sha256": _policy_sha256(name)} for name in names],
                "save": save,
                "dtype": written_dtype,
                "versions": versions(),
                "lost_residual": asdict(lost),
            }
            if save == "adapter":
                record["rank"] = next(iter(merged.values())).A.shape[0]
                if truncation is not None:
                    record["truncation"] = asdict(truncation)
            (folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
            card = model_card(
                spec, str(sft_model), names, save=save, dtype=written_dtype, lost=lost, truncation=truncation
            )
            (folder / "README.md").write_text(card)
            recipe = mergekit_recipe(
                spec,
                str(sft_model),
                [policy if isinstance(policy, Adapter) else name for policy, name in zip(loaded, names, strict=True)],
                num_layers=sft.num_layers(),
                out_dtype=written_dtype,
            )
            if recipe is not None and truncation is None:
                (folder / "mergekit.yaml").write_text(recipe)
    return output


def _open_policies(
    policies: Sequence[str | Path], sft_model: str | Path, stack: contextlib.ExitStack
) -> list[Adapter | Checkpoint]:
    """Every policy, read or opened; what is wrong with any of them is told at once."""
    problems = Problems()
    opened: dict[str, Adapter | Checkpoint] = {}
    with problems.collect():
        adapters = load_adapters([policy for policy in policies if is_adapter(policy)], sft_model)
        opened.update({adapter.path: adapter for adapter in adapters})
    for policy in policies:
        if not is_adapter(policy):
            with problems.collect():
                opened[str(policy)] = stack.enter_context(Checkpoint(policy))
    problems.check()
    return [opened[str(policy)] for policy in policies]


def _merged_adapter(
    loaded: Sequence[Adapter | Checkpoint], spec: MergeSpec, num_layers: int, rank: int | None
) -> tuple[dict[str, Factors], Truncation | None]:
    dense = next((policy for policy in loaded if isinstance(policy, Checkpoint)), None)
    if dense is not None and spec.rule in ADAPTER_RULES:
        raise ValueError(
            f"rule {spec.rule!r} combines the factors of adapters, but policy {str(dense.folder)!r} is a dense "
            "checkpoint; use rule linear"
        )
    if dense is not None:
        raise ValueError(
            f"policy {str(dense.folder)!r} is a dense checkpoint, which no adapter holds exactly; use --save dense"
        )
    merged = merge_adapters(loaded, spec, num_layers=num_layers)
    return (merged, None) if rank is None else truncate_adapter(merged, rank)


def _as_residuals(policy: Adapter | Checkpoint, sft: Checkpoint) -> AdapterPolicy | DensePolicy:
    return AdapterPolicy(policy, sft) if isinstance(policy, Adapter) else DensePolicy(policy, sft)


def _check_output(output: Path, inputs: Sequence[str | Path], overwrite: bool) -> None:
    refuse_existing(output, overwrite=overwrite)
    if not output.exists():
        return
    for needed in inputs:
        resolved = Path(needed).resolve()
        if output.resolve() in (resolved, *resolved.parents):
            raise FileExistsError(
                f"output_dir {str(output)!r} contains {str(needed)!r}, which --overwrite would delete; choose another "
                "folder"
            )


def _write_adapter(
    folder: Path,
    merged: dict[str, Factors],
    adapters: Sequence[Adapter],
    sft: Checkpoint,
    sft_model: str,
    dtype: str | None,
) -> tuple[LostResidual, str]:
    # peft imports transformers; only this path needs it.
    from peft import LoraConfig

    factors = next(iter(merged.values()))
    target = DTYPES[dtype] if dtype else torch.promote_types(factors.A.dtype, torch.float32)
    cast = {module: Factors(entry.A.to(target), entry.B.to(target), 1.0) for module, entry in merged.items()}
    for module, entry in cast.items():
        if not (torch.isfinite(entry.A).all() and torch.isfinite(entry.B).all()):
            raise ValueError(
                f"merged factors of {module!r} are not finite in {dtype}; check alpha, beta and weights, or choose "
                "float32"
            )
    tensors = {}
    for module, entry in cast.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = entry.A.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = entry.B.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    rank = factors.A.shape[0]
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(list(merged), sft),
        fan_in_fan_out=adapters[0].transposed,
        base_model_name_or_path=sft_model,
        task_type=adapters[0].task_type or "CAUSAL_LM",
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    ).save_pretrained(folder)
    hashes = {adapter.sft_sha256 for adapter in adapters}
    if None not in hashes:
        # A merged adapter can be merged again, also after its SFT model has moved.
        record = {"format": 1, "stage": "merge", "sft_sha256": hashes.pop()}
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return LostResidual(difference(merged, cast), None), str(target).removeprefix("torch.")


def _target_modules(modules: list[str], sft: Checkpoint) -> list[str]:
    """Last name components where they select exactly these modules (all servers read those), else full names."""
    endings = sorted({module.rpartition(".")[2] for module in modules})
    candidates = [name.removesuffix(".weight") for name in sft.shapes if name.endswith(".weight")]
    selected = {name for name in candidates if name.rpartition(".")[2] in endings}
    wanted = {(sft.parameter(f"{module}.weight") or "").removesuffix(".weight") for module in modules}
    return endings if selected == wanted else modules


def _stored_dtype(sft: Checkpoint) -> str:
    """The dtype that most parameters of the SFT checkpoint have, as the files say (config.json may be silent)."""
    counts: dict[torch.dtype, int] = {}
    for entry in sft.entries.values():
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.size
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")


def _policy_sha256(policy: str) -> str:
    return sha256_of([Path(policy) / WEIGHTS_FILE]) if is_adapter(policy) else checkpoint_sha256(policy)
