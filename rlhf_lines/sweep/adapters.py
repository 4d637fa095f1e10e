"""The policies of a sweep: adapters, checked as for a merge, with the modules of the model that is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import Adapter, renamed
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM
from rlhf_lines.merge.inputs.provenance import load_adapters


logger = logging.getLogger(__name__)


def load_policies(
    policies: Sequence[Path], sft: Path, *, sft_renamed: bool = False, quantise: bool = False
) -> list[Adapter]:
    """The adapters, for the causal language model in the folder; what a merge would warn of is logged.

    Raises:
        FileNotFoundError, ValueError: what a merge refuses; a model that cannot be loaded so, or has not their modules.
    """
    adapters, warnings = load_adapters(policies, sft, sft_renamed=sft_renamed)
    for warning in warnings:
        logger.warning("%s", warning)
    with Checkpoint(sft) as checkpoint:
        if quantise and checkpoint.quantisation:
            raise ValueError(
                f"{str(sft)!r} is quantised already ({checkpoint.quantisation}, see quantization_config in "
                "config.json), and is loaded as it is: leave out load_in_8bit and load_in_4bit"
            )
        names = checkpoint.readings.loaded_by(CAUSAL_LM)
        if names is None:
            kind = (checkpoint.config.get("architectures") or [checkpoint.config.get("model_type")])[0]
            raise ValueError(
                f"{str(sft)!r} is a {kind}, which transformers does not load as a causal language model "
                f"({CAUSAL_LM}), as a sweep does; merge its policies with rlhf-lines merge, and sample with a server"
            )
    adapters = [renamed(adapter, names) for adapter in adapters]
    problems = Problems()
    for adapter in adapters:
        unknown = [module for module in adapter.modules if f"{module}.weight" not in names.shapes]
        if unknown:
            problems.add(
                f"adapter {adapter.path!r} changes {len(unknown)} modules, such as {unknown[0]!r}, that the "
                f"{names.architecture} has not which a sweep loads of {str(sft)!r}"
            )
    problems.check()
    return adapters
