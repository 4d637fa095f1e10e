"""Counts and bytes of a model's weights; of a skeleton they are exact and cost nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from rlhf_lines.plan.memory import linear_bytes
from rlhf_lines.skeleton import is_linear


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


PACKED = ("fp8", "mxfp4")  # methods whose layers transformers itself replaces


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
    if stored := _stored(config):
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


def frozen_bytes(model: nn.Module, *, bits: int = 16, nested: bool = False, device: str = "cpu") -> int:
    """The bytes of the frozen parameters and of the buffers.

    Weights that are stored in fp8 or mxfp4 stay so on a GPU that can compute with them; elsewhere they are unpacked.

    Args:
        model: without weights.
        bits: 8 or 4 where bitsandbytes holds the linear modules inside the layers; the head and all else stay.
        nested: 4-bit with double quantisation.
        device: `cuda` or `cpu`, where the model is held.
    """
    total = sum(p.nbytes for p in model.parameters() if not p.requires_grad) + sum(b.nbytes for b in model.buffers())
    if bits in (4, 8):
        for weight in _quantised(model):
            total += linear_bytes(*weight.shape, bits=bits, nested=nested) - weight.nbytes
    elif device == "cuda" and (stored := _stored(getattr(model, "config", None))).get("quant_method") in PACKED:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        with torch.device("meta"):
            plain, packed = (type(base)._from_config(base.config, dtype=base.dtype) for _ in range(2))
        _pack(packed, stored)
        total += _bytes(packed) - _bytes(plain)
    return total


def _pack(model: PreTrainedModel, stored: dict) -> None:
    """Put the layers into a model without weights that hold a stored model's, if this GPU, where there is one, can.

    fp8      one byte per weight, a scale per block as the config says     (arXiv 2412.19437, section 3.3)
    mxfp4    half a byte per weight of the experts, and one per 32 weights (OCP Microscaling Formats 1.0)
    """
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.quantizers import AutoHfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it comments on what it does without: the stage will repeat that
    try:
        quantizer = AutoHfQuantizer.from_config(dict(stored), pre_quantized=True)
        settings = quantizer.quantization_config
        if torch.cuda.is_available():
            quantizer.validate_environment(device_map="cuda")
        if settings.dequantize:
            return
        if stored["quant_method"] == "fp8":
            quantizer._process_model_before_weight_loading(model)
            return
    finally:
        logger.setLevel(level)
    # The library's own replacement fetches a kernel first.
    left = quantizer.get_modules_to_not_convert(model, settings.modules_to_not_convert, model._keep_in_fp32_modules)
    for name, module in list(model.named_modules()):
        if isinstance(module, GptOssExperts) and should_convert_module(name, left):
            with torch.device("meta"):
                experts = Mxfp4GptOssExperts(model.config)
            for weight in (experts.gate_up_proj, experts.down_proj):
                scales = torch.empty(weight.numel() // 16, dtype=torch.uint8, device="meta")  # two weights are a byte
                experts.register_buffer(f"scales_{len(list(experts.buffers()))}", scales)
            model.set_submodule(name, experts)


def _stored(config: PreTrainedConfig | None) -> dict:
    """What a config says of the quantisation of its files; empty where they hold plain weights."""
    stored = getattr(config, "quantization_config", None) or {}
    return stored if isinstance(stored, dict) else stored.to_dict()


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


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
