"""The files of a full checkpoint beside its weights, and how weights are laid out in files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.tokenizers import copy_files, tokenizer_files
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.tensor_file import Entry


def layout(
    sft: Checkpoint, dtype: str | None, max_shard_size: int | None
) -> tuple[dict[str, Entry], Mapping[str, Sequence[str]]]:
    """What is written of every tensor, and which file gets which tensors; see `DenseMerge.write`."""
    entries = {
        name: replace(entry, dtype=DTYPES[dtype]) if dtype and entry.dtype.is_floating_point else entry
        for name, entry in sft.entries.items()
    }
    return entries, sft.files if max_shard_size is None else _shards(entries, max_shard_size)


def _shards(entries: Mapping[str, Entry], max_shard_size: int) -> dict[str, list[str]]:
    """File names as transformers gives them to shards, to the tensors in each, in the order of the SFT files."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, entry in entries.items():
        if groups[-1] and held + entry.nbytes > max_shard_size:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += entry.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}


def write_index(
    sft: Checkpoint, folder: Path, shards: Mapping[str, Sequence[str]], entries: Mapping[str, Entry]
) -> None:
    """Write the index of the shards, with the metadata of the SFT model's; a single file has none."""
    if list(shards) == ["model.safetensors"]:
        return
    metadata = {**(sft.index or {}).get("metadata", {}), "total_size": sum(entry.nbytes for entry in entries.values())}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(entry.size for entry in entries.values())
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_companions(sft: Checkpoint, folder: Path, dtype: str | None) -> None:
    """Write the config, with the dtype of the weights; copy the generation config and the tokenizer's files."""
    config = dict(sft.config)
    if dtype is not None:
        # transformers 5 writes `dtype`, older versions `torch_dtype`; whichever is there must agree with the weights.
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]:
            config[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    copy_files(sft.folder, folder, ["generation_config.json", *tokenizer_files(sft.folder)])
