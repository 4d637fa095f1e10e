"""Stage `basis`: many adapters of one SFT model in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.errors import counted, unknown_name
from rlhf_lines.merge.basis_config import BasisConfig
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.merge.inputs.fingerprints import Fingerprint, model_fingerprint, policy_fingerprint
from rlhf_lines.merge.inputs.provenance import called, load_adapters, weights_sha256
from rlhf_lines.merge.lora.basis import (
    fit_basis,
    largest_rank,
    lost_by,
    most_components,
    numbers_of,
    positions_of,
)
from rlhf_lines.merge.output.summary import ranks_text
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.tensor_file import TensorFile
from rlhf_lines.models import local_folder


BASIS_FILE = "basis.safetensors"


def run(run_config: RunConfig, config: BasisConfig, given: dict) -> Path:
    """Write `basis.safetensors` and return its folder; the record says what each policy lost, and the bytes.

    Raises:
        FileNotFoundError, FileExistsError: a policy does not exist, or `output_dir` does.
        ValueError: a policy is no adapter of this SFT model, or the basis would take no fewer bytes than they do.
    """
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)
    check_dtype(config.dtype)
    sft, folders = _folders(config)
    refuse_replacing(config.output_dir, [sft, *folders])
    adapters, warnings = load_adapters(folders, sft, sft_renamed=config.sft_renamed)
    dtype = DTYPES[config.dtype] if config.dtype else stored_dtype(folders)
    ranks = [largest_rank([adapter]) for adapter in adapters]
    numbers, positions = sum(map(numbers_of, adapters)), positions_of(adapters)
    components = components_of(config.components, ranks, numbers=numbers, positions=positions)
    basis = fit_basis(adapters, components, dtype=dtype)
    lost = lost_by(basis, adapters)
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder:
        save_file(basis.to_tensors(), folder / BASIS_FILE, metadata={"format": "pt"})
        before = [(path / WEIGHTS_FILE).stat().st_size for path in folders]
        after = (folder / BASIS_FILE).stat().st_size
        check_saves(components, dtype, after, sum(before))
        policies = [
            {"path": name, "sha256": weights_sha256(path), "bytes": size, "rank": rank, "lost": share}
            for name, path, size, rank, share in zip(config.policies, folders, before, ranks, lost, strict=True)
        ]
        write_record(
            folder,
            "basis",
            given,
            sft_model=config.sft_model,
            sft_sha256=checkpoint_sha256(sft),
            inputs_sha256=inputs(run_config, config),
            policies=policies,
            rank=max(ranks),
            components=components,
            dtype=str(dtype).removeprefix("torch."),
            bytes=after,
            task_type=adapters[0].task_type,
            warnings=[*warnings, *_lost_warnings(config.policies, lost)],
        )
    return Path(config.output_dir)


def inputs(run_config: RunConfig, config: BasisConfig) -> dict[str, Fingerprint]:
    """What the stage would read with these settings, as its record holds it."""
    sft, folders = _folders(config)
    of_policies = {
        f"policy {number} ({called(name)})": policy_fingerprint(path)
        for number, (name, path) in enumerate(zip(config.policies, folders, strict=True), start=1)
    }
    return {f"SFT model {called(config.sft_model)}": model_fingerprint(sft), **of_policies}


def _folders(config: BasisConfig) -> tuple[Path, list[Path]]:
    sft = local_folder(config.sft_model, what="SFT model")
    return sft, [local_folder(policy, what="policy") for policy in config.policies]


def check_dtype(name: str | None) -> None:
    """Stop with a ValueError where a dtype is given that no factors are written in."""
    if name is not None and name not in DTYPES:
        raise ValueError(unknown_name("dtype", name, DTYPES))


def stored_dtype(folders: Sequence[Path]) -> torch.dtype:
    """The widest dtype that the files of the adapters have."""
    dtypes = []
    for folder in folders:
        file = TensorFile(folder / WEIGHTS_FILE)
        dtypes += [entry.dtype for entry in file.entries.values()]
        file.close()
    widest = dtypes[0]
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return widest


def components_of(asked: int | None, ranks: Sequence[int], *, numbers: int, positions: int) -> int:
    """How many components are kept of policies of these ranks, where that saves numbers.

    Args:
        asked: None is as many as save.
        ranks: the largest of any module, of every policy.
        numbers: of all factors of the policies.
        positions: rows of B and columns of A of every module that any of them adapts.

    Raises:
        ValueError: it does not.
    """
    most = most_components(len(ranks), max(ranks), numbers, positions)
    policies = f"{counted(len(ranks), 'policy', 'policies')} of {ranks_text(ranks)}"
    if most == 0:
        raise ValueError(
            f"{policies} take fewer numbers as they are than any basis of theirs: keep the adapters, or give more "
            "policies"
        )
    if asked is not None and asked > most:
        raise ValueError(
            f"components is {asked}, but {policies} take no more numbers as they are from {most + 1} on: give at most "
            f"{most}"
        )
    return most if asked is None else asked


def _lost_warnings(names: Sequence[str], lost: Sequence[float]) -> list[str]:
    """A warning for each policy that comes out of the basis further from itself than the SFT model is."""
    return [
        f"policy {name!r} lost {share:.1%} of its residual, more than the SFT model in its place: keep its adapter, "
        "and make the basis without it"
        for name, share in zip(names, lost, strict=True)
        if share > 1
    ]


def check_saves(components: int, dtype: torch.dtype, after: int, before: int) -> None:
    """Stop with a ValueError where a basis takes no fewer bytes than the adapters."""
    if after >= before:
        raise ValueError(
            f"a basis of {components} components in {str(dtype).removeprefix('torch.')} takes {after:,} bytes, the "
            f"adapters {before:,}: give fewer components or a narrower dtype, or keep the adapters"
        )
