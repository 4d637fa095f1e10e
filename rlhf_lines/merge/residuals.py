"""LoRA adapters as residuals: read without a model, refused where s B A is not the whole difference."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rlhf_lines.merge.checkpoint import Checkpoint, checkpoint_sha256, read_json
from rlhf_lines.merge.precision import wide
from rlhf_lines.problems import Problems


CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
RECORD_FILE = "rlhf_lines.json"

# Keys of a LoRA config whose value is looked at.
_CHECKED = frozenset(["bias", "init_lora_weights", "lora_alpha", "peft_type", "r"])
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
    "layer_replication": "the blocks are not those of the SFT model",
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
_WAY_OUT = "merge dense checkpoints of the policies instead (merge_and_unload in float32)"
_CONV1D_MODELS = ("gpt2", "openai-gpt")


@dataclass(frozen=True)
class Factors:
    """The residual s B A of one linear map.

    Attributes:
        A: ``[r, in]``, float32 or float64.
        B: ``[out, r]``, same dtype.
        scale: s.
    """

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA policy as read from its folder.

    Attributes:
        path: the folder, as given.
        modules: module name (as in the Hugging Face model, without `base_model.model.`) to factors.
        transposed: the weights are stored ``[in, out]`` (GPT-2's Conv1D; `fan_in_fan_out` in PEFT).
        base: `base_model_name_or_path`, or None.
        revision: the base's revision, or None.
        task_type: PEFT's task type, or None.
        sft_sha256: `checkpoint_sha256` of the SFT model it was trained on, if recorded.
        copied: adapted modules whose base weight the file holds too, as PEFT saves embeddings and heads.
    """

    path: str
    modules: dict[str, Factors]
    transposed: bool = False
    base: str | None = None
    revision: str | None = None
    task_type: str | None = None
    sft_sha256: str | None = None
    copied: tuple[str, ...] = ()


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder is a PEFT adapter rather than a dense checkpoint."""
    return (Path(folder) / CONFIG_FILE).is_file()


def load_adapter(path: str | Path) -> Adapter:
    """The adapter in a PEFT folder, from `adapter_config.json` and `adapter_model.safetensors`.

        s = lora_alpha / r,  with rsLoRA s = lora_alpha / sqrt(r)

    where `rank_pattern` and `alpha_pattern` give a module its own r and lora_alpha, by the same rule as PEFT: the
    first key that matches the module's name, or its end after a dot, as a regular expression. Factors are float32, or
    float64 where the file is float64.

    PEFT saves the base weight of an adapted head beside its factors. Whether it is that of the SFT model is for
    `check_same_base` to say.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the adapter is more than s B A (DoRA, biases, saved modules, ...), with all reasons, or the file
            does not fit the config.
    """
    folder = Path(path)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{str(path)!r} has no {file}; expected the folder that model.save_pretrained of a PEFT model writes"
            )
    config = read_json(folder / CONFIG_FILE)
    _check_config(config, path)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"cannot read {str(folder / WEIGHTS_FILE)!r} ({error}); save the adapter again") from error
    record_file = folder / RECORD_FILE
    record = read_json(record_file) if record_file.is_file() else {}
    modules, copied = _factors(tensors, config, path)
    return Adapter(
        path=str(path),
        modules=modules,
        transposed=bool(config.get("fan_in_fan_out")),
        base=config.get("base_model_name_or_path") or None,
        revision=config.get("revision"),
        task_type=config.get("task_type"),
        sft_sha256=record.get("sft_sha256"),
        copied=copied,
    )


def load_adapters(paths: Sequence[str | Path], sft_model: str | Path) -> list[Adapter]:
    """The adapters of several policies, all trained on `sft_model`; what is wrong with any of them is told at once.

    Raises:
        FileNotFoundError, ValueError: as `load_adapter` and `check_same_base`; `InputProblems` for several problems.
    """
    problems = Problems()
    adapters = []
    for path in paths:
        with problems.collect():
            adapters.append(load_adapter(path))
    if adapters:
        with problems.collect():
            check_same_base(adapters, sft_model)
    problems.check()
    return adapters


def lora_residual(adapter: Adapter) -> dict[str, Tensor]:
    """The dense residual of an adapter: parameter name to s B A, in the layout of the stored weight.

    Float32, or float64 for a float64 adapter. All other residuals of the policy are exactly zero.

    Source: arXiv 2106.09685, equation 3; scale as in PEFT.
    """
    return {f"{module}.weight": dense_residual(adapter, module) for module in adapter.modules}


def dense_residual(adapter: Adapter, module: str) -> Tensor:
    """s B A of one module, ``[out, in]``, or ``[in, out]`` if the adapter is transposed."""
    factors = adapter.modules[module]
    residual = factors.scale * (factors.B @ factors.A)
    return residual.T.contiguous() if adapter.transposed else residual


def check_same_base(adapters: Sequence[Adapter], sft_model: str | Path) -> None:
    """Stop unless every adapter was trained on `sft_model`: residuals add up only on one base.

    If every adapter records the hash of its SFT model, the hashes decide, so a moved folder is fine. Otherwise
    `base_model_name_or_path` decides, resolved where it exists. If `sft_model` is a local folder, the adapted
    parameters must exist there with matching shapes (file headers only), and base weights that an adapter's file holds
    must be those of the SFT model. A Hub id that is not a folder is compared as a name.

    Raises:
        ValueError: another base, a base that is not recorded, a parameter that the SFT model lacks, another shape, or
            other base weights; `InputProblems` with the first of each adapter if there are several.
    """
    if not adapters:
        raise ValueError("check_same_base got no adapters, expected at least one")
    check = _check_hash if all(adapter.sft_sha256 for adapter in adapters) else _check_path
    given = checkpoint_sha256(sft_model) if check is _check_hash and Path(sft_model).is_dir() else None
    problems = Problems()
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(sft_model)) if Path(sft_model).is_dir() else None
        for adapter in adapters:
            with problems.collect():
                if check is _check_hash:
                    _check_hash(adapter, adapters[0], sft_model, given)
                else:
                    _check_path(adapter, adapters[0], sft_model)
                if checkpoint is not None:
                    parameters = parameters_of(adapter, checkpoint)
                    _check_copies(adapter, parameters, checkpoint)
    problems.check()


def parameters_of(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's parameter name of every adapted module, to the module's name.

    Raises:
        ValueError: the checkpoint lacks a parameter, or its shape differs from that of s B A.
    """
    conv1d = checkpoint.config.get("model_type") in _CONV1D_MODELS
    parameters = {}
    for module, factors in adapter.modules.items():
        name = checkpoint.parameter(f"{module}.weight")
        if name is None:
            tied = " (the SFT model ties it to the embedding)" if checkpoint.config.get("tie_word_embeddings") else ""
            raise ValueError(
                f"adapter {adapter.path!r} adapts {module!r}, but {str(checkpoint.folder)!r} holds no "
                f"'{module}.weight'{tied}; give the SFT model that the adapter was trained on"
            )
        if conv1d and (not adapter.transposed or module == "lm_head"):
            # PEFT stores one flag for all modules; where it is wrong a square weight would be transposed unnoticed.
            raise ValueError(
                f"adapter {adapter.path!r} adapts {module!r} of a {checkpoint.config['model_type']} with "
                f"fan_in_fan_out={adapter.transposed}; expected only Conv1D modules and fan_in_fan_out=true in "
                f"{CONFIG_FILE}"
            )
        shape = (factors.B.shape[0], factors.A.shape[1])
        shape = shape[::-1] if adapter.transposed else shape
        if checkpoint.shapes[name] != shape:
            raise ValueError(
                f"adapter {adapter.path!r} changes {name!r} by a residual of shape {shape}, but the SFT model "
                f"{str(checkpoint.folder)!r} has shape {checkpoint.shapes[name]}; give the SFT model it was trained on"
            )
        parameters[name] = module
    return parameters


