"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf_lines.artifact import new_folder, refuse_existing, versions
from rlhf_lines.merge.card import model_card
from rlhf_lines.merge.checkpoint import Checkpoint
from rlhf_lines.merge.dense import AdapterPolicy, DenseMerge, DensePolicy
from rlhf_lines.merge.low_rank import difference, merge_adapters
from rlhf_lines.merge.precision import DTYPES, LostResidual
from rlhf_lines.merge.provenance import MERGE_RECORD, load_inputs, loss_warnings, weights_sha256
from rlhf_lines.merge.recipe import mergekit_recipe
from rlhf_lines.merge.residuals import RECORD_FILE, WEIGHTS_FILE, Adapter, Factors
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.suggestion import unknown_name


SAVES = ("adapter", "dense")


def merge_policies(
    sft_model: str | Path,
    policies: Sequence[str | Path],
    spec: MergeSpec,
    *,
    save: str,
    output_dir: str | Path,
    dtype: str | None = None,
    overwrite: bool = False,
    warnings: Sequence[str] = (),
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
        dtype: float16, bfloat16, float32 or float64 of the written weights. None: for `dense` that of the SFT model,
            for `adapter` float32 or that of wider factors.
        overwrite: replace an existing `output_dir`, once the new one is complete.
        warnings: what the record and the card should say beside the warnings of `check_inputs`.

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
    output = Path(output_dir)
    check_output(output, [sft_model, *policies], overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        sft = stack.enter_context(Checkpoint(sft_model))
        loaded, found = load_inputs(sft, policies, stack)
        adapters = [policy for policy in loaded if isinstance(policy, Adapter)]
        if save == "adapter":
            dense = next((policy for policy in loaded if isinstance(policy, Checkpoint)), None)
            if dense is not None:
                raise ValueError(
                    f"policy {str(dense.folder)!r} is a dense checkpoint, which no adapter holds exactly; use --save "
                    "dense"
                )
            merged = merge_adapters(adapters, spec, num_layers=sft.num_layers())
        else:
            merge = DenseMerge(sft, [_as_residuals(policy, sft) for policy in loaded], spec)
        with new_folder(output, overwrite=overwrite) as folder:
            if save == "adapter":
                lost, written_dtype = _write_adapter(folder, merged, adapters, sft, str(sft_model), dtype)
            else:
                lost, written_dtype = merge.write(folder, dtype=dtype), dtype or _stored_dtype(sft)
            names = [str(policy) for policy in policies]
            found += loss_warnings(lost, dtype=written_dtype, save=save, adapters_only=len(adapters) == len(policies))
            record = {
                "format": 1,
                "spec": spec.to_dict(),
                "sft_model": str(sft_model),
                "sft_sha256": weights_sha256(sft_model),
                "policies": [{"path": name, "sha256": weights_sha256(name)} for name in names],
                "save": save,
                "dtype": written_dtype,
                "asked_dtype": dtype,
                "versions": versions(),
                "lost_residual": asdict(lost),
                "warnings": [*warnings, *found],
            }
            if save == "adapter":
                record["rank"] = next(iter(merged.values())).A.shape[0]
            (folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (folder / "README.md").write_text(model_card(record))
            recipe = mergekit_recipe(
                spec,
                str(sft_model),
                [policy if isinstance(policy, Adapter) else name for policy, name in zip(loaded, names, strict=True)],
                num_layers=sft.num_layers(),
                out_dtype=written_dtype,
            )
            if recipe is not None:
                (folder / "mergekit.yaml").write_text(recipe)
    return output


def _as_residuals(policy: Adapter | Checkpoint, sft: Checkpoint) -> AdapterPolicy | DensePolicy:
    return AdapterPolicy(policy, sft) if isinstance(policy, Adapter) else DensePolicy(policy, sft)


def check_output(output: Path, inputs: Sequence[str | Path], *, overwrite: bool) -> None:
    """Raise FileExistsError where a merge may not write, among these where it would delete an input."""
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
    counts: dict[str, int] = {}
    for name, dtype in sft.dtypes.items():
        size = 1
        for length in sft.shapes[name]:
            size *= length
        counts[dtype] = counts.get(dtype, 0) + size
    return max(counts, key=counts.__getitem__)
