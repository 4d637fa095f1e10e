"""What an adapter will be, seen on a model without weights: refused before training where no later stage takes it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import Embedding, Linear
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trl import GRPOConfig, ModelConfig

from rlhf_lines import skeleton
from rlhf_lines.errors import Problems
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, check_modules
from rlhf_lines.merge.inputs.adapter_config import beyond_base, beyond_factors, is_of_writer
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import AdapterPolicy
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.models import lora_config
from rlhf_lines.train.layerwise import check_depth, without_first_layers
from rlhf_lines.train.settings import LayerwiseSettings


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments


_OUTCOMES = {
    "sft": "the adapter could not be merged into the base",
    "ppo": "the policy could be neither merged nor swept",
}


def check_adapter(
    config: PreTrainedConfig,
    model_config: ModelConfig,
    folder: Path,
    *,
    stage: str,
    training: LayerwiseSettings,
    trust_remote_code: bool = False,
) -> LoraConfig:
    """Make the adapter on a model without weights, and stop where no later stage could take it.

    Args:
        config: of the base.
        model_config: settings of model and LoRA, with `use_peft`.
        folder: of the base.
        stage: `sft` or `ppo`.
        training: settings of what depends on depth.
        trust_remote_code: whether code of the base may run.

    Returns:
        The config of the adapter.

    Raises:
        ValueError: as `check_adapted`, `check_fits`, `check_depth` and `check_4bit`, or the adapter cannot be made.
    """
    base = skeleton.causal_lm(
        config,
        dtype=model_config.dtype,
        attention=model_config.attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    check_depth(base, policy=training.layer_learning_rates, frozen=training.frozen_layers)
    found = without_first_layers(lora_config(model_config, config.model_type), base, training.frozen_layers)
    model = skeleton.adapt(base, deepcopy(found))  # in which PEFT changes things
    check_adapted(model, model_config, stage=stage)
    check_fits(model, folder, stage=stage)
    check_4bit(model, model_config, training)
    return found


def check_4bit(model: PreTrainedModel | PeftModel, model_config: ModelConfig, training: TrainingArguments) -> None:
    """Stop where the CPU cannot read a model in 4 bits: PPO samples, others read so only where they evaluate.

    Args:
        model: with weights or without, with its adapter or without.
        model_config: settings of the model.
        training: settings of the stage.

    Raises:
        ValueError: a width does not fit, or bitsandbytes is not installed.
    """
    reads = isinstance(training, GRPOConfig) or training.eval_strategy != "no"
    if model_config.load_in_4bit and training.use_cpu and reads:
        skeleton.check_4bit_on_cpu(model)


def check_lora(peft_config: object) -> None:
    """Stop unless the policy that a config of PEFT asks for will be the SFT model plus factors of linear maps.

    What only a model tells, such as what its modules are, is left to `check_adapted`.

    Args:
        peft_config: before a model has it: some initialisations change the model that they are given.

    Raises:
        ValueError: it will be more, or the base without the adapter not the SFT model, with all reasons.
    """
    if not isinstance(peft_config, LoraConfig) or peft_config.peft_type != PeftType.LORA:
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}, expected a LoraConfig: later stages merge and sweep LoRA "
            "policies alone"
        )
    config, outcome = peft_config.to_dict(), _OUTCOMES["ppo"]
    problems = Problems()
    for key, reason in beyond_base(config):
        problems.add(
            f"{key} of peft_config is {config[key]!r}, which {reason}, so the base without the adapter, PPO's "
            "reference, would not be the SFT model; leave it out"
            if key == "init_lora_weights"
            else f"{key} of peft_config is {config[key]!r}: {reason}, so {outcome}; leave it out"
        )
    if peft_config.lora_dropout:
        problems.add(
            f"lora_dropout of peft_config is {peft_config.lora_dropout:g}, expected 0: with dropout a policy differs "
            "from itself between two passes"
        )
    if not is_of_writer(peft_config.task_type):
        problems.add(f"task_type of peft_config is {config['task_type']}, expected CAUSAL_LM: a policy writes text")
    for key, reason in beyond_factors(config):
        problems.add(
            f"{key} of peft_config is {_value(getattr(peft_config, key))}: {reason}, so {outcome}; leave it out"
        )
    problems.check()


def check_adapted(model: PeftModel, asked: ModelConfig | LoraConfig, *, stage: str) -> None:
    """Stop unless what PEFT made of a LoRA config is factors of linear maps, and no more.

    Args:
        model: with its adapter, with weights or without.
        asked: what asked for it, as it was before PEFT put in what it found.
        stage: `sft` or `ppo`, whose adapters later stages take.

    Raises:
        ValueError: it is more, with all reasons and the way out.
    """
    config, outcome = model.peft_config["default"], _OUTCOMES[stage]
    targets = _called("target_modules", asked)
    wanted = getattr(asked, targets)
    wanted = sorted(wanted) if isinstance(wanted, set) else wanted
    way_out = f"; name linear modules instead: {', '.join(_linear_names(model))}"
    problems = Problems()
    for key, reason in beyond_factors(config.to_dict()):
        name = _called(key, asked)
        if key == "target_parameters" and not getattr(asked, name):
            problems.add(
                f"{targets} {wanted!r} of a {model.config.model_type} model are parameters without a module "
                f"of their own ({', '.join(sorted(config.target_parameters))}), because its experts are fused, so "
                f"{outcome}{way_out}"
            )
        else:
            full = ", or train all weights (use_peft: false)" if stage == "sft" else ""
            problems.add(f"{name} is {_value(getattr(config, key))}: {reason}, so {outcome}; leave it out{full}")
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name = name.removeprefix("base_model.model.")
        if module is head:
            problems.add(
                f"{targets} {wanted!r} hold the head {name!r}, but TRL computes log-probabilities from its "
                f"weight alone, and would not train it{way_out}"
            )
        elif not _is_linear(module) and not config.target_parameters:
            kind = "an embedding" if isinstance(module, Embedding) else f"no linear map ({type(module).__name__})"
            problems.add(f"{targets} {wanted!r} hold {name!r}, which is {kind}, so {outcome}{way_out}")
    problems.check()


def check_fits(model: PeftModel, folder: Path, *, stage: str) -> None:
    """Stop where the later merge of the adapter would, for names and shapes in the files of its base.

    Args:
        model: with its adapter, with weights or without.
        folder: of the base.
        stage: `sft`, whose adapter is merged into the files at once, or `ppo`.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: a name, a shape or a dtype that the merge does not take.
    """
    adapter = adapter_to_be(model)
    with Checkpoint(folder) as theta:
        if stage == "sft":
            theta.check_plain(())  # before shapes, which are not those of the model where it is not plain
            theta.check_plain(merge_into(theta, adapter).residuals.shapes)
        else:
            check_modules(adapter, theta)
            names = [f"{module}.weight" for module in adapter.modules]
            layer_indices(names, num_layers=theta.num_layers(names))


def merge_into(theta: Checkpoint, adapter: Adapter) -> DenseMerge:
    """The merge of one adapter into the files of its base, ready to be written."""
    return DenseMerge(theta, [AdapterPolicy(adapter, theta)], MergeSpec("linear", (1.0,)))


def adapter_to_be(model: PeftModel) -> Adapter:
    """The adapter of a PEFT model as its folder will hold it."""
    modules = {
        name.removeprefix("base_model.model."): Factors(
            module.lora_A["default"].weight.detach(),
            module.lora_B["default"].weight.detach(),
            module.scaling["default"],
        )
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }
    return Adapter("to be trained", modules)


def _is_linear(layer: BaseTunerLayer) -> bool:
    """Whether a layer of PEFT adapts a linear map; of each quantisation PEFT has a class of its own."""
    if isinstance(layer, Linear):
        return True
    factors = getattr(layer, "lora_A", {})
    is_one = not isinstance(layer, MultiheadAttention | ParamWrapper)
    return is_one and "default" in factors and isinstance(factors["default"], nn.Linear)


def _linear_names(model: PeftModel) -> list[str]:
    """The last names of the linear maps inside the layers of the base."""
    head = model.get_output_embeddings()
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.get_base_model().named_modules()
        if skeleton.is_linear(module) and module is not head and ".lora_" not in name
    }
    return sorted(names - {"lm_head"})


def _called(key: str, asked: ModelConfig | LoraConfig) -> str:
    """What the user calls a field of PEFT's config."""
    return key if hasattr(asked, key) else f"lora_{key}"


def _value(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value).lower() if isinstance(value, bool) else value