def conv1d_weights(checkpoint: Checkpoint) -> frozenset[str]:
    """The checkpoint's matrices that are stored ``[in, out]``: those of GPT-2's blocks."""
    if checkpoint.config.get("model_type") not in _CONV1D_MODELS:
        return frozenset()
    names = [name for name, shape in checkpoint.shapes.items() if len(shape) == 2]
    return frozenset(name for name in names if re.match(r"(?:transformer\.)?h\.\d+\.", name))


def _check_config(config: Mapping[str, Any], path: str | Path) -> None:
    problems = Problems()
    for problem in _config_problems(config):
        problems.add(f"adapter {str(path)!r} {problem}")
    problems.check()


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"has peft_type {config.get('peft_type')!r}; only LORA can be merged exactly"
        return  # the keys of another method mean other things
    if config.get("bias", "none") != "none":
        yield f"has bias {config['bias']!r}; biases are outside s B A, train with bias='none'"
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), Real):
            yield f"has {key} {config.get(key)!r} in {CONFIG_FILE}, expected a number; save it again"
    name = config.get("init_lora_weights", True)
    initialisation = name.lower() if isinstance(name, str) else name
    if initialisation == "loftq":
        yield (
            "has init_lora_weights 'loftq', which puts the error of a quantised base into the factors, so s B A is not "
            f"its difference to the SFT model; {_WAY_OUT}"
        )
    elif initialisation not in _PLAIN_INITIALISATIONS:
        yield (
            f"has init_lora_weights {name!r}, which changes the base weights, so s B A is not its difference to the "
            "SFT model; convert it with PEFT's path_initial_model_for_weight_conversion"
        )
    for key, value in config.items():
        if value and key not in _HARMLESS and key not in _CHECKED:
            reason = _REFUSED.get(key, "an option whose effect on the residual is not known here")
            yield f"sets {key} in {CONFIG_FILE}: {reason}; {_WAY_OUT}"


