"""LoRA adapters as residuals, read without a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reward_models.files import refuse_pointer
from rlhf_lines.merge.inputs.adapter_config import CONFIG_FILE, WAY_OUT, check_config
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, read_json
from rlhf_lines.merge.inputs.model_names import ModelNames
from rlhf_lines.merge.layers import is_embedding, is_head
from rlhf_lines.merge.tensors.precision import wide
from rlhf_lines.merge.tensors.tensor_file import readable


WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"  # of PEFT before 0.7: a pickle, which may run code, so it is not opened here
_OLDER = (
    f"; it has {PICKLED_FILE}, as PEFT before 0.7 wrote it: where you trust it, load it with PEFT "
    "(PeftModel.from_pretrained) and save it again"
)
RECORD_FILE = "rlhf_lines.json"


@dataclass(frozen=True)
class Factors:
    """The residual s B A of one linear map.

    Attributes:
        A: `[r, in]`, float32 or float64.
        B: `[out, r]`, same dtype.
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
        base: `base_model_name_or_path`, or None.
        revision: the base's revision, or None.
        task_type: PEFT's task type, or None.
        sft_sha256: `checkpoint_sha256` of the SFT model it was trained on, if recorded.
        copied: base weights that the file holds too, as PEFT saves embeddings and heads: key there to parameter.
    """

    path: str
    modules: dict[str, Factors]
    base: str | None = None
    revision: str | None = None
    task_type: str | None = None
    sft_sha256: str | None = None
    copied: Mapping[str, str] = field(default_factory=dict)


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder is a PEFT adapter rather than a dense checkpoint."""
    return (Path(folder) / CONFIG_FILE).is_file()


def adapters_below(folder: Path) -> str:
    """Which folders in this one are adapters, as the end of a sentence: PEFT writes named adapters into such."""
    found = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    return f"; it holds the adapters {', '.join(found)}: name one of these folders" if found else ""


def load_adapter(path: str | Path) -> Adapter:
    """The adapter in a PEFT folder, from `adapter_config.json` and `adapter_model.safetensors`.

        s = lora_alpha / r,  with rsLoRA s = lora_alpha / sqrt(r)

    where `rank_pattern` and `alpha_pattern` give a module its own r and lora_alpha, by the same rule as PEFT: the
    first key that matches the module's name, or its end after a dot, as a regular expression. Factors are float32, or
    float64 where the file is float64. `fan_in_fan_out` is not read: PEFT too goes by the class of the module, and may
    save a flag that is wrong. How a weight is stored is for the SFT model to say, `Checkpoint.is_transposed`.

    PEFT saves the base weights of embeddings and heads beside the factors. Whether they are the SFT model's is for
    `rlhf_lines.merge.inputs.provenance.check_same_base` to say.

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
                + (_OLDER if (folder / PICKLED_FILE).is_file() else adapters_below(folder))
            )
    config = read_json(folder / CONFIG_FILE)
    check_config(config, path)
    file = readable(folder / WEIGHTS_FILE)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        refuse_pointer(file)
        raise ValueError(f"cannot read {str(file)!r} ({error}); save the adapter again") from error
    record_file = folder / RECORD_FILE
    record = read_json(record_file) if record_file.is_file() else {}
    if not isinstance(record.get("sft_sha256"), str | None):
        raise ValueError(
            f"{str(record_file)!r} has sft_sha256 {record['sft_sha256']!r}, expected a hash; copy it again"
        )
    modules, copied = _factors(tensors, config, path)
    return Adapter(
        path=str(path),
        modules=modules,
        base=config.get("base_model_name_or_path") or None,
        revision=config.get("revision"),
        task_type=config.get("task_type"),
        sft_sha256=record.get("sft_sha256"),
        copied=copied,
    )


def dense_residual(adapter: Adapter, module: str) -> Tensor:
    """The residual s B A of one module, `[out, in]`."""
    factors = adapter.modules[module]
    return factors.scale * (factors.B @ factors.A)


def renamed(adapter: Adapter, names: ModelNames) -> Adapter:
    """The adapter with its modules as a model calls them; a name that the model does not know stays.

    So does that of a weight which is a part of another parameter there.
    """
    modules = {}
    for module, factors in adapter.modules.items():
        key = names.key(f"{module}.weight")
        shape = (factors.B.shape[0], factors.A.shape[1])
        known = names.shapes.get(key) in (shape, shape[::-1])
        modules[key.removesuffix(".weight") if known else module] = factors
    return replace(adapter, modules=modules)


def check_modules(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Stop unless every adapted module is one of the model's, of the right shape, whatever the files hold of it.

    Files of a quantised model hold weights in other shapes, and a head that is tied to the embedding not at all: an
    adapter needs neither.

    Raises:
        ValueError: a module that the model has not, or whose shape differs from that of s B A.
    """
    for module in adapter.modules:
        _stored_weight(adapter, module, checkpoint)


