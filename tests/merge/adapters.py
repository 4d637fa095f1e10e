"""Adapters as dense residuals, for comparison."""

from __future__ import annotations

from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Adapter, dense_residual


def lora_residual(adapter: Adapter) -> dict[str, Tensor]:
    """The dense residual of an adapter: parameter name to s B A, `[out, in]`.

    Float32, or float64 for a float64 adapter. All other residuals of the policy are exactly zero.

    Source: arXiv 2106.09685, equation 3; scale as in PEFT.
    """
    return {f"{module}.weight": dense_residual(adapter, module) for module in adapter.modules}
