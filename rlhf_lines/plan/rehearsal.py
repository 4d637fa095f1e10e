"""How much memory a pass takes beside the weights: the pass is run without numbers, and what it allocates is counted.

PyTorch's fake tensors have shapes, types and a place, but no data. So the real modules of transformers and PEFT run,
with their autograd graph, recomputation and casts, in seconds and without memory, for any architecture. A dispatch mode
sees every tensor that appears and notices when it goes.

What it does not see: workspaces inside kernels, the allocator's rounding, and memory that a CUDA kernel saves and the
CPU kernel of the same name does not (attention; here the CPU's flash attention is counted).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_lines.errors import reason
from rlhf_lines.progress import beat


T = TypeVar("T")


class Step(NamedTuple):
    """Bytes of one forward and backward pass.

    Attributes:
        kept: alive between the two, for the backward pass; the activations.
        forward: most beside `kept` during the forward pass.
        backward: most beside `kept` during the backward pass, gradients of parameters not counted.
    """

    kept: int
    forward: int
    backward: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that are still alive.

    Attributes:
        now: alive.
        peak: the most that was alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator is torch.ops.aten._local_scalar_dense.default and isinstance(arguments[0], FakeTensor):
            return False  # "is nothing padded?": a planned batch has padding
        inputs = {_storage(x)._cdata for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)}
        result = operator(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = _storage(tensor)
                if storage._cdata not in inputs and storage._cdata not in self._sizes:
                    self._add(storage)
        return result

    def _add(self, storage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Rehearsal:
    """Run the trunk of a model that has no weights.

    What a pass of such a model took is kept while the process runs: of two reward models of one shape, and of plans
    of one model, the second is not run.

    Args:
        model: on the meta device, with its adapter; the first pass that is run places it on a fake CPU.
        autocast: bfloat16 or float16 where training runs under autocast, else None.
    """

    _known: ClassVar[dict[tuple, Any]] = {}

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None) -> None:
        self._fake: FakeTensorMode | None = None
        self._autocast = autocast
        self._model = model
        self._described = (*_described(model), autocast)

    def forward(self, batch: int, length: int, *, use_cache: bool = False, train: bool = False) -> int:
        """The most bytes that a pass without gradient holds beside the weights."""
        told = ("forward", batch, length, use_cache, train)
        return self._once(told, lambda: self._forward(batch, length, use_cache=use_cache, train=train))

    def step(self, batch: int, length: int, *, checkpointing: dict | None = None) -> Step:
        """What a forward and a backward pass hold beside the weights.

        Args:
            batch: sequences.
            length: their tokens.
            checkpointing: arguments of gradient checkpointing, or None where activations are kept.
        """
        told = ("step", batch, length, repr(checkpointing))
        return self._once(told, lambda: self._step(batch, length, checkpointing))

    def _once(self, told: tuple, run: Callable[[], T]) -> T:
        key = (self._described, *told)
        if key not in self._known:
            beat("counting the memory of a pass")
            if self._fake is None:
                self._fake = FakeTensorMode(allow_non_fake_inputs=True)
                with self._fake:
                    leave_meta(self._model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
            self._known[key] = run()
        return self._known[key]

    def _forward(self, batch: int, length: int, *, use_cache: bool, train: bool) -> int:
        self._model.train(train)
        live = LiveBytes()
        with self._fake, torch.no_grad(), self._casts(), live:
            output = hidden_states(self._model, batch, length, use_cache=use_cache)
            del output
        return live.peak

    def _step(self, batch: int, length: int, checkpointing: dict | None) -> Step:
        model = self._model.train()
        if checkpointing is not None:
            checkpoint(model, checkpointing)
        live = LiveBytes()
        with self._fake, live:
            with self._casts():
                hidden = hidden_states(self._model, batch, length)
            kept, forward = live.now, live.peak - live.now
            live.peak = live.now
            hidden.backward(torch.ones_like(hidden))
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            # Gradients of parameters are there from the first update on; their growth is not counted twice.
            backward = max(0, live.peak - kept - gradients)
            for parameter in model.parameters():
                parameter.grad = None
        return Step(kept, forward, backward)

    def _casts(self):
        return torch.autocast("cpu", dtype=self._autocast or torch.bfloat16, enabled=self._autocast is not None)


def hidden_states(model: nn.Module, batch: int, length: int, *, use_cache: bool = False):
    """The last hidden states of a batch with padding; with a cache, all that the model returns.

    Raises:
        ValueError: what the model does depends on numbers, and it has none.
    """
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    ids = torch.zeros(batch, length, dtype=torch.long, device=model.device)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    options = {"use_cache": use_cache} if getattr(model.config, "is_decoder", True) or use_cache else {}
    if model.config.is_encoder_decoder:
        options = {"decoder_input_ids": ids, "use_cache": False}
    try:
        output = model.base_model(input_ids=ids, attention_mask=mask, **options)
    except RuntimeError as error:  # what a pass does depends on numbers: a mixture of experts, for instance
        raise ValueError(
            f"the memory of a {model.config.model_type} model cannot be planned: its forward pass needs numbers "
            f"({reason(error)})"
        ) from error
    return output if use_cache else output[0]


def checkpoint(model: nn.Module, settings: dict) -> None:
    """Let a model keep few activations and compute the others again, with these settings of gradient checkpointing."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    if hasattr(model, "peft_config"):
        model.enable_input_require_grads()


def _described(model: nn.Module) -> tuple:
    """All that decides what a pass of a model takes: its modules, settings and parameters."""
    config = (model.get_base_model() if hasattr(model, "peft_config") else model).config
    parameters = tuple((p.shape, p.dtype, p.requires_grad) for p in model.parameters())
    return repr(model), config.to_json_string(), config._attn_implementation, parameters


def _storage(tensor: torch.Tensor):
    return tensor.untyped_storage()


def leave_meta(model: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put what `make` makes of them in place of all parameters and buffers; tied ones stay tied."""
    placed: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    made, is_parameter = make(tensor), isinstance(tensor, nn.Parameter)
                    placed[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
                tensors[name] = placed[id(tensor)]
