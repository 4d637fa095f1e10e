"""The models of a finished sweep, loaded as the sweep had them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rlhf_lines.arguments import parse
from rlhf_lines.artifact import CONFIG
from rlhf_lines.sweep.config import SWEEP, SweepConfig
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.multi_lora import check_mixable
from rlhf_lines.sweep.inputs import check_4bit
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store
from rlhf_lines.sweep.swept import read_swept


@contextlib.contextmanager
def models_of(folder: str | Path, store: Store) -> Iterator[LocalEngine]:
    """Yield the engine that has the SFT model, which it loads when first asked, and the policies of a finished sweep.

    Args:
        folder: of the sweep.
        store: its run store.

    Raises:
        FileNotFoundError: a model is no longer where it was.
        ValueError: one has changed since the sweep, or cannot be loaded as it was on this machine.
    """
    config, swept = sweep_config(folder), read_swept(folder, store)
    adapters = swept.load()
    if config.load_in_4bit:
        check_4bit(swept.sft)
    check_mixable(adapters)
    with Merges(swept.sft, adapters[: len(config.policies)], config.groups) as merges:
        yield LocalEngine(config, merges, adapters)


def sweep_config(folder: str | Path) -> SweepConfig:
    """The settings of a finished sweep."""
    configs, _ = parse(SWEEP, ["--config", str(Path(folder) / CONFIG)], prog="rlhf-lines sweep")
    return next(config for config in configs if isinstance(config, SweepConfig))
