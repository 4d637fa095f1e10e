"""A merged adapter as a PEFT folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf_lines.merge.inputs.adapter import RECORD_FILE, WEIGHTS_FILE, Adapter, Factors
from rlhf_lines.merge.inputs.adapter_config import CONFIG_FILE
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM, SEEING, TRANSLATOR
from rlhf_lines.merge.inputs.provenance import hub_id
from rlhf_lines.merge.lora.low_rank import difference
from rlhf_lines.merge.tensors.precision import DTYPES, LostResidual


def write_adapter(
    folder: Path,
    merged: Mapping[str, Factors],
    adapters: Sequence[Adapter],
    sft: Checkpoint,
    sft_model: str,
    dtype: str | None,
) -> tuple[LostResidual, str]:
    """Write merged factors as a PEFT folder; return what the cast lost, and the dtype of the written factors.

    Args:
        folder: an existing folder.
        merged: module name to factors of scale 1 and one rank.
        adapters: what they were merged from.
        sft: the SFT model.
        sft_model: its name in the adapter's config; a snapshot in the Hub's cache is named by its Hub id and revision,
            which other machines know too.
        dtype: of the written factors; None is theirs, at least float32.

    Raises:
        ValueError: factors that are not finite in the dtype.
    """
    factors = next(iter(merged.values()))
    target = DTYPES[dtype] if dtype else torch.promote_types(factors.A.dtype, torch.float32)
    written_dtype = str(target).removeprefix("torch.")
    cast = {module: Factors(entry.A.to(target), entry.B.to(target), 1.0) for module, entry in merged.items()}
    for module, entry in cast.items():
        if not (torch.isfinite(entry.A).all() and torch.isfinite(entry.B).all()):
            wider = "" if target in (torch.float32, torch.float64) else ", or choose --dtype float32"
            raise ValueError(
                f"merged factors of {module!r} are not finite in {written_dtype}; check alpha, beta and weights{wider}"
            )
    tensors = {}
    for module, entry in cast.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = entry.A.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = entry.B.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = _settings(factors.A.shape[0], list(merged), _task_type(merged, adapters, sft), sft, sft_model)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    hashes = {adapter.sft_sha256 for adapter in adapters}
    if None not in hashes:
        # A merged adapter can be merged again, also after its SFT model has moved.
        record = {"format": 1, "stage": "merge", "sft_sha256": hashes.pop()}
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return LostResidual(difference(merged, cast), None), written_dtype


def _settings(rank: int, modules: list[str], task_type: str | None, sft: Checkpoint, sft_model: str) -> dict:
    """`adapter_config.json`: the settings of PEFT's `LoraConfig` that servers and converters read, old ones too.

    They are written by hand because PEFT takes many times as long to import as an adapter takes to merge.
    """
    on_hub = hub_id(sft_model)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": on_hub or sft_model,
        "revision": Path(sft_model).name if on_hub else None,
        "r": rank,
        "lora_alpha": rank,  # the factors are of scale 1
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "target_modules": _target_modules(modules, sft),
        "modules_to_save": None,
        "fan_in_fan_out": any(sft.is_transposed(f"{module}.weight") for module in modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _task_type(modules: Iterable[str], adapters: Sequence[Adapter], sft: Checkpoint) -> str | None:
    """PEFT's name for what the model does; where it has none, or the model is unknown, what a policy says."""
    loader = sft.loader([f"{module}.weight" for module in modules])
    if loader in (CAUSAL_LM, SEEING):
        return "CAUSAL_LM"
    if loader == TRANSLATOR and sft.config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM"
    said = next(filter(None, (adapter.task_type for adapter in adapters)), None)
    return said or ("CAUSAL_LM" if loader is None else None)


def _target_modules(modules: list[str], sft: Checkpoint) -> list[str]:
    """Last name components where they select exactly these modules (all servers read those), else full names."""
    endings = sorted({module.rpartition(".")[2] for module in modules})
    candidates = [name.removesuffix(".weight") for name in sft.shapes if name.endswith(".weight")]
    selected = {name for name in candidates if name.rpartition(".")[2] in endings}
    wanted = {(sft.parameter(f"{module}.weight") or "").removesuffix(".weight") for module in modules}
    # A number is also the end of a layer's name, which would be adapted whole.
    return endings if selected == wanted and not any(map(str.isdigit, endings)) else modules
