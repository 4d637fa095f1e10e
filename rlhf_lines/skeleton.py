"""Models on the meta device: every parameter is there and none has a number, so they are made in a moment."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf_lines.errors import reason


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

# Outputs and inputs of a block: functional._convert_weight_packed_for_cpu of bitsandbytes 0.50, with its block of 64.
PACKED = (32, 64)


def causal_lm(config: PreTrainedConfig, **settings) -> PreTrainedModel:
    """A causal language model without weights; the settings are those of `_build`."""
    from transformers import AutoModelForCausalLM

    return _build(AutoModelForCausalLM, config, **settings)


def any_language_model(config: PreTrainedConfig, *, dtype: str | None = None) -> PreTrainedModel:
    """A model without weights that a merge may be of: a causal language model, one with eyes, or a translator."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    for auto in (AutoModelForImageTextToText, AutoModelForSeq2SeqLM):
        with contextlib.suppress(ValueError):  # the config is of none of its models
            return _build(auto, config, dtype=dtype)
    return _build(AutoModelForCausalLM, config, dtype=dtype)


def classifier(config: PreTrainedConfig, **settings) -> PreTrainedModel:
    """A sequence classifier without weights; the settings are those of `_build`."""
    from transformers import AutoModelForSequenceClassification

    return _build(AutoModelForSequenceClassification, config, **settings)


def encoder(config: PreTrainedConfig, **settings) -> PreTrainedModel:
    """A model of hidden states, with no head and without weights; the settings are those of `_build`."""
    from transformers import AutoModel

    return _build(AutoModel, config, **settings)


def adapt(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """The model with its adapter.

    Raises:
        ValueError: a module or parameter that the adapter names is not in the model.
    """
    from peft import get_peft_model

    targets = peft_config.target_modules  # which PEFT replaces by what it found
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    unknown = _unknown_names(model, peft_config)
    try:
        adapted = get_peft_model(model, peft_config)
    except (ValueError, re.error) as error:
        targets = sorted(targets) if isinstance(targets, set) else targets
        if "ParamWrapper" in str(error):
            raise ValueError(
                f"lora_target_modules {targets!r} of a {model.config.model_type} model are parameters without a module "
                f"of their own, because its experts are fused, so no later stage could take the adapter; name linear "
                f"modules instead: {names}"
            ) from error
        told = "" if "target" in str(error).lower() else f" ({reason(error)})"
        if not targets and peft_config.target_parameters:
            raise ValueError(
                f"lora_target_parameters {list(peft_config.target_parameters)!r} do not fit a "
                f"{model.config.model_type} model; name linear modules as lora_target_modules instead: {names}"
            ) from error
        raise ValueError(
            f"lora_target_modules {targets!r} do not fit a {model.config.model_type} model, whose linear modules are "
            f"{names}{told}: name some of these, or all-linear"
        ) from error
    for setting, missing in unknown.items():
        if missing:
            raise ValueError(
                f"{setting} holds {', '.join(missing)}, which no module of a {model.config.model_type} model is "
                f"called: correct or leave out (its linear modules are {names})"
            )
    return adapted


def _unknown_names(model: PreTrainedModel, peft_config: PeftConfig) -> dict[str, list[str]]:
    """By setting, the names in it that no module has. PEFT leaves those out without a word, if another one fits."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    modules = [name for name, _ in model.named_modules()]
    variants = KNOWN.get(model.config.model_type, ())  # what PEFT lists for a type need not be in each of its models
    targets = peft_config.target_modules
    listed = sorted(targets) if isinstance(targets, set | list) else []
    return {
        "lora_target_modules": [
            name
            for name in listed
            if name not in variants and not any(module == name or module.endswith(f".{name}") for module in modules)
        ],
        "lora_modules_to_save": [
            name for name in peft_config.modules_to_save or () if not any(module.endswith(name) for module in modules)
        ],
    }


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: torch's, or GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def check_4bit_on_cpu(model: nn.Module) -> None:
    """Stop where bitsandbytes' kernel of a CPU cannot take a linear map of the model in 4 bits.

    Where a CPU has bfloat16 in AVX-512 the kernel packs weights in blocks of `PACKED`; elsewhere any width will do. The
    head stays as it is.

    Args:
        model: without weights or with them, without adapter or with it.

    Raises:
        ValueError: one has other widths, or bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.functional import has_avx512bf16
    except ImportError as error:
        raise ValueError(
            "load_in_4bit needs bitsandbytes, which cannot be imported: pip install bitsandbytes"
        ) from error
    if not has_avx512bf16():
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() or getattr(base, "score", None)
    for name, module in base.named_modules():
        if is_linear(module) and module is not head and ".lora_" not in name:
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
            if outputs % PACKED[0] or inputs % PACKED[1]:
                raise ValueError(
                    f"load_in_4bit on a CPU takes widths that are multiples of {PACKED[1]} (inputs) and {PACKED[0]} "
                    f"(outputs), but {name.removesuffix('.base_layer')!r} has {inputs} inputs and {outputs} outputs: "
                    "leave it out, or take load_in_8bit or a GPU"
                )


def _build(
    auto,
    config: PreTrainedConfig,
    *,
    dtype: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    stored = getattr(config, "dtype", None) or torch.float32
    dtype = stored if dtype == "auto" else getattr(torch, dtype or "float32")
    options = {} if attention is None else {"attn_implementation": attention}
    logger = logging.getLogger("transformers.generation.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it prints the default generation settings of some models
    try:
        with torch.device("meta"):
            return auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code, **options)
    except (ImportError, ValueError) as error:
        text = str(error)
        if attention is not None and ("attn" in text or "ttention" in text or isinstance(error, ImportError)):
            raise ValueError(
                f"attn_implementation is {attention}, which does not work here: {reason(error)}"
            ) from error
        raise ValueError(f"a {config.model_type} model cannot be made as {auto.__name__}: {reason(error)}") from error
    finally:
        logger.setLevel(level)
