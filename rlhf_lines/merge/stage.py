"""Stage `merge`: one merged policy, as an adapter or as a dense checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_lines.artifact import refuse_existing
from rlhf_lines.config import RunConfig
from rlhf_lines.errors import Problems
from rlhf_lines.merge.config import MergeConfig
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.output.hub import check_hub, upload
from rlhf_lines.merge.output.record import check_repeat, read_merge
from rlhf_lines.merge.policies import MERGE_RECORD, merge_policies
from rlhf_lines.merge.soups import checkpoint_weights, uniform_soup
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.models import local_folder
from rlhf_lines.progress import Bar


logger = logging.getLogger(__name__)


def run(run_config: RunConfig, config: MergeConfig, given: dict) -> Path:
    """Write the merged policy, upload it if asked to, and return its folder; see `merge_policies`."""
    if config.plan:
        raise ValueError("plan is for the command: rlhf-lines merge --plan, or rlhf-lines plan --config FILE")
    if config.push_to_hub:
        check_hub(config.hub_model_id)
    if is_kept(run_config, config):
        check_same_merge(config.output_dir, merge_of(config))
    else:
        _merge(config, overwrite=run_config.overwrite)
    folder = Path(config.output_dir)
    if config.push_to_hub:
        upload(folder, config.hub_model_id, private=config.hub_private_repo)
    return folder


def merge_of(config: MergeConfig) -> Merge:
    """The merge as a value, folders as they are named.

    Raises:
        ValueError: weights that are given twice, or a spec that does not exist.
    """
    spec = MergeSpec(
        config.rule,
        _weights(config),
        config.alpha,
        config.beta,
        config.schedule,
        config.rule_options or {},
        lines=config.lines,
    )
    return Merge(
        config.sft_model,
        config.policies,
        spec,
        config.save,
        rank=config.rank,
        dtype=config.dtype,
        statistics=config.statistics or (),
        max_shard_size=config.max_shard_size,
        device=config.device,
        sft_renamed=config.sft_renamed,
    )


def _weights(config: MergeConfig) -> tuple[float, ...]:
    if config.weights_by is None:
        if config.power is not None:
            raise ValueError(f"power is {config.power}, but it belongs to weights_by; give --weights_by step or loss")
        return uniform_soup(len(config.policies)).weights if config.weights is None else tuple(config.weights)
    if config.weights is not None:
        raise ValueError("weights and weights_by are both given; keep one of them")
    _, *policies = _folders([config.sft_model, *config.policies])
    return checkpoint_weights(policies, config.weights_by, power=1.0 if config.power is None else config.power)


def _merge(config: MergeConfig, *, overwrite: bool) -> None:
    refuse_existing(config.output_dir, overwrite=overwrite)  # before gigabytes are hashed
    for sentence in config.without_effect:
        logger.warning("%s", sentence)
    merge = with_folders(merge_of(config))
    warnings = check_repeat(config.repeats, merge) if config.repeats else ()
    with _Bars() as progress:
        merge_policies(
            **vars(merge),
            output_dir=config.output_dir,
            max_memory=config.max_memory,
            overwrite=overwrite,
            warnings=warnings,
            progress=progress,
        )


class _Bars:
    """A bar per phase of a merge: over the residuals while a rule measures them, over the model while it is written.

    Nothing of it stays on a terminal, also when the merge stops with an error.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, elements: int, total: int | None) -> None:
        if phase != self._phase:
            self.__exit__()
            self._phase = phase
            self._bar = Bar(
                desc=f"merge: {phase}", total=total, unit="numbers", unit_scale=True, leave=False, late=True
            )
        self._bar.update(elements)


def is_kept(run_config: RunConfig, config: MergeConfig) -> bool:
    """Whether `--resume` finds a finished merge, which is not made again."""
    return run_config.resume and (Path(config.output_dir) / MERGE_RECORD).is_file()


def check_same_merge(output_dir: str | Path, merge: Merge) -> None:
    """Raise ValueError when the folder to be kept holds another merge, or one of inputs that have changed since."""
    path, merge = Path(output_dir) / MERGE_RECORD, with_folders(merge)
    way_out = "choose another folder, or replace it with --overwrite in place of --resume"
    if differing := read_merge(path).difference(merge):
        key, before, now = differing
        raise ValueError(f"output_dir {output_dir} was made with {key} {before}, now it is {now}: {way_out}")
    check_repeat(path, merge, way_out=way_out)


def with_folders(merge: Merge) -> Merge:
    """The merge with the local folders of its models; all that are missing are told at once."""
    sft, *policies = _folders(merge.models)
    return replace(merge, sft_model=sft, policies=policies)


def _folders(models: Sequence[str]) -> list[Path]:
    """The local folders of the SFT model and of the policies."""
    problems = Problems()
    folders = []
    for number, name in enumerate(models):
        with problems.collect():
            folders.append(local_folder(name, what="policy" if number else "SFT model"))
    problems.check()
    return folders
