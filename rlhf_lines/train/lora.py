"""LoRA's linear layer without passes over memory of its own: what the factors add is added where the product lies.

PEFT writes `x W^T`, `x A^T B^T`, its multiple and the sum, each to memory of its own, and autograd does the like on the
way back. The factors take few operations, so on a CPU these passes take longer than their products. Here each product
is added to what is there (`addmm`): the same sums, rounded in another order.
"""

from __future__ import annotations

from types import MethodType

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional


def add_in_place(model: nn.Module) -> None:
    """Let the LoRA layers of a model compute as `adapted` does, wherever they are no more than that."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = MethodType(_forward, module)


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """A linear map and its low-rank residual, x (W + s B A)^T + bias, with gradients of x, A and B.

    Args:
        x: `[..., in]`.
        weight: W, `[out, in]`, frozen.
        bias: `[out]` or None, frozen.
        a: A, `[r, in]`.
        b: B, `[out, r]`.
        scaling: s.
    """
    if torch.is_grad_enabled():
        return _Adapted.apply(x, weight, bias, a, b, scaling)
    return _product(x, weight, bias, a, b, scaling)[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float):
    """The result, and x A^T as rows."""
    rows = x.reshape(-1, x.shape[-1])
    low = rows @ a.t()
    return functional.linear(rows, weight, bias).addmm_(low, b.t(), alpha=scaling).view(*x.shape[:-1], -1), low


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        result, low = _product(x, weight, bias, a, b, scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ b).mul_(ctx.scaling)
        grad_x = (grad @ weight).addmm_(grad_low, a).view_as(x) if ctx.needs_input_grad[0] else None
        grad_a = grad_low.t() @ x.reshape(-1, x.shape[-1])
        grad_b = (grad.t() @ low).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None


def _forward(self: Linear, x: Tensor, *args, **kwargs) -> Tensor:
    """Take the place of `forward` of PEFT's layer."""
    name = self.active_adapters[0]
    if args or kwargs or self.disable_adapters or self.merged or not _is_plain(self, name, x):
        return Linear.forward(self, x, *args, **kwargs)
    base, factors = self.base_layer, (layer[name].weight.to(x.dtype) for layer in (self.lora_A, self.lora_B))
    return adapted(x, base.weight, base.bias, *factors, self.scaling[name])


def _is_plain(layer: Linear, name: str, x: Tensor) -> bool:
    """Whether one adapter without dropout, bias or a variant (DoRA, ...) is active, and all is computed in one dtype.

    Autocast computes in its own; factors of another one are cast, as it casts them, and are trained in their own.
    """
    if layer.active_adapters != [name] or name not in layer.lora_A or name in layer.lora_variant:
        return False
    a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    device = x.device.type
    is_cast = torch.is_autocast_enabled(device)
    dtypes = {x.dtype, base.weight.dtype} | (
        {torch.get_autocast_dtype(device)} if is_cast else {a.weight.dtype, b.weight.dtype}
    )
    return len(dtypes) == 1 and type(layer.lora_dropout[name]) is nn.Identity and b.bias is None
