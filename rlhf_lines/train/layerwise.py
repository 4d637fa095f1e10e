"""Training that depends on depth: a learning rate for every layer, and first layers that are not trained.

What LiNeS does to a policy after its training, these do while it is trained, so they are what LiNeS is compared with.
Layers are counted as LiNeS counts them, and what lies outside the layers goes with the first layer, as it does there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from rlhf_lines.merge.layers import layer_of


if TYPE_CHECKING:
    from peft import LoraConfig

DECAY = 0.9  # of exponential, where layer_decay is not given
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
_NO_GROUPS = re.compile("layerwise|lomo")  # optimizers of transformers that have one learning rate


def layer_factors(policy: str, num_layers: int, decay: float = DECAY) -> list[float]:
    """What the learning rate of every layer is multiplied by; entry i is layer l = i + 1 of L.

        linear:        l / L               LiNeS' factors with alpha = 1 / L and beta = 1 - 1 / L
        exponential:   decay^(L - l)       layer-wise learning rate decay

    The last layer has the full rate.

    Source: ULMFiT, arXiv 1801.06146 (discriminative fine-tuning, decay 1 / 2.6); BEiT, arXiv 2106.08254 (layer-wise
    decay); the linear one is after LiNeS, arXiv 2410.17146.

    >>> layer_factors("linear", 4)
    [0.25, 0.5, 0.75, 1.0]
    >>> layer_factors("exponential", 3, decay=0.5)
    [0.25, 0.5, 1.0]
    """
    return [FACTORS[policy](layer, num_layers, decay) for layer in range(1, num_layers + 1)]


FACTORS: dict[str, Callable[[int, int, float], float]] = {
    "linear": lambda layer, count, decay: layer / count,
    "exponential": lambda layer, count, decay: decay ** (count - layer),
}


class Layers(NamedTuple):
    """The layers of a model.

    Attributes:
        place: the name of a layer's parameter up to the index, without PEFT's prefix: `model.layers.`.
        count: how many there are.
    """

    place: str
    count: int

    @classmethod
    def of(cls, model: nn.Module) -> Layers:
        """The layers of a model, with an adapter or without; where it has several stacks, of that with most parameters.

        Raises:
            ValueError: no parameter is known to lie in a layer.
        """
        indices: dict[str, list[int]] = {}
        for name, _ in model.named_parameters():
            found = layer_of(_plain(name))
            if found:
                indices.setdefault(found[0], []).append(found[1])
        if not indices:
            raise ValueError(
                f"a {type(model).__name__} has no layers of a known name, so that none has a depth: leave out "
                "layer_learning_rates and frozen_layers"
            )
        place = max(indices, key=lambda place: len(indices[place]))
        return cls(place.removeprefix("base_model.model."), max(indices[place]) + 1)

    def index(self, name: str) -> int:
        """The 0-based layer of a parameter or module; 0 for what lies outside the layers."""
        place, index = layer_of(_plain(name)) or ("", 0)
        return index if place.removeprefix("base_model.model.") == self.place else 0


def check_depth(model: nn.Module, *, policy: str | None, frozen: int) -> None:
    """Stop where a model has not the layers for these settings.

    Args:
        model: with weights or without.
        policy: `layer_learning_rates`.
        frozen: `frozen_layers`.

    Raises:
        ValueError: there are as many frozen layers as layers, or one layer is trained, which has the full rate.
    """
    if not (policy or frozen):
        return
    count = Layers.of(model).count
    if frozen >= count:
        raise ValueError(f"frozen_layers is {frozen}, but the model has {count} layers: expected at most {count - 1}")
    if policy and frozen == count - 1:
        reason = f"frozen_layers is {frozen}" if frozen else "the model has 1 layer"
        raise ValueError(
            f"layer_learning_rates is {policy}, but {reason}, so that only the last layer is trained, at the full "
            "rate: leave it out"
        )


def without_first_layers(peft_config: LoraConfig, base: nn.Module, frozen: int) -> LoraConfig:
    """A LoRA config that adapts nothing in the first layers, nor outside the layers.

    It says so by `exclude_modules`: `layers_to_transform` does not reach names that are given in full, which
    `all-linear` becomes.

    Args:
        peft_config: as it would be for all layers.
        base: the model without an adapter, with weights or without.
        frozen: how many layers have no adapter; with 0 the config is that of all layers.

    Raises:
        ValueError: the config leaves out layers itself, or would adapt nothing in the others.
    """
    if not frozen:
        return peft_config
    for name in ("layers_to_transform", "exclude_modules"):
        if getattr(peft_config, name) is not None:
            raise ValueError(f"frozen_layers is {frozen}, but the LoRA config has {name} already: keep one of them")
    check_depth(base, policy=None, frozen=frozen)
    layers = Layers.of(base)
    trained = "|".join(map(str, range(frozen, layers.count)))
    found = deepcopy(peft_config)
    found.exclude_modules = rf"(?!(?:.*\.)?{re.escape(layers.place)}(?:{trained})\.).*"
    names = [name for name, _ in base.named_modules()]
    targets = found.target_modules
    named = isinstance(targets, list | set) and [n for n in names if any(f".{n}".endswith(f".{t}") for t in targets)]
    if named and all(re.fullmatch(found.exclude_modules, name) for name in named):
        raise ValueError(
            f"lora_target_modules hold only modules of the first {frozen} layers, or outside the layers, which "
            "frozen_layers leaves out: name modules of later layers too, or lower frozen_layers"
        )
    return found


def freeze_first_layers(model: nn.Module, frozen: int) -> None:
    """Let the first layers, and what lies outside the layers, be as they are while all weights are trained.

    Raises:
        ValueError: no layer would be left.
    """
    if not frozen:
        return
    check_depth(model, policy=None, frozen=frozen)
    layers = Layers.of(model)
    for name, parameter in model.named_parameters():
        if layers.index(name) < frozen:
            parameter.requires_grad_(False)


def check_frozen(model: nn.Module, frozen: int) -> None:
    """Stop where an adapter is in layers that are not to be trained.

    Raises:
        ValueError: it is, and `without_first_layers` was left out.
    """
    if not frozen:
        return
    layers = Layers.of(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    wrong = next((name for name in trained if layers.index(name) < frozen), None)
    if wrong:
        raise ValueError(
            f"frozen_layers is {frozen}, but peft_config adapts {wrong}: give it as "
            "rlhf_lines.train.layerwise.without_first_layers returns it"
        )


def split_by_depth(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    factors: Sequence[float],
    *,
    at_full_rate: Callable[[str], object] = lambda name: False,
) -> None:
    """Split every parameter group of an optimizer by layers, whose learning rates are multiplied by their factors.

    Groups keep all else, weight decay for one. A schedule multiplies the rates of all groups alike. Those of one group
    stand in falling order, so that the first rate, which a Trainer logs, is that of the last layer.

    Args:
        optimizer: before its first step.
        model: whose parameters it has.
        factors: one per layer.
        at_full_rate: whether a parameter of this name keeps the rate as it is.
    """
    layers = Layers.of(model)
    factor_of = {
        parameter: 1.0 if at_full_rate(name) else factors[layers.index(name)]
        for name, parameter in model.named_parameters()
    }
    groups = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factor_of[parameter], []).append(parameter)
        groups += [
            {**group, "params": by_factor[factor], "lr": group["lr"] * factor} for factor in sorted(by_factor)[::-1]
        ]
    optimizer.param_groups[:] = groups


class LayerLearningRates:
    """Mixin of a Trainer whose settings have `layer_learning_rates`.

    Raises:
        ValueError: the optimizer is given, or DeepSpeed is to make it, with one learning rate.
    """

    _rates = ("layer_learning_rates",)  # settings that count only for an optimizer that is made here
    _has_made_optimizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._check_optimizer()
        policy = self.args.layer_learning_rates
        deepspeed = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if policy and deepspeed is not None and "optimizer" in deepspeed.deepspeed_config:
            raise ValueError(
                f"layer_learning_rates is {policy}, but the config of DeepSpeed has an optimizer, which has one "
                "learning rate: leave it out there, so that optim makes it"
            )

    def create_optimizer(self, *args, **kwargs):
        """Make the optimizer, with the learning rates of its layers.

        Raises:
            ValueError: it was given since.
        """
        self._check_optimizer()
        self._has_made_optimizer = True  # Trainer asks for it again where there is one
        if self.optimizer is None and self.args.layer_learning_rates:
            super().create_optimizer(*args, **kwargs)
            model = args[0] if args and args[0] is not None else kwargs.get("model") or self.model
            factors = layer_factors(self.args.layer_learning_rates, Layers.of(model).count, self.args.decay_of_layers)
            split_by_depth(self.optimizer, model, factors, at_full_rate=self._has_full_rate)
            return self.optimizer
        return super().create_optimizer(*args, **kwargs)

    def _check_optimizer(self) -> None:
        """Stop where an optimizer is given beside settings that it does not obey."""
        given = self.optimizer is not None and not self._has_made_optimizer
        for name in self._rates if given else ():
            if (value := getattr(self.args, name)) is not None:
                raise ValueError(
                    f"{name} is {value}, but an optimizer is given ({type(self.optimizer).__name__}), which has "
                    "learning rates of its own: leave out one of them"
                )

    def _has_full_rate(self, name: str) -> bool:
        """Whether a parameter has the full rate wherever it is."""
        return False


def has_groups(optimizer: str) -> bool:
    """Whether an optimizer of transformers has parameter groups with learning rates of their own."""
    return not _NO_GROUPS.search(optimizer)


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)
