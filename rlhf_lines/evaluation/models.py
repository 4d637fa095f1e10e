"""The models of a finished sweep, loaded as the sweep had them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lines.arguments import parse
from rlhf_lines.artifact import CONFIG
from rlhf_lines.sweep.config import SWEEP, SweepConfig
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.multi_lora import check_mixable
from rlhf_lines.sweep.inputs import check_4bit
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store
from rlhf_lines.sweep.swept import Named, named_models


class Described(NamedTuple):
    """What the folder of a finished sweep says of its models: all that a process needs which has no such folder."""

    config: SweepConfig
    models: Named


def describe_models(folder: str | Path, store: Store) -> Described:
    """Read it.

    Args:
        folder: of the sweep.
        store: its run store.
    """
    configs, _ = parse(SWEEP, ["--config", str(Path(folder) / CONFIG)], prog="rlhf-lines sweep")
    config = next(config for config in configs if isinstance(config, SweepConfig))
    return Described(config, named_models(folder, store))


@contextlib.contextmanager
def open_models(described: Described) -> Iterator[LocalEngine]:
    """Yield the engine that has the SFT model, which it loads when first asked, and the policies of a finished sweep.

    Raises:
        FileNotFoundError: a model is no longer where it was.
        ValueError: one has changed since the sweep, or cannot be loaded as it was on this machine.
    """
    config, swept = described.config, described.models.find()
    adapters = swept.load()
    if config.load_in_4bit:
        check_4bit(swept.sft)
    check_mixable(adapters)
    with Merges(swept.sft, adapters[: len(config.policies)], config.groups) as merges:
        yield LocalEngine(config, merges, adapters)
