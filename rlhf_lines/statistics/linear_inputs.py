"""What the linear modules of a model read."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rlhf_lines.statistics.policy import Policy


def linear_modules(policy: Policy, parameters: str) -> dict[str, nn.Module]:
    """The linear modules of a policy by the names of their weights.

    A weight that is tied (an output head that is the embedding) is no module of its own, and left out.

    Args:
        policy: the policy, loaded.
        parameters: `adapted` or `all`.
    """
    names = {policy.parameters[name]: name for name in policy.selected(parameters) if name not in policy.tied}
    return {
        names[module.weight]: module
        for module in policy.model.modules()
        if (isinstance(module, nn.Linear) or is_conv1d(module)) and module.weight in names
    }


@torch.no_grad()
def shared_inputs(model: nn.Module, modules: Mapping[str, nn.Module], token_ids: Sequence[int]) -> dict[str, str]:
    """From the name of every module to that of the first module that reads the same tensor, in the order of the calls.

    Args:
        model: a causal language model.
        modules: weight name to linear module of the model.
        token_ids: any sequence; one forward pass runs on its start.

    Raises:
        ValueError: a module runs more than once, or not at all.
    """
    same_input: dict[str, str] = {}
    seen: dict[int, tuple[str, weakref.ref, int]] = {}  # by id, which a later tensor may get: hence the reference

    def look(name: str, tensor: Tensor) -> None:
        if name in same_input:
            raise ValueError(f"the module of {name!r} runs more than once for a token; it has no one Gram matrix")
        first, reference, version = seen.get(id(tensor), (name, None, 0))
        if reference is None or reference() is not tensor or version != tensor._version:
            first = name
            seen[id(tensor)] = (name, weakref.ref(tensor), tensor._version)
        same_input[name] = first

    with inputs_of(modules, look):
        model(input_ids=torch.tensor([token_ids[:8]], device=next(model.parameters()).device), use_cache=False)
    idle = next((name for name in modules if name not in same_input), None)
    if idle is not None:
        raise ValueError(f"the module of {idle!r} does not see every token (a mixture of experts has no Gram matrices)")
    return same_input


def add_products(
    model: nn.Module, modules: Mapping[str, nn.Module], rows: Sequence[Sequence[int]], sums: Mapping[str, Tensor]
) -> None:
    """Add X^T X of the inputs of every module to its entry of `sums`, in one forward pass that stops at the last.

    Padding is left out. The products are taken in float32, which is fast everywhere.

    Args:
        model: a causal language model.
        modules: name to linear module of the model.
        rows: token ids of sequences.
        sums: name to a float64 tensor `[in, in]`.

    Raises:
        ValueError: a module does not see every token.
    """
    tokens, mask = right_pad(rows, next(model.parameters()).device)
    missing = set(modules)

    def add(name: str, tensor: Tensor) -> None:
        inputs = tensor.reshape(-1, tensor.shape[-1])
        if len(inputs) != mask.numel():
            raise ValueError(f"the module of {name!r} does not see every token; it has no Gram matrix here")
        inputs = inputs[mask.flatten()].float()
        sums[name].add_(inputs.T @ inputs)
        missing.remove(name)
        if not missing:
            raise Enough

    with contextlib.suppress(Enough), inputs_of(modules, add):
        model(input_ids=tokens, attention_mask=mask.long(), use_cache=False)


class Enough(Exception):
    """All inputs of this forward pass are seen."""


@contextlib.contextmanager
def inputs_of(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `see(name, input)` is called before each of the modules runs."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def right_pad(rows: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are real, both `[N, longest row]`.

    Padding after the end: a causal model's real tokens do not see it, and their positions count from zero.
    """
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths.unsqueeze(1)


def width(module: nn.Module) -> int:
    """The number of inputs of a linear module."""
    return module.weight.shape[0] if is_conv1d(module) else module.in_features


def sum_bytes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """What the sum of X^T X takes, in float64, by the names of the modules."""
    return {name: torch.float64.itemsize * width(module) ** 2 for name, module in modules.items()}


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's, whose weight is stored `[in, out]`."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
