"""Policies on disk as residuals: dense checkpoints minus the SFT model, and adapters as s B A."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Adapter, parameters_of
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.layers import is_linear_map, is_placed, layer_of
from rlhf_lines.merge.tensors.precision import is_finite, widest
from rlhf_lines.merge.tensors.residuals import Chunk, Residuals, Tensors
from rlhf_lines.merge.tensors.spans import ELEMENTS, Scratch, Span


GPU_ELEMENTS = 1 << 24  # of a chunk on a GPU, which earns its keep on large ones


class Policy(Protocol):
    """A policy on disk, seen as its residual.

    Attributes:
        path: its folder.
        shapes: of the parameters that may differ from the SFT model's.
        dtype: of the residual: float32, or float64 where the files hold float64.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    def residual(self, span: Span, sft: Tensor, scratch: Scratch) -> Tensor:
        """The residual tau on one span, flat, in the dtype and on the device of `sft`, the SFT model's values there."""
        ...


class DensePolicy:
    """A dense checkpoint as a `Policy`, under the names of the SFT checkpoint: all of its floating-point parameters."""

    def __init__(self, checkpoint: Checkpoint, sft: Checkpoint) -> None:
        """Check names, shapes and integers against `sft`.

        Raises:
            ValueError: a parameter is missing, extra, or of another shape, or an integer parameter differs.
        """
        self._checkpoint, self.path = checkpoint, str(checkpoint.folder)
        sft.check_plain(())
        self._stored, difference = match_names(checkpoint, sft)
        if difference:
            raise ValueError(f"policy {str(checkpoint.folder)!r} {difference}")
        self.shapes = {}
        num_layers = sft.num_layers(self._stored)
        for name, theirs in self._stored.items():
            layer = layer_of(name)
            if not (layer[1] < num_layers if layer else is_placed(name)) and sft.left_out(name):
                continue  # for the prediction of further tokens: the SFT model's are copied
            if checkpoint.entries[theirs].dtype.is_floating_point or sft.entries[name].dtype.is_floating_point:
                checkpoint.check_plain([theirs])
                self.shapes[name] = sft.shapes[name]
            elif not torch.equal(checkpoint.read(theirs), sft.read(name)) and not sft.left_out(name):
                raise ValueError(
                    f"{name!r} holds integers that differ between {str(checkpoint.folder)!r} and the SFT model; only "
                    "floating-point parameters can be merged"
                )
        self.dtype = widest(checkpoint.entries[self._stored[name]].dtype for name in self.shapes)

    def residual(self, span: Span, sft: Tensor, scratch: Scratch) -> Tensor:
        """theta_k - theta_SFT on one span."""
        theirs = replace(span, name=self._stored[span.name])
        return read_wide(self._checkpoint, theirs, scratch, (self, "policy"), sft.dtype, sft.device).sub_(sft)


