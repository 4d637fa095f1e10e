"""Stage `rebuild`: a policy, or a mix of policies, from a basis, as an adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from reward_models.files import refuse_pointer
from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.errors import about, counted
from rlhf_lines.merge.basis import BASIS_FILE, check_dtype
from rlhf_lines.merge.basis_config import RebuildConfig
from rlhf_lines.merge.inputs.adapter import RECORD_FILE, Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256, read_json
from rlhf_lines.merge.inputs.tokenizers import copy_files, tokenizer_files
from rlhf_lines.merge.lora.basis import Basis
from rlhf_lines.merge.lora.low_rank import merge_adapters
from rlhf_lines.merge.lora.truncate import check_rank, truncate_adapter
from rlhf_lines.merge.output.adapter import write_adapter
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.models import local_folder


logger = logging.getLogger(__name__)


def run(run_config: RunConfig, config: RebuildConfig, given: dict) -> Path:
    """Write theta_SFT + LiNeS(sum_k w_k B_k' A_k') as an adapter and return its folder.

    B_k', A_k' are the factors of policy k as they come out of the basis. Policies of weight zero take no rank.

    Raises:
        FileNotFoundError, FileExistsError: there is no basis or SFT model, or `output_dir` exists.
        ValueError: the basis is damaged or of another SFT model, or the weights do not fit.
    """
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)
    for sentence in config.without_effect:
        logger.warning("%s", sentence)
    check_dtype(config.dtype)
    if config.rank is not None:
        check_rank(config.rank)
    folder, record = Path(config.basis), basis_record(config.basis)
    taken = taken_policies(config, record)
    sft_model = config.sft_model or record["sft_model"]
    sft = local_folder(sft_model, what="SFT model")
    refuse_replacing(config.output_dir, [sft, folder])
    if (found := checkpoint_sha256(sft)) != record["sft_sha256"]:
        raise ValueError(
            f"the basis is of an SFT model with the SHA-256 {record['sft_sha256'][:12]}, but {sft_model} has "
            f"{found[:12]}; give that SFT model with --sft_model"
        )
    refuse_pointer(folder / BASIS_FILE)
    with about(f"basis {folder / BASIS_FILE} cannot be read"):
        tensors = load_file(folder / BASIS_FILE)
    basis = Basis.from_tensors(tensors)
    names = [policy["path"] for policy in record["policies"]]
    adapters = [
        Adapter(
            names[k],
            basis.factors(k),
            task_type=record["task_type"],
            sft_sha256=record["sft_sha256"],
        )
        for k in taken
    ]
    spec = MergeSpec("linear", [config.weights[k] for k in taken], config.alpha, config.beta, config.schedule)
    with Checkpoint(sft) as checkpoint, new_folder(config.output_dir, overwrite=run_config.overwrite) as out:
        factors = merge_adapters(adapters, spec, num_layers=checkpoint.num_layers(sorted(basis.modules)))
        truncation = None
        if config.rank is not None:
            factors, truncation = truncate_adapter(factors, config.rank)
        _, dtype = write_adapter(out, factors, adapters, checkpoint, str(sft_model), config.dtype)
        copy_files(sft, out, tokenizer_files(sft))
        lost = {policy["path"]: policy["lost"] for policy in record["policies"]}
        write_record(
            out,
            "rebuild",
            given,
            sft_model=str(sft_model),
            sft_sha256=record["sft_sha256"],
            weights=list(config.weights),
            policies=names,
            lost={names[k]: lost[names[k]] for k in taken},
            rank=next(iter(factors.values())).A.shape[0],
            dtype=dtype,
            truncation=truncation and asdict(truncation),
        )
    return Path(config.output_dir)


def basis_record(folder: str | Path) -> dict[str, Any]:
    """What is recorded of the basis in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the record is of something else.
    """
    if not (Path(folder) / BASIS_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {BASIS_FILE}; expected the folder that `rlhf-lines basis` makes")
    path = Path(folder) / RECORD_FILE
    record = read_json(path)
    if record.get("stage") != "basis":
        raise ValueError(f"{path} is not of a basis; make it again with `rlhf-lines basis`")
    return record


def taken_policies(config: RebuildConfig, record: Mapping[str, Any]) -> list[int]:
    """The policies of the basis whose weight is not 0.

    Raises:
        ValueError: weights of another number of policies, or all 0.
    """
    names = [policy["path"] for policy in record["policies"]]
    if len(config.weights) != len(names):
        raise ValueError(
            f"{counted(len(config.weights), 'weight')} for {counted(len(names), 'policy', 'policies')} "
            f"({', '.join(names)}); give one per policy"
        )
    taken = [k for k, weight in enumerate(config.weights) if weight]
    if not taken:
        raise ValueError("all weights are 0, which is the SFT model itself; give one that is not")
    return taken
