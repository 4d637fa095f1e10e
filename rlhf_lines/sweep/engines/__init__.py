"""Who generates: specs on one loaded base, or in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rlhf_lines.merge.inputs.adapter import Adapter
    from rlhf_lines.sweep.config import SweepConfig
    from rlhf_lines.sweep.engines.protocol import Engine
    from rlhf_lines.sweep.merges import Merges


def check_engine(config: SweepConfig) -> None:
    """Stop where the engine that the config names cannot work on this machine, before anything is loaded.

    Raises:
        ValueError: it cannot.
    """
    if config.engine == "vllm":
        from rlhf_lines.sweep.engines.vllm import check_here

        check_here(config.dtype)


def make_engine(config: SweepConfig, merges: Merges, adapters: Sequence[Adapter], folder: Path) -> Engine:
    """The engine that the config names, on the SFT model of the merges.

    Args:
        config: the settings.
        merges: of the policies, for specs that no adapter holds; who made them closes them.
        adapters: the policies, then the MORLHF runs, and what else specs mix.
        folder: of the run, below which the engine writes what it has to.
    """
    if config.engine == "vllm":
        from rlhf_lines.sweep.engines.vllm import VllmEngine

        return VllmEngine(config, merges.sft, adapters, folder)
    from rlhf_lines.sweep.engines.local import LocalEngine

    return LocalEngine(config, merges, adapters)
