"""The sizes of policies before they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from rlhf_lines import skeleton
from rlhf_lines.errors import about
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE
from rlhf_lines.merge.tensors.tensor_file import readable
from rlhf_lines.models import cached_file, lora_config
from rlhf_lines.plan.shapes import Shape, makers
from rlhf_lines.train.layerwise import without_first_layers


@dataclass(frozen=True)
class AdapterSizes:
    """What is known about a policy before it is read.

    Attributes:
        count: parameters of an adapter; None for a dense policy.
        source: where that was read.
        rank: the largest of its modules.
        widths: in + out by module of the SFT model: so many parameters each rank has.
        ups: parameters of all B, which a merge into dense weights holds once more, scaled.
        sides: out and in by module.
    """

    count: int | None
    source: str
    rank: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)
    ups: int = 0
    sides: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def adapter_sizes(policy: str, shape: Shape, beside: Path | None) -> AdapterSizes:
    """The sizes of an adapter, or that a policy is dense.

    Raises:
        FileNotFoundError: the folder does not exist, no config beside this one makes it, and the Hub's cache lacks it.
    """
    folder = Path(policy)
    if not folder.exists() and (cached := cached_file(policy, WEIGHTS_FILE) or cached_file(policy, "config.json")):
        folder = cached.parent
    if (folder / WEIGHTS_FILE).is_file():
        with (
            about(f"adapter file {folder / WEIGHTS_FILE} cannot be read"),
            safe_open(readable(folder / WEIGHTS_FILE), framework="pt") as file,
        ):
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return _sizes(shapes, str(folder / WEIGHTS_FILE))
    if (folder / "config.json").is_file():
        return AdapterSizes(None, f"{folder / 'config.json'}")
    if folder.is_dir():
        raise FileNotFoundError(f"policy {policy} has no {WEIGHTS_FILE}: expected an adapter or a checkpoint")
    for path, content in makers(policy, beside):
        from rlhf_lines.train.settings import PolicyModelConfig  # of TRL, whose import takes seconds

        names = PolicyModelConfig.__dataclass_fields__
        peft_config = lora_config(
            PolicyModelConfig(**{k: v for k, v in content.items() if k in names}), shape.config.model_type
        )
        if peft_config is not None:
            base = skeleton.causal_lm(shape.config)
            frozen = int(content.get("frozen_layers") or 0)
            model = skeleton.adapt(base, without_first_layers(peft_config, base, frozen))
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
            return _sizes(shapes, f"{path}, which makes it")
    raise FileNotFoundError(
        f"policy {policy} does not exist, no config beside this one makes it, and the Hub's cache has none of that "
        "name; make it with rlhf-lines ppo, or fetch it with hf download"
    )


def stacked(adapters: Sequence[AdapterSizes], rank: int | None = None) -> int:
    """The numbers of one adapter with all modules of several, at this rank or at the sum of theirs."""
    widths = {module: width for adapter in adapters for module, width in adapter.widths.items()}
    return (rank or sum(adapter.rank for adapter in adapters)) * sum(widths.values())


def changed(adapters: Sequence[AdapterSizes]) -> set[str]:
    """The names of the weights that adapters change."""
    return {f"{module}.weight" for adapter in adapters for module in adapter.widths}


def _sizes(shapes: Mapping[str, tuple[int, ...]], source: str) -> AdapterSizes:
    """The sizes of factors A `[r, in]` and B `[out, r]` by their names."""
    count = sum(map(math.prod, shapes.values()))
    ranks = [shape[0] if ".lora_A." in name else shape[-1] for name, shape in shapes.items()]
    widths: dict[str, int] = {}
    outs, ins = {}, {}
    for rank, (name, shape) in zip(ranks, shapes.items(), strict=True):
        module = name.partition(".lora_")[0].removeprefix("base_model.model.")
        widths[module] = widths.get(module, 0) + math.prod(shape) // rank
        (ins if ".lora_A." in name else outs)[module] = math.prod(shape) // rank
    ups = sum(math.prod(shape) for name, shape in shapes.items() if ".lora_B." in name)
    sides = {module: (outs.get(module, 0), ins.get(module, 0)) for module in widths}
    return AdapterSizes(count, f"{count:,} parameters; {source}", max(ranks), widths, ups, sides)
