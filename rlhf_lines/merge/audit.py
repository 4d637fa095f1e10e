"""Signatures of policies, from their LoRA factors: how far, where and in how many directions each went, and together.

The residual of policy k in a module is tau_k = s_k B_k A_k. Nothing here forms it: inner products and singular values
follow from the small matrices B_j^T B_k and A_j A_k^T. Letters: K policies, L layers, r ranks, R their sum.

Robust weight signatures (arXiv 2302.12480) are differences between the weights of a robust and of a plainly trained
model, less their part along the plain model's own way from the pretrained weights. They differ most in shallow layers,
agree where two models were made robust against the same corruption, and tell corruptions apart. Of that we take what
can be measured without knowing what a policy was trained against: the difference to the SFT model (from which all
policies started, so that nothing is taken off), its norm by layer, and its cosine to the other policies'.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.outliers import judged
from rlhf_lines.merge.tensors.spans import ELEMENTS, Span, cut, in_threads


DIRECTIONS = (1, 2, 4, 8)  # how many of the first singular directions of each module the shares are of


def audit_policies(adapters: Sequence[Adapter], *, num_layers: int, sft: Checkpoint | None = None) -> dict[str, Any]:
    """The signatures of policies on one SFT model, as `front.json` holds them under `audit`.

        norm        ||tau_k||_F, by layer and in all
        cosine      <tau_j, tau_k> / (||tau_j|| ||tau_k||), by layer and in all, where
                    <s_1 B_1 A_1, s_2 B_2 A_2> = s_1 s_2 tr(A_2 A_1^T B_1^T B_2)
        depth       sum_l l ||tau_k,l||^2 / ((L - 1) sum_l ||tau_k,l||^2): 0 is all in the first layer, 1 in the last
        spectrum    sum over modules of sigma_1^2 + .. + sigma_d^2, over ||tau_k||^2, for d in `DIRECTIONS`

    A relative norm is over that of the SFT model's weights in the modules that any policy adapts. Which policy is
    `unlike` the others is a matter of `outliers.judged`.

    Args:
        adapters: K policies, their modules called as in one model (see `check_same_base`).
        num_layers: L.
        sft: the SFT model, for relative norms; None leaves them out, and so does a quantised one.

    Raises:
        ValueError: no adapter, a module of two shapes, or names without a layer index.
    """
    if not adapters:
        raise ValueError("an audit got no policies, expected at least one")
    modules = sorted({module for adapter in adapters for module in adapter.modules})
    indices = layer_indices([f"{module}.weight" for module in modules], num_layers=num_layers)
    place = {module: indices[f"{module}.weight"] for module in modules}
    layers = sorted(set(place.values()), key=lambda layer: (layer is None, layer))
    products = torch.zeros(len(layers), len(adapters), len(adapters), dtype=torch.float64)
    first = torch.zeros(len(adapters), len(DIRECTIONS), dtype=torch.float64)
    for module in modules:
        inner, leading = _of_module(module, adapters)
        products[layers.index(place[module])] += inner
        first += leading
    total = products.sum(0)
    squares = total.diagonal()
    weights = _norms(sft, modules, place, layers)
    cosine = _cosines(total)
    policies = []
    for k, adapter in enumerate(adapters):
        norms = products[:, k, k].sqrt().tolist()
        norm = math.sqrt(squares[k].item())
        policies.append(
            {
                "name": adapter.path,
                "norm": norm,
                "relative_norm": None if weights is None else norm / math.hypot(*weights),
                "norms": norms,
                "relative_norms": None if weights is None else [n / w for n, w in zip(norms, weights, strict=True)],
                "depth": _depth(layers, products[:, k, k].tolist(), num_layers),
                "spectrum": (first[k] / squares[k]).tolist() if norm else None,
            }
        )
    return {
        "layers": layers,
        "directions": list(DIRECTIONS),
        "cosine": cosine,
        "layer_cosines": [_cosines(inner) for inner in products],
        "policies": [policy | verdict for policy, verdict in zip(policies, judged(policies, cosine), strict=True)],
    }


def _of_module(module: str, adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor]:
    """Of one module: the inner products of all residuals, `[K, K]`, and sums of their first sigma^2, `[K, D]`."""
    owned = {k: adapter.modules[module] for k, adapter in enumerate(adapters) if module in adapter.modules}
    shapes = {(factors.B.shape[0], factors.A.shape[1]) for factors in owned.values()}
    if len(shapes) > 1:
        raise ValueError(f"{module!r} has shapes {sorted(shapes)} in different adapters; residuals need one base")
    A = torch.cat([factors.A.double() for factors in owned.values()])  # [R, in]
    B = torch.cat([factors.B.double() * factors.scale for factors in owned.values()], dim=1)  # [out, R]
    of_A, of_B = A @ A.T, B.T @ B
    ranks = [factors.A.shape[0] for factors in owned.values()]
    stops = list(itertools.accumulate(ranks))
    parts = {k: slice(stop - rank, stop) for k, rank, stop in zip(owned, ranks, stops, strict=True)}
    inner = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    first = torch.zeros(len(adapters), len(DIRECTIONS), dtype=torch.float64)
    elementwise = of_A * of_B
    for j, k in itertools.product(parts, repeat=2):
        inner[j, k] = elementwise[parts[j], parts[k]].sum()
    for k, part in parts.items():
        squares = _squared_singular_values(of_A[part, part], of_B[part, part]).cumsum(0)
        first[k] = torch.stack([squares[min(d, len(squares)) - 1] for d in DIRECTIONS])
    return inner, first


def _squared_singular_values(of_A: Tensor, of_B: Tensor) -> Tensor:
    """sigma^2 of B A from A A^T and B^T B, `[r]`, the largest first.

    They are the eigenvalues of S^T (B^T B) S for any S with S S^T = A A^T.
    """
    values, vectors = torch.linalg.eigh(of_A)
    root = vectors * values.clamp(min=0).sqrt()
    return torch.linalg.eigvalsh(root.T @ of_B @ root).clamp(min=0).flip(0)


def _norms(
    sft: Checkpoint | None, modules: Sequence[str], place: dict[str, int | None], layers: Sequence[int | None]
) -> list[float] | None:
    """The Frobenius norm of the SFT model's weights in these modules, by layer; None where they cannot be read."""
    names = {module: sft.parameter(f"{module}.weight") for module in modules} if sft and not sft.quantisation else {}
    if not names or None in names.values():  # packed, or tied to the embedding
        return None

    def squares(span: Span) -> float:
        values = torch.empty(span.stop - span.start, dtype=sft.entries[span.name].dtype)
        sft.read_into(values, span.name, span.start)
        return values.double().square().sum().item()

    spans = [span for name in names.values() for span in cut(name, sft.shapes[name], "element", ELEMENTS)]
    found: dict[str, list[float]] = {}
    for span, value in zip(spans, in_threads(squares, spans, len(os.sched_getaffinity(0))), strict=True):
        found.setdefault(span.name, []).append(value)
    sums = {layer: [] for layer in layers}
    for module, name in names.items():
        sums[place[module]] += found[name]
    norms = [math.sqrt(math.fsum(values)) for values in sums.values()]
    return norms if all(norms) else None


def _cosines(inner: Tensor) -> list[list[float | None]]:
    """`[K, K]`; null for a policy without a residual there."""
    norms = inner.diagonal().sqrt().tolist()
    return [
        [max(-1.0, min(1.0, value / (a * b))) if a and b else None for value, b in zip(row, norms, strict=True)]
        for row, a in zip(inner.tolist(), norms, strict=True)
    ]


def _depth(layers: Sequence[int | None], squares: Sequence[float], num_layers: int) -> float | None:
    """Null for a model of one layer, and where nothing inside the layers is changed."""
    inside = [(layer, square) for layer, square in zip(layers, squares, strict=True) if layer is not None]
    total = math.fsum(square for _, square in inside)
    if not total or num_layers < 2:
        return None
    return math.fsum(layer * square for layer, square in inside) / ((num_layers - 1) * total)
