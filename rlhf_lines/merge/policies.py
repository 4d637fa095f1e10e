"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from rlhf_lines.artifact import new_folder, versions
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.provenance import MERGE_RECORD, loss_warnings, weights_sha256
from rlhf_lines.merge.inputs.statistics_files import statistics_sha256
from rlhf_lines.merge.output.card import model_card
from rlhf_lines.merge.output.mergekit import mergekit_config
from rlhf_lines.merge.prepare import check_settings, open_merge
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec


NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)


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
    device: str | torch.device = "cpu",
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
            rank in every module, and the share that is lost is recorded; a larger one than the residual has is lowered
            to that, with a warning. Rules that are not linear need one.
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
    output, inputs = Path(output_dir), [sft_model, *policies]
    check_settings(
        inputs,
        spec,
        save=save,
        output_dir=output,
        rank=rank,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        statistics=statistics,
    )
    with contextlib.ExitStack() as stack:
        prepared = open_merge(
            inputs,
            spec,
            stack,
            save=save,
            rank=rank,
            device=device,
            statistics=statistics,
            max_memory=max_memory,
            progress=progress,
        )
        merge, found = prepared.merge, prepared.warnings
        # Hashing takes a core, so it goes on beside the merge.
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        hashes = hashing.map(weights_sha256, inputs)
        with _new_folder(output, overwrite=overwrite) as folder:
            if save == "adapter":
                written = merge.write_adapter(folder, str(sft_model), rank=prepared.rank, dtype=dtype)
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
                    {"path": str(path), "sha256": statistics_sha256(RULES[spec.rule].statistics, path)}
                    for path in statistics
                ],
                "save": save,
                "dtype": written.dtype,
                "asked_dtype": dtype,
                "asked_rank": rank,
                "max_shard_size": max_shard_size,
                "device": str(device),
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
            recipe = mergekit_config(
                merge.resolved,
                str(sft_model),
                [
                    one if isinstance(one, Adapter) else str(path)
                    for one, path in zip(prepared.policies, policies, strict=True)
                ],
                num_layers=prepared.sft.num_layers(),
                out_dtype=written.dtype,
            )
            if recipe is not None and written.truncation is None:
                (folder / "mergekit.yaml").write_text(recipe)
    return output


@contextlib.contextmanager
def _new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """`new_folder`, whose place the system may refuse for reasons that only trying shows (/proc, a read-only disk)."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(output, overwrite=overwrite))
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in NO_PLACE:
                raise ValueError(
                    f"output_dir {output} cannot be made ({error.strerror}): choose another one"
                ) from error
            raise
        yield folder
