"""Models on the meta device: every parameter is there and none has a number, so counts are exact and cost nothing."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf_lines.plan.memory import linear_bytes


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig, PreTrainedModel


def causal_lm(config: PreTrainedConfig, *, dtype: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """A causal language model without weights."""
    from transformers import AutoModelForCausalLM

    return _build(AutoModelForCausalLM, config, dtype, attention)


def any_language_model(config: PreTrainedConfig, *, dtype: str | None = None) -> PreTrainedModel:
    """A model without weights that a merge may be of: a causal language model, one with eyes, or a translator."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    for auto in (AutoModelForImageTextToText, AutoModelForSeq2SeqLM):
        with contextlib.suppress(ValueError):  # the config is of none of its models
            return _build(auto, config, dtype, None)
    return _build(AutoModelForCausalLM, config, dtype, None)


def classifier(config: PreTrainedConfig, *, dtype: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """A sequence classifier without weights."""
    from transformers import AutoModelForSequenceClassification

    return _build(AutoModelForSequenceClassification, config, dtype, attention)


def adapt(model: PreTrainedModel, peft_config: PeftConfig):
    """The model with its adapter.

    Raises:
        ValueError: the adapter's target modules are not in the model.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)}
        raise ValueError(
            f"lora_target_modules {peft_config.target_modules!r} do not fit a {model.config.model_type} model, whose "
            f"linear modules are {', '.join(sorted(names))}: name some of these, or all-linear"
        ) from error


def count(model: nn.Module, *, trainable: bool = False) -> int:
    """The number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def trainable_bytes(model: nn.Module, *, bits: int = 16) -> int:
    """The bytes of the trainable parameters; TRL holds the adapter of a quantised base in bfloat16."""
    return sum(p.numel() * (2 if bits in (4, 8) else p.element_size()) for p in model.parameters() if p.requires_grad)


def frozen_bytes(model: nn.Module, *, bits: int = 16, nested: bool = False) -> int:
    """The bytes of the frozen parameters and of the buffers.

    Args:
        model: without weights.
        bits: 8 or 4 where bitsandbytes holds the linear modules inside the layers; the head and all else stay.
        nested: 4-bit with double quantisation.
    """
    total = sum(p.nbytes for p in model.parameters() if not p.requires_grad) + sum(b.nbytes for b in model.buffers())
    if bits in (4, 8):
        for weight in _quantised(model):
            total += linear_bytes(*weight.shape, bits=bits, nested=nested) - weight.nbytes
    return total


def largest_quantised(model: nn.Module, *, bits: int) -> int:
    """The bytes of the largest quantised weight in the model's dtype: one at a time is unpacked to compute."""
    return max((weight.nbytes for weight in _quantised(model)), default=0) if bits in (4, 8) else 0


def _quantised(model: nn.Module) -> list[torch.Tensor]:
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    head = base.get_output_embeddings()
    return [
        module.weight
        for name, module in base.named_modules()
        if _is_linear(module) and module is not head and ".lora_" not in name
    ]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _build(auto, config: PreTrainedConfig, dtype: str | None, attention: str | None) -> PreTrainedModel:
    stored = getattr(config, "dtype", None) or torch.float32
    dtype = stored if dtype == "auto" else getattr(torch, dtype or "float32")
    options = {} if attention is None else {"attn_implementation": attention}
    logger = logging.getLogger("transformers.generation.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it prints the default generation settings of some models
    try:
        with torch.device("meta"):
            return auto.from_config(config, dtype=dtype, **options)
    finally:
        logger.setLevel(level)