def _check_copies(adapter: Adapter, parameters: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Stop unless the base weights in an adapter's file are those of the SFT model, as their dtype holds them."""
    if not adapter.copied:
        return
    with safe_open(Path(adapter.path) / WEIGHTS_FILE, "pt") as file:
        for name, module in parameters.items():
            if module not in adapter.copied:
                continue
            copy = file.get_tensor(_copy_key(module))
            if not torch.equal(checkpoint.read(name).to(copy.dtype), copy):
                raise ValueError(
                    f"adapter {adapter.path!r} holds a base weight of {module!r} that is not {name!r} of the SFT model "
                    f"{str(checkpoint.folder)!r}, so s B A is not the whole difference; {_WAY_OUT}, or, if that weight "
                    "was not trained, save the adapter with save_pretrained(folder, save_embedding_layers=False)"
                )


def _copy_key(module: str) -> str:
    return f"base_model.model.{module}.base_layer.weight"


def _factors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path
) -> tuple[dict[str, Factors], tuple[str, ...]]:
    """The factors of every module, and the adapted modules whose base weight is there too."""
    halves: dict[str, dict[str, Tensor]] = {}
    adapted = {key.removesuffix(".lora_A.weight").removeprefix("base_model.model.") for key in tensors}
    copies = set(map(_copy_key, adapted))
    for key in sorted(tensors, key=lambda key: "lora_" not in key):  # what a layer is made of names a problem best
        tensor = tensors[key]
        if key in copies:
            continue
        match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight", key)
        if match is None or tensor.ndim != 2:
            raise ValueError(
                f"adapter {str(path)!r} holds {key!r} of shape {tuple(tensor.shape)}; only matrices named "
                f"base_model.model.<module>.lora_A.weight and lora_B.weight can be merged exactly; {_WAY_OUT}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {str(path)!r} holds values in {key!r} that are not finite; train it again")
        halves.setdefault(match["module"], {})[match["half"]] = wide(tensor, key)
    if not halves:
        raise ValueError(f"adapter {str(path)!r} holds no tensors in {WEIGHTS_FILE}; save it again")
    modules = {module: _factors_of(module, pair, config, path) for module, pair in sorted(halves.items())}
    return modules, tuple(module for module in modules if _copy_key(module) in tensors)


def _factors_of(module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path) -> Factors:
    for half in "AB":
        if half not in pair:
            raise ValueError(
                f"adapter {str(path)!r} has no lora_{half} for {module!r}, only its partner; save it again"
            )
    rank = _of_module(config.get("rank_pattern"), module, config["r"])
    lora_alpha = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    A, B = pair["A"], pair["B"]
    if A.shape[0] != rank or B.shape[1] != rank:
        raise ValueError(
            f"adapter {str(path)!r} has ranks {A.shape[0]} (lora_A) and {B.shape[1]} (lora_B) for {module!r}, but "
            f"{CONFIG_FILE} says {rank}; weights and config belong to different adapters"
        )
    dtype = torch.promote_types(A.dtype, B.dtype)
    scale = lora_alpha / math.sqrt(rank) if config.get("use_rslora") else lora_alpha / rank
    return Factors(A.to(dtype), B.to(dtype), scale)


def _of_module(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first key that matches the module's name or its end, as PEFT looks it up."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _check_hash(adapter: Adapter, first: Adapter, sft_model: str | Path, given: str | None) -> None:
    if adapter.sft_sha256 != first.sft_sha256:
        raise ValueError(
            f"adapter {adapter.path!r} was trained on SFT weights {adapter.sft_sha256[:12]}, {first.path!r} on "
            f"{first.sft_sha256[:12]}; residuals add up only on one base (see sft_sha256 in {RECORD_FILE})"
        )
    if adapter is first and given is not None and given != first.sft_sha256:
        raise ValueError(
            f"adapter {first.path!r} was trained on SFT weights {first.sft_sha256[:12]}, but {str(sft_model)!r} holds "
            f"{given[:12]}; residuals add up only on one base (see sft_sha256 in {RECORD_FILE})"
        )


def _check_path(adapter: Adapter, first: Adapter, sft_model: str | Path) -> None:
    if adapter.base is None:
        raise ValueError(
            f"adapter {adapter.path!r} does not say what it was trained on; write base_model_name_or_path into its "
            f"{CONFIG_FILE}"
        )
    differs = (_identity(adapter.base), adapter.revision) != (_identity(first.base or adapter.base), first.revision)
    if first.base is not None and differs:
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, {first.path!r} on {_shown(first)}; residuals "
            f"add up only on one base (see {CONFIG_FILE})"
        )
    if (adapter is first or first.base is None) and _identity(adapter.base) not in _names_of(sft_model):
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, but the SFT model given is "
            f"{str(sft_model)!r}; residuals add up only on one base (if the folder only moved, correct "
            f"base_model_name_or_path in {CONFIG_FILE})"
        )


def _identity(base: str | Path) -> str:
    path = Path(base).expanduser()
    return str(path.resolve()) if path.exists() else str(base).rstrip("/")


def _names_of(sft_model: str | Path) -> set[str]:
    """The names under which an adapter may know a model: its resolved path, and its Hub id if it lies in the Hub "
    "cache."""
    identity = _identity(sft_model)
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", identity)
    return {identity, cached[1].replace("--", "/")} if cached else {identity}


def _shown(adapter: Adapter) -> str:
    return f"{adapter.base}@{adapter.revision}" if adapter.revision else str(adapter.base)
