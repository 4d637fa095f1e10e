"""Configs of LoRA adapters: refused where s B A is not the whole difference to the SFT model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from rlhf_lines.errors import Problems


CONFIG_FILE = "adapter_config.json"

# Keys of a LoRA config whose value is looked at.
_CHECKED = frozenset(["bias", "init_lora_weights", "lora_alpha", "peft_type", "r"])
_SWITCHES = ("ensure_weight_tying", "fan_in_fan_out", "inference_mode", "use_rslora")
_OF_MODULES = ("exclude_modules", "layers_pattern", "target_modules")
_WRITERS = (None, "", "CAUSAL_LM", "SEQ_2_SEQ_LM")  # tasks of models that write
# Keys that leave the residual at s B A, whatever they hold.
_HARMLESS = frozenset(
    [
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    ]
)
# Keys that make a policy more than s B A, with the reason. With those above these are all fields of PEFT's LoraConfig.
_REFUSED = {
    "alora_invocation_tokens": "activated LoRA adds s B A only to the tokens after an invocation",
    "arrow_config": "Arrow chooses among adapters token by token",
    "kasa_config": "KaSA cuts singular values off the base weight and puts a diagonal between A and B",
    "layer_replication": "the layers are not those of the SFT model",
    "lora_bias": "biases of LoRA factors are outside s B A",
    "megatron_config": "the factors are shards of Megatron's parallel layers",
    "modules_to_save": "whole modules are replaced, which an adapter of low rank cannot hold",
    "monteclora_config": "MonteCLoRA saves a sampler of random factors beside A and B",
    "target_parameters": "parameters without a module of their own are adapted",
    "trainable_token_indices": "rows of the embedding are replaced",
    "use_bdlora": "the factors of BD-LoRA are stored as blocks of a block-diagonal matrix",
    "use_dora": "DoRA rescales the columns of the base weight, which is not a sum of residuals",
    "use_qalora": "QA-LoRA averages inputs over groups of a quantised base, so A does not have the width of the weight",
    "velora_config": "VeLoRA saves projections of activations beside A and B",
}
# Other initialisations change the base weights, so the difference to the SFT model is not s B A.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_OF_BIASES = "biases are outside s B A"
WAY_OUT = (
    "merge dense checkpoints of the policies instead (merge_and_unload in float32; a rule's share of entries, such as "
    "density, is then one of the whole model)"
)


def check_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Stop unless a policy with this content of `adapter_config.json` is the SFT model plus s B A.

    Raises:
        ValueError: it is more, with the reason; `InputProblems` with all of them if there are several.
    """
    Problems(f"adapter {str(path)!r} {problem}" for problem in _config_problems(config)).check()


def beyond_base(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a LoRA config with which the base without its adapter is not the SFT model, and why."""
    initialisation = config.get("init_lora_weights", True)
    initialisation = initialisation.lower() if isinstance(initialisation, str) else initialisation
    if initialisation == "loftq":
        yield "init_lora_weights", "puts the error of a quantised base into the factors"
    elif initialisation not in _PLAIN_INITIALISATIONS:
        yield "init_lora_weights", "changes the base weights"
    if config.get("bias", "none") != "none":
        yield "bias", _OF_BIASES


def is_of_writer(task_type: object) -> bool:
    """Whether the task of an adapter is that of a model that writes text, or none."""
    return task_type in _WRITERS


def beyond_factors(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a LoRA config whose values make a policy more than the SFT model plus s B A, and why."""
    for key, value in config.items():
        if value and key not in _HARMLESS and key not in _CHECKED:
            yield key, _REFUSED.get(key, "an option whose effect on the residual is not known here")


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"has peft_type {config.get('peft_type')!r}; only LORA can be merged exactly"
        return  # the keys of another method mean other things
    base = dict(beyond_base(config))
    if "bias" in base:
        yield f"has bias {config['bias']!r}; {base['bias']}, train with bias='none'"
    for key in ("r", "lora_alpha"):
        if not _is_number(config.get(key), positive=key == "r"):
            yield f"has {key} {config.get(key)!r} in {CONFIG_FILE}, expected a number; save it again"
    for key in ("rank_pattern", "alpha_pattern"):
        if not _is_pattern(config.get(key), positive=key == "rank_pattern"):
            yield (
                f"has {key} {config[key]!r} in {CONFIG_FILE}, expected numbers by regular expressions of module names; "
                "save it again"
            )
    for key in _SWITCHES:
        if not isinstance(config.get(key), bool | None):
            yield f"has {key} {config[key]!r} in {CONFIG_FILE}, expected true or false; save it again"
    for key in _OF_MODULES:
        if not _names_modules(config.get(key)):
            yield f"has {key} {config[key]!r} in {CONFIG_FILE}, expected names of modules, or a pattern; save it again"
    if not is_of_writer(config.get("task_type")):
        yield (
            f"has task_type {config['task_type']!r} in {CONFIG_FILE}, expected CAUSAL_LM or SEQ_2_SEQ_LM: it was "
            "trained for a model that writes no text; give a policy"
        )
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(key), str | None):
            yield f"has {key} {config[key]!r} in {CONFIG_FILE}, expected a name; save it again"
    if "init_lora_weights" in base:
        name = config["init_lora_weights"]
        quantised = isinstance(name, str) and name.lower() == "loftq"
        way_out = WAY_OUT if quantised else "convert it with PEFT's path_initial_model_for_weight_conversion"
        yield (
            f"has init_lora_weights {name!r}, which {base['init_lora_weights']}, so s B A is not its difference to the "
            f"SFT model; {way_out}"
        )
    for key, reason in beyond_factors(config):
        yield f"sets {key} in {CONFIG_FILE}: {reason}; {WAY_OUT}"


def _is_number(value: object, *, positive: bool) -> bool:
    return (
        isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and (value > 0 or not positive)
    )


def _names_modules(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str) for item in items)


def _is_pattern(value: object, *, positive: bool) -> bool:
    if not value:
        return True
    if not isinstance(value, Mapping) or not all(_is_number(number, positive=positive) for number in value.values()):
        return False
    try:
        return all(re.compile(rf"(.*\.)?({key})$") for key in value)
    except re.error:
        return False
