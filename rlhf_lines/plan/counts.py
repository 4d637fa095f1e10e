"""Counts and bytes of a model's weights; of a skeleton they are exact and cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from rlhf_lines.plan.memory import linear_bytes
from rlhf_lines.skeleton import is_linear


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Held(NamedTuple):
    """How weights are held.

    Attributes:
        bits: 8 or 4 where bitsandbytes holds the linear modules inside the layers, else 16.
        nested: 4-bit with double quantisation.
    """

    bits: int
    nested: bool = False


def held_as(config: PreTrainedConfig, *, load_in_4bit: bool, load_in_8bit: bool, nested: bool = False) -> Held:
    """How a model's weights are held: as its config says of the files, or else as the settings ask for."""
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    if stored:
        load_in_8bit = stored.get("load_in_8bit") or stored.get("bits") == 8
        load_in_4bit = stored.get("load_in_4bit") or stored.get("bits") == 4
        nested = bool(stored.get("bnb_4bit_use_double_quant"))
    bits = 4 if load_in_4bit else 8 if load_in_8bit else 16
    return Held(bits, nested and bits == 4)


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
        if is_linear(module) and module is not head and ".lora_" not in name
    ]
