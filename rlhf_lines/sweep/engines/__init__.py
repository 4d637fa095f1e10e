"""Who generates: specs on one loaded base, or in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rlhf_lines.merge.inputs.adapter import Adapter
    from rlhf_lines.sweep.config import SweepConfig
    from rlhf_lines.sweep.engines.protocol import Engine


def make_engine(config: SweepConfig, sft: Path, adapters: Sequence[Adapter], folder: Path) -> Engine:
    """The engine that the config names; what it writes goes below the folder of the run."""
    if config.engine == "vllm":
        from rlhf_lines.sweep.engines.vllm import VllmEngine

        return VllmEngine(config, sft, adapters, folder)
    from rlhf_lines.sweep.engines.local import LocalEngine

    return LocalEngine(config, sft, adapters)
