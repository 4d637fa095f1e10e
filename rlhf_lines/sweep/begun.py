"""A run that has begun, and was stopped: refused, or checked to be the same, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_lines.artifact import partial_folder, refuse_existing
from rlhf_lines.config import RunConfig
from rlhf_lines.distributed import from_leader
from rlhf_lines.merge.inputs.fingerprints import check_unchanged
from rlhf_lines.sweep.store import Store, has_begun


def refuse_begun(run_config: RunConfig, output_dir: str, *, what: str) -> None:
    """Stop every process where the folder exists, or a stopped run has completions that a new one would throw away.

    Args:
        run_config: whether the folder may be replaced, or the stopped run goes on.
        output_dir: the folder that is to be made.
        what: the run, as in `a sweep`.

    Raises:
        FileExistsError: it exists, or there are such completions.
    """
    refuse_existing(output_dir, overwrite=run_config.overwrite)
    if not (run_config.resume or run_config.overwrite):
        from_leader(lambda: _refuse_completions(output_dir, what))


def _refuse_completions(output_dir: str, what: str) -> None:
    partial = partial_folder(output_dir)
    if not has_begun(partial):
        return
    with Store(partial, reading=True) as store:
        finished = len(store.finished())
    if finished:
        raise FileExistsError(
            f"{what} into {output_dir} was stopped after {finished:,} completions: add --resume to go on with it, or "
            "--overwrite to begin again"
        )


def check_begun(
    output_dir: str, kept: Mapping[str, Any], *, what: str, further: Callable[[Store], None] = lambda store: None
) -> None:
    """Stop where a stopped run was of other settings or inputs; settings are named first, then inputs.

    Args:
        output_dir: the folder that it was to make.
        kept: what both must share, `inputs_sha256` among it.
        what: the run, as in `the sweep`.
        further: looks at the store of a run of the same settings and inputs, before the rest of `kept` is compared:
            what the reward models are, and the candidates, which follow from settings in another way in each version.

    Raises:
        ValueError: it was; what has changed is named.
    """
    partial = partial_folder(output_dir)
    if not has_begun(partial):
        return
    settings = {key: kept[key] for key in kept if key not in ("reward_models", "candidates") and "sha256" not in key}
    with Store(partial, reading=True) as store:
        store.check(**settings)
        way_out = "restore it, or start again with --overwrite in place of --resume"
        before = store.recall("inputs_sha256", {})
        check_unchanged(before, kept["inputs_sha256"], since=f"{what} into {output_dir} was begun", way_out=way_out)
        further(store)
        store.check(**kept)
