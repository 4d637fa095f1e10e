"""Which adapter the layers of a PEFT model apply, without touching what is trained.

PEFT's `set_adapter` and `disable_adapter` flip `requires_grad` of every adapter that is not active: gradients of
a graph that is already built are then lost. Here only the choice of the layers changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn


_chosen: ContextVar[tuple[nn.Module, str | None] | None] = ContextVar("chosen", default=None)


@contextlib.contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, the layers of `model` apply the adapter `name`; None is the base alone."""
    layers = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    token = _chosen.set((model, name))
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
        _chosen.reset(token)


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """The contexts of torch.utils.checkpoint (`context_fn`) for the forward pass and for its repetition.

    The repetition runs in the backward pass, after `use_adapter` has been left, and must apply the same adapter.
    """
    chosen = _chosen.get()
    repeated = contextlib.nullcontext() if chosen is None else use_adapter(*chosen)
    return contextlib.nullcontext(), repeated


def merged_weights(model: PeftModel, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yield names and weights of the base with `adapter` merged, as they are in the base's own state dict.

    A weight is valid until the next one is asked for; after the last one `model` is what it was, bit by bit. PEFT's
    `merge_adapter` and `unmerge_adapter` add and subtract in place: in bfloat16 each pair rounds some entries of
    the frozen base to their neighbours, which adds up over a run.
    """
    base, merged = model.get_base_model(), []
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer):
            merged.append(f"{name}.")
            inner = layer.get_base_layer()
            before = {key: (parameter, parameter.data) for key, parameter in inner.named_parameters(recurse=False)}
            layer.merge(safe_merge=True, adapter_names=[adapter])  # "safe" makes a new tensor, and leaves the old one
            try:
                yield from ((f"{name}.{key}", getattr(inner, key).data) for key in before)
            finally:
                for key, (parameter, data) in before.items():
                    parameter.data = data
                    setattr(inner, key, parameter)
                layer.merged_adapters.clear()
    for name, parameter in base.named_parameters():
        if not name.startswith(tuple(merged)) and ".original_module." not in name:
            yield name.replace(f"modules_to_save.{adapter}.", ""), parameter.data
