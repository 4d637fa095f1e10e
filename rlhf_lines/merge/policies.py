"""Merged policies as folders: checked first, written aside, renamed when finished."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from rlhf_lines.artifact import check_place, new_folder, refuse_existing, refuse_replacing
from rlhf_lines.merge.config import shard_size
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.fingerprints import config_sha256
from rlhf_lines.merge.inputs.provenance import MERGE_RECORD, weights_sha256
from rlhf_lines.merge.inputs.statistics_files import statistics_sha256
from rlhf_lines.merge.job import Hashes, Merge, Written
from rlhf_lines.merge.opened import OpenMerge, Progress, open_merge
from rlhf_lines.merge.output.card import model_card
from rlhf_lines.merge.output.mergekit import mergekit_config
from rlhf_lines.merge.spec import MergeSpec


MUCH_LOST = 0.1  # of the merged residual, above which a merge warns
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
    max_shard_size: int | str | None = None,
    max_memory: int | None = None,
    device: str | torch.device = "cpu",
    sft_renamed: bool = False,
    overwrite: bool = False,
    warnings: Sequence[str] = (),
    progress: Progress = lambda phase, elements, total: None,
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
        max_shard_size: bytes of a written weight file, or a size such as 5GB; None shards as the SFT model is.
        max_memory: bytes that the work on one parameter may take, for rules that need whole ones; None is no bound.
        device: where the arithmetic on dense residuals is done.
        sft_renamed: the adapters were trained on this very SFT model under another name or revision, so that what they
            call it is not compared.
        overwrite: replace an existing `output_dir`, once the new one is complete.
        warnings: what the record and the card should say beside the warnings of the inputs.
        progress: told the phase (`measure`, `write`), the number of elements done since the last call, and the total
            of the phase where it is known.

    Raises:
        ValueError: anything that cannot be merged exactly, with the reason.
        FileNotFoundError: a folder or file is missing.
        FileExistsError: `output_dir` exists and `overwrite` is False.
        OSError: the disk is full.
    """
    if not isinstance(spec, MergeSpec):
        raise ValueError(f"spec is {spec!r}, expected a MergeSpec, as MergeSpec.from_dict makes one of a mapping")
    size = None if max_shard_size is None else shard_size(max_shard_size)
    merge = Merge(sft_model, policies, spec, save, rank, dtype, statistics, size, device, sft_renamed)
    output = Path(output_dir)
    merge.check()
    check_output(merge, output, overwrite=overwrite)
    with (
        open_merge(merge, max_memory=max_memory, progress=progress) as opened,
        _hashes(merge) as hashes,
        _new_folder(output, overwrite=overwrite) as folder,
    ):
        written = opened.write(folder)
        fits_adapter = merge.save == "dense" and len(opened.adapters) == len(merge.policies)
        found = [*warnings, *opened.warnings, *loss_warnings(written, fits_adapter=fits_adapter)]
        record = merge.to_record(hashes(), written, found)
        (folder / MERGE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(record))
        if written.truncation is None and (config := _mergekit_config(opened, written)) is not None:
            (folder / "mergekit.yaml").write_text(config)
    return output


def check_output(merge: Merge, output_dir: str | Path, *, overwrite: bool) -> None:
    """Stop where the folder of a merge cannot be made.

    Raises:
        ValueError: the folder above cannot be made or written.
        FileExistsError: it exists and `overwrite` is False, or is needed.
    """
    refuse_existing(output_dir, overwrite=overwrite)
    refuse_replacing(output_dir, [*merge.models, *merge.statistics])
    check_place(output_dir)


def loss_warnings(written: Written, *, fits_adapter: bool) -> list[str]:
    """One warning where the output dtype lost more than a tenth of the merged residual, with the ways out.

    Args:
        written: what came of the merge.
        fits_adapter: whether an adapter, which keeps the residual apart from the weights, could have been saved.
    """
    if written.lost.relative_l2 <= MUCH_LOST:
        return []
    ways = [] if written.dtype in ("float32", "float64") else ["write float32 (--dtype float32)"]
    if fits_adapter:
        ways.append("save an adapter, which keeps the residual apart from the weights (--save adapter)")
    return [
        f"{written.dtype} lost {written.lost.relative_l2:.1%} of the merged residual (relative L2): "
        + (" or ".join(ways) or "the residual is tiny beside the weights, look at alpha, beta and the weights")
    ]


@contextlib.contextmanager
def _hashes(merge: Merge) -> Iterator[Callable[[], Hashes]]:
    """The function that waits for the hashes of the inputs, which threads compute beside the merge."""
    configs = [config_sha256(folder) for folder in merge.models]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        weights = [pool.submit(weights_sha256, folder) for folder in merge.models]
        statistics = [pool.submit(statistics_sha256, merge.rule.statistics, folder) for folder in merge.statistics]
        try:
            yield lambda: Hashes([one.result() for one in weights], configs, [one.result() for one in statistics])
        finally:
            pool.shutdown(cancel_futures=True)


def _mergekit_config(opened: OpenMerge, written: Written) -> str | None:
    """The same merge for mergekit, where mergekit can express it."""
    policies = [
        one if isinstance(one, Adapter) else path
        for one, path in zip(opened.policies, opened.merge.policies, strict=True)
    ]
    return mergekit_config(
        opened.spec,
        opened.merge.sft_model,
        policies,
        num_layers=opened.num_layers,
        out_dtype=written.dtype,
    )


@contextlib.contextmanager
def _new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """`new_folder`, whose place the system may refuse for reasons that only trying shows (/proc, a read-only disk)."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(output, overwrite=overwrite))
        except OSError as error:
            if error.errno not in NO_PLACE:
                raise
            raise ValueError(f"output_dir {output} cannot be made ({error.strerror}): choose another one") from error
        yield folder
