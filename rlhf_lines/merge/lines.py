"""LiNeS: a residual is scaled linearly with depth.

Source: arXiv 2410.17146; reference code wang-kee/LiNeS, src/eval/eval.py at 43a7bdd (for the parameters outside the
layers and the L1 norm, which the paper leaves open).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.rules.common import total
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.merge.tensors.largest import LARGEST
from rlhf_lines.merge.tensors.precision import wide
from rlhf_lines.merge.tensors.residuals import Merged, Residuals, residuals_in_memory
from rlhf_lines.merge.tensors.sums import parameter_sums


def lines_scales(num_layers: int, alpha: float, beta: float, schedule: str = "linear") -> Tensor:
    """The factor of every layer, float64 `[num_layers]`.

        lambda(l) = alpha + beta f(d),   d = (l - 1) / (L - 1),  l = 1..L       (entry i is l = i + 1)
        f(d) = d (linear), sqrt(d) (sqrt), d^2 (quadratic); f(1 - d) where it is reversed: 1 - d (reversed),
        sqrt(1 - d) (reversed_sqrt), (1 - d)^2 (reversed_quadratic)

    `alpha=1, beta=0` is no scaling. With one layer the factor is `alpha`. The paper has the linear schedule only.

    Source: arXiv 2410.17146, the layer-wise linear rule.

    >>> lines_scales(3, alpha=0.5, beta=1.0).tolist()
    [0.5, 1.0, 1.5]

    Raises:
        ValueError: `num_layers` below one, `alpha` or `beta` not finite, a factor that float32 does not hold, or an
            unknown schedule.
    """
    one_of("schedule", schedule, SCHEDULES)
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}, expected at least 1")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, expected a finite number")
    depth = torch.arange(num_layers, dtype=torch.float64) / max(num_layers - 1, 1)
    if num_layers == 1:
        beta = 0.0
    scales = alpha + beta * SCHEDULES[schedule].share(depth)
    if scales.abs().max() > LARGEST:
        raise ValueError(
            f"alpha {alpha:g} and beta {beta:g} give a factor that float32 does not hold; make them smaller"
        )
    return scales


def lines_alpha(residuals: Sequence[Mapping[str, Tensor]], merged: Mapping[str, Tensor]) -> float:
    """The alpha that gives a merged residual the L1 size of the mean residual.

        alpha = ||sum_k tau_k||_1 / (K ||tau_M||_1)

    Both norms run over all parameters, those outside the layers included, with float64 accumulators. `residuals` are
    the untrimmed ones, `merged` is the unscaled output of a rule. For `sum` alpha is 1/K, for `linear` with equal
    weights 1.

    Source: arXiv 2410.17146 (section on multi-task merging); the norm is L1 in the reference code.

    Raises:
        ValueError: no residual, shapes that differ, or a merged residual that is zero everywhere.
    """
    held = residuals_in_memory(residuals)
    return streamed_alpha(held, Merged(residuals_in_memory([merged]), lambda chunk: chunk.residuals[0].clone()))


def streamed_alpha(residuals: Residuals, merged: Merged) -> float:
    """`lines_alpha` of residuals that are read chunk by chunk; `merged` may be computed from masked or scaled ones.

    Raises:
        ValueError: a merged residual that is zero everywhere.
    """
    before = _total(parameter_sums(residuals, lambda chunk: [total(chunk.residuals).abs_()]))
    size = _total(parameter_sums(merged.residuals, lambda chunk: [merged.compute(chunk).abs_()], unit=merged.unit))
    if size == 0:
        raise ValueError("the merged residual is zero everywhere, so alpha is not defined; choose alpha yourself")
    return before / (residuals.count * size)


def _total(sums: Mapping[str, Sequence[float]]) -> float:
    return math.fsum(value for values in sums.values() for value in values)


def apply_lines(
    residual: Mapping[str, Tensor],
    alpha: float,
    beta: float,
    *,
    schedule: str = "linear",
    num_layers: int | None = None,
) -> dict[str, Tensor]:
    """A new residual whose layer l is multiplied by lambda(l); parameters outside the layers get `alpha`.

        tau'_l = lambda(l) tau_l,   lambda(l) = alpha + beta (l - 1) / (L - 1)

    Outside the layers means embeddings, final norm and head, although the last two come after the last layer: that is
    what the reference code does. The result is float32, or float64 where the input is float64; inputs are not changed.

    Source: arXiv 2410.17146; parameters outside the layers as in wang-kee/LiNeS src/eval/eval.py.

    Args:
        residual: parameter name to tensor.
        alpha: factor of the first layer.
        beta: what the last layer has more.
        schedule: the shape between them.
        num_layers: L, if the residual does not cover every layer (an adapter on some layers).

    Raises:
        ValueError: names without a readable layer index (see `layer_indices`), or a tensor that is not floating-point.
    """
    indices = layer_indices(residual, num_layers=num_layers)
    if num_layers is None:
        num_layers = 1 + max(index for index in indices.values() if index is not None)
    scales = lines_scales(num_layers, alpha, beta, schedule).tolist()
    return {
        name: wide(tensor, name) * (alpha if indices[name] is None else scales[indices[name]])
        for name, tensor in residual.items()
    }
