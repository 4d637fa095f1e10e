"""The second moments that Adam kept of a full fine-tuning, from the `optimizer.pt` of a Trainer's checkpoint."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.checkpoint import Checkpoint, holds_weights
from rlhf_lines.merge.tensors.precision import wide


OPTIMIZER_FILE = "optimizer.pt"
_MOMENT = "exp_avg_sq"
_EXPECTED = (
    "expected a full fine-tuning of this model by a Trainer, in the groups that a Trainer makes itself (after "
    "layer_learning_rates or frozen_layers it is not told whose each tensor is); use `rlhf-lines fisher`"
)


class OptimizerState:
    """Adam's second moments by the names of the SFT model's files, read in part, as `Tensors`.

        v = exp_avg_sq / (1 - beta_2^step)

    The division is Adam's own correction for having started at zero: policies of few and of many steps compare.

    The file is mapped, not loaded, and read by torch's loader that admits tensors and plain values alone.

    Attributes:
        shapes: parameter name to shape.
    """

    def __init__(self, folder: str | Path, sft: Checkpoint | None = None) -> None:
        """Find out which tensor is which parameter's.

        Args:
            folder: the checkpoint.
            sft: the SFT model; None takes the names of the checkpoint's own files.

        Raises:
            ValueError: the optimiser is no Adam, was of an adapter, or of parameters in another order than a Trainer's.
        """
        self._path = Path(folder) / OPTIMIZER_FILE
        if not holds_weights(folder):
            raise ValueError(
                f"{str(self._path)!r} lies beside no whole model, expected a checkpoint of a full fine-tuning: the "
                "moments of an adapter's factors do not give those of its residual; use `rlhf-lines fisher`"
            )
        state, groups = self._load()
        self._held: dict[str, tuple[Tensor, float]] = {}
        names = self._names(state, groups, sft)
        for group in groups:
            for key in group["params"]:
                held = state.get(key, {})
                if _MOMENT not in held:
                    continue  # a parameter that never had a gradient
                decay, step = group.get("betas", (0.0, 0.0))[1], float(held.get("step", 0))
                self._held[names[key]] = held[_MOMENT], 1 - decay**step if step else 1.0
        if not self._held:
            raise ValueError(
                f"{str(self._path)!r} has no {_MOMENT}, which Adam and AdamW keep; use `rlhf-lines fisher`"
            )
        self.shapes = {name: tuple(tensor.shape) for name, (tensor, _) in self._held.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor, in float32 or wider."""
        tensor, correction = self._held[name]
        return wide(tensor.reshape(-1)[start:stop], name) / correction

    def _load(self) -> tuple[Mapping[int, Mapping[str, Any]], list[Mapping[str, Any]]]:
        try:
            content = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)
            return content["state"], content["param_groups"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(
                f"{str(self._path)!r} is no optimiser's state as a Trainer writes it ({reason}); use `rlhf-lines "
                "fisher`"
            ) from error

    def _names(self, state: Mapping, groups: list[Mapping[str, Any]], sft: Checkpoint | None) -> dict[int, str]:
        """From the keys of the state, which count the parameters of all groups, to the names in the files.

        A Trainer's groups are the parameters with weight decay, then those without, each in the order of the model.
        """
        keys = [key for group in groups for key in group["params"]]
        in_order = _in_order_of_a_trainer(self._path.parent)
        if len(in_order) != len(keys):
            raise ValueError(
                f"{str(self._path)!r} is of {len(keys)} parameters, the model beside it has {len(in_order)}; "
                f"{_EXPECTED}"
            )
        with Checkpoint(self._path.parent) as checkpoint:
            names = [checkpoint.parameter(name) or name for name in in_order]
            for key, name in zip(keys, names, strict=True):
                shape, there = state.get(key, {}).get(_MOMENT), checkpoint.shapes.get(name)
                if shape is not None and tuple(shape.shape) != there:
                    raise ValueError(
                        f"{str(self._path)!r} has {tuple(shape.shape)} in the place of {name!r}, which is {there} in "
                        f"the model beside it; {_EXPECTED}"
                    )
        if sft is not None:
            names = [sft.parameter(name) or name for name in in_order]
        return dict(zip(keys, names, strict=True))


def _in_order_of_a_trainer(folder: Path) -> list[str]:
    """The names of the parameters of a model as its Trainer gives them to the optimiser."""
    from transformers import AutoConfig, Trainer

    from rlhf_lines import skeleton

    model = skeleton.any_language_model(AutoConfig.from_pretrained(folder))
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name in decayed] + [name for name in names if name not in decayed]