class AdapterPolicy:
    """An adapter as a `Policy`, under the names of the SFT checkpoint."""

    def __init__(self, adapter: Adapter, sft: Checkpoint) -> None:
        """Check that every adapted parameter exists in `sft` with the right shape."""
        self.path = adapter.path
        modules = parameters_of(adapter, sft)
        self.shapes = {name: sft.shapes[name] for name in modules}
        # The stored weight is left @ right: s B A, or its transpose.
        self._factors = {}
        for name, module in modules.items():
            factors = adapter.modules[module]
            left, right = factors.B * factors.scale, factors.A
            if sft.is_transposed(name):
                left, right = right.T.contiguous(), left.T.contiguous()
            self._factors[name] = left, right
        self.dtype = next(iter(self._factors.values()))[0].dtype

    def residual(self, span: Span, sft: Tensor, scratch: Scratch) -> Tensor:
        """The residual s B A on one span: the rows that it touches are formed, and no others."""
        left, right = (factor.to(sft) for factor in self._factors[span.name])
        columns = right.shape[1]
        first = span.start // columns
        rows = left[first : -(-span.stop // columns)] @ right
        return rows.view(-1)[span.start - first * columns : span.stop - first * columns]


def streamed_residuals(
    sft: Checkpoint,
    policies: Sequence[Policy],
    *,
    not_finite: set[tuple[str, str]],
    statistics: Sequence[Tensors] = (),
    device: str = "cpu",
    workers: int | None = None,
    max_memory: int | None = None,
    progress: Callable[[int], object] = lambda elements: None,
) -> Residuals:
    """K policies on disk as `Residuals`, read into buffers that are used again for every chunk.

    `not_finite` gets the path of a policy and the name of a parameter where a residual is not finite. Without a number
    of workers there is one per core, or one on a GPU. The other arguments are those of `Residuals`.
    """
    shapes = {name: policy.shapes[name] for policy in policies for name in policy.shapes}
    # In the order of the SFT model's files: reads run forward.
    shapes = {name: shapes[name] for name in sft.shapes if name in shapes}
    dtype = widest([*(sft.entries[name].dtype for name in shapes), *(policy.dtype for policy in policies)])
    place = torch.device(device)
    scratch = Scratch()

    def read(span: Span) -> Chunk:
        values = read_wide(sft, span, scratch, "sft", dtype, place)
        taus = [
            policy.residual(span, values, scratch)
            if span.name in policy.shapes
            else scratch.take("zero", values.numel(), dtype).zero_().to(place)
            for policy in policies
        ]
        for policy, tau in zip(policies, taus, strict=True):
            if not is_finite(tau):
                not_finite.add((policy.path, span.name))
        return Chunk(span, shapes[span.name], taus, values)

    on_gpu = place.type != "cpu"
    return Residuals(
        count=len(policies),
        shapes=shapes,
        dtype=dtype,
        read=read,
        statistics=tuple(statistics),
        workers=workers or (1 if on_gpu else len(os.sched_getaffinity(0))),
        elements=GPU_ELEMENTS if on_gpu else ELEMENTS,
        max_memory=max_memory,
        progress=progress,
        transposed=frozenset(
            name for name, shape in shapes.items() if is_linear_map(name, shape) and sft.is_transposed(name)
        ),
    )


def read_wide(
    checkpoint: Checkpoint, span: Span, scratch: Scratch, key: object, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """One span of a checkpoint in a wide dtype; on a CPU in scratch memory, which the key's next call reuses."""
    stored, size = checkpoint.entries[span.name].dtype, span.stop - span.start
    if device.type == "cpu" and stored == dtype:
        values = scratch.take(("wide", key), size, dtype)
        checkpoint.read_into(values, span.name, span.start)
        return values
    raw = scratch.take("raw", size, stored)  # of all models: the fewer buffers, the more of them stay in the cache
    checkpoint.read_into(raw, span.name, span.start)
    return scratch.take(("wide", key), size, dtype).copy_(raw) if device.type == "cpu" else raw.to(device).to(dtype)


def match_names(policy: Checkpoint, sft: Checkpoint) -> tuple[dict[str, str], str | None]:
    """The SFT model's name of every parameter to the policy's, and in what they differ, as the end of a sentence.

    Where the files do not agree in their names, transformers is asked for both. What becomes no parameter of the model
    (buffers, layers that it leaves out) is no residual, and may be missing on either side.
    """
    theirs, ours = policy.distinct, sft.distinct
    stored = {name: name for name in ours if ours[name] == theirs.get(name)}
    mine, missing = ours.keys() - stored.keys(), theirs.keys() - stored.keys()
    if mine or missing:
        mine = {name for name in mine if not sft.left_out(name)}
        missing = {name for name in missing if not policy.left_out(name)}
        for name in sorted(missing):
            own = sft.parameter(name)
            if own in mine and ours[own] == theirs[name]:
                stored[own] = name
        mine, missing = mine - stored.keys(), missing - set(stored.values())
    stored = {name: stored[name] for name in ours if name in stored}  # in the order of the SFT model's files
    if not mine and not missing:
        return stored, None
    if {sft.renamed(name) for name in mine} == {sft.renamed(name) for name in missing} and mine != missing:
        return stored, (
            f"holds {len(missing)} tensors that the SFT model {str(sft.folder)!r} holds as {len(mine)} others (such as "
            f"{min(missing)!r}, there {min(mine)!r}): load one of them, and save it again with the transformers of the "
            "other"
        )
    name, *others = sorted(mine | missing)
    more = f" (and {len(others)} more differ)" if others else ""
    return stored, (
        f"has {_shape(theirs.get(name))} for {name!r}, but the SFT model {str(sft.folder)!r} has "
        f"{_shape(ours.get(name))}{more}; residuals need equal names and shapes"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {shape}"