def parameters_of(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's parameter name of every adapted module, to the module's name.

    Raises:
        ValueError: the checkpoint is quantised, lacks a parameter of its own for a module, or has another shape.
    """
    checkpoint.check_plain(())
    parameters = {}
    for module in adapter.modules:
        name = _stored_weight(adapter, module, checkpoint)
        if name is None:
            raise ValueError(
                f"adapter {adapter.path!r} adapts {module!r}, which {str(checkpoint.folder)!r} ties to "
                f"{checkpoint.tied(f'{module}.weight')!r}: no model holds this residual without the other; use --save "
                "adapter"
            )
        parameters[name] = module
    return parameters


def _stored_weight(adapter: Adapter, module: str, checkpoint: Checkpoint) -> str | None:
    """The name in the files of a module's weight, of the right shape; None where it is quantised away, or tied."""
    weight = f"{module}.weight"
    name = checkpoint.parameter(weight)
    plain = name is not None and not checkpoint.quantisation
    shape = checkpoint.shapes[name] if plain else checkpoint.model_shape(weight)
    if shape is None:
        raise ValueError(
            f"adapter {adapter.path!r} adapts {module!r}, but {str(checkpoint.folder)!r} holds no '{weight}'; give the "
            "SFT model that the adapter was trained on"
        )
    factors = adapter.modules[module]
    expected = (factors.B.shape[0], factors.A.shape[1])
    expected = expected[::-1] if checkpoint.is_transposed(weight) else expected
    if shape != expected:
        raise ValueError(
            f"adapter {adapter.path!r} changes {name or weight!r} by a residual of shape {expected}, but the SFT model "
            f"{str(checkpoint.folder)!r} has shape {shape}; give the SFT model it was trained on"
        )
    return name


def _factors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path
) -> tuple[dict[str, Factors], dict[str, str]]:
    """The factors of every module, and the base weights that are there too, as `Adapter.copied`."""
    halves: dict[str, dict[str, Tensor]] = {}
    adapted = {key.removesuffix(".lora_A.weight") for key in tensors}
    copied = {}
    for key in sorted(tensors, key=lambda key: "lora_" not in key):  # what a module is made of names a problem best
        tensor = tensors[key]
        module = key.removesuffix(".weight").removesuffix(".base_layer")
        if (
            key == f"{module}.base_layer.weight"
            if module in adapted
            else key == f"{module}.weight" and _is_table(module)
        ):
            copied[key] = f"{module.removeprefix('base_model.model.')}.weight"
            continue
        match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight", key)
        if match is None or tensor.ndim != 2:
            raise ValueError(
                f"adapter {str(path)!r} holds {key!r} of shape {tuple(tensor.shape)}; only matrices named "
                f"base_model.model.<module>.lora_A.weight and lora_B.weight can be merged exactly; {WAY_OUT}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {str(path)!r} holds values in {key!r} that are not finite; train it again")
        halves.setdefault(match["module"], {})[match["half"]] = wide(tensor, key)
    if not halves:
        raise ValueError(f"adapter {str(path)!r} holds no tensors in {WEIGHTS_FILE}; save it again")
    modules = {module: _factors_of(module, pair, config, path) for module, pair in sorted(halves.items())}
    return modules, copied


def _is_table(module: str) -> bool:
    """Whether it is an embedding or a head, and no part of one."""
    one, parent = (is_embedding(name) or is_head(name) for name in (module, module.rpartition(".")[0]))
    return one and not parent


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
