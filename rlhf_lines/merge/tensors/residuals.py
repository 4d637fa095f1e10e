"""K residuals of one base, read chunk by chunk, so that a rule never needs a whole model in memory.

A rule is a function from such residuals to a merged residual of the same kind: it may first go over all chunks to
measure something (a quantile, a norm), and then says how one chunk is merged. The same code merges tensors in memory
and checkpoints of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rlhf_lines.merge.tensors.precision import wide, widest
from rlhf_lines.merge.tensors.spans import ELEMENTS, Span, cut, in_threads


T = TypeVar("T")
Unit = str | Callable[[str], str]  # of all parameters, or by name


class Tensors(Protocol):
    """Named tensors that can be read in part."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor, in float32 or wider."""
        ...


@dataclass(frozen=True)
class Chunk:
    """One span of all K residuals, float32 or wider, flat: valid until the same thread reads the next chunk.

    Attributes:
        span: where it is.
        shape: of the whole parameter.
        residuals: K tensors `[n]`; they must not be changed.
        sft: the SFT model's values `[n]`, or None where no one gave them.
    """

    span: Span
    shape: tuple[int, ...]
    residuals: list[Tensor]
    sft: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.span.name

    def rows(self, tensor: Tensor) -> Tensor:
        """`tensor` `[n]` as whole rows of the last dimension, `[n / columns, columns]`; a vector is one row."""
        return tensor.view(-1, self.shape[-1]) if self.shape else tensor.view(1, 1)


@dataclass(frozen=True)
class Residuals:
    """K residuals tau_1..tau_K on one SFT model.

    Attributes:
        count: K.
        shapes: parameter name to shape, of every parameter that at least one policy changes.
        dtype: of all arithmetic, float32, or float64 where any input is float64.
        read: the function from a span to its chunk; several threads may call it at once.
        statistics: K sets of tensors that a rule asks for (Fisher diagonals, Gram matrices), or nothing.
        workers: how many threads read chunks.
        elements: of a chunk at most, where the unit allows.
        max_memory: bytes that a chunk and the work on it may take, or None.
        progress: told the number of elements of every chunk that `map` has gone over.
        transposed: the matrices that are stored `[in, out]`.
    """

    count: int
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    read: Callable[[Span], Chunk]
    statistics: tuple[Tensors, ...] = ()
    workers: int = 1
    elements: int = ELEMENTS
    max_memory: int | None = None
    progress: Callable[[int], object] = lambda elements: None
    transposed: frozenset[str] = frozenset()

    def size(self, names: Iterable[str] | None = None) -> int:
        """The number of elements of these parameters; None is all."""
        return sum(math.prod(self.shapes[name]) for name in (self.shapes if names is None else names))

    def changed(self, change: Callable[[Chunk], list[Tensor]]) -> Residuals:
        """The residuals whose chunks are `change(chunk)`: a scaling or a mask that is applied when they are read."""

        def read(span: Span) -> Chunk:
            chunk = self.read(span)
            return replace(chunk, residuals=change(chunk))

        return replace(self, read=read)

    def scaled(self, factors: Sequence[float] | None) -> Residuals:
        """The residuals f_k tau_k; None changes nothing."""
        if factors is None or all(factor == 1 for factor in factors):
            return self
        return self.changed(lambda chunk: [tau * factor for tau, factor in zip(chunk.residuals, factors, strict=True)])

    def spans(self, unit: Unit = "element", names: Iterable[str] | None = None) -> Iterator[Span]:
        """The spans that cover the parameters, none larger than needed: see `cut`.

        Raises:
            ValueError: a span takes more than `max_memory`.
        """
        for name in self.shapes if names is None else names:
            whole = unit if isinstance(unit, str) else unit(name)
            for span in cut(name, self.shapes[name], whole, self.elements):
                self.check_memory(name, span.stop - span.start)
                yield span

    def map(
        self, function: Callable[[Chunk], T], unit: Unit = "element", names: Iterable[str] | None = None
    ) -> Iterator[T]:
        """`function` of every chunk, in the order of the spans, however many threads work on it.

        What it returns must not share memory with the chunk.
        """

        def work(span: Span) -> tuple[int, T]:
            return span.stop - span.start, function(self.read(span))

        for size, result in in_threads(work, self.spans(unit, names), self.workers):
            self.progress(size)
            yield result

    def check_memory(self, name: str, elements: int, beside: int = 0) -> None:
        """Stop if a chunk is larger than the others have to be, and takes more than `max_memory`.

        Args:
            name: the parameter.
            elements: of the chunk.
            beside: bytes that the rule takes beside K residuals, the SFT model's values and as much again.

        Raises:
            ValueError: it does.
        """
        needed = 2 * (self.count + 1) * elements * self.dtype.itemsize + beside
        if self.max_memory is not None and elements > self.elements and needed > self.max_memory:
            raise ValueError(
                f"the rule needs {elements:,} elements of {name!r} {self.shapes[name]} at once, about {needed:,} "
                f"bytes, but max_memory is {self.max_memory:,}; raise it, or choose another rule or granularity"
            )


@dataclass(frozen=True)
class Merged:
    """A merged residual tau_M, computed where it is read.

    Attributes:
        residuals: what it is computed from.
        compute: the function from a chunk to tau_M on its span, flat `[n]`; a new tensor.
        unit: what a chunk must hold whole: an `element`, a `row` of the last dimension, or the `tensor`; or a function
            from a parameter's name to one of them, so that only the parameters that must be read whole are.
    """

    residuals: Residuals
    compute: Callable[[Chunk], Tensor]
    unit: Unit = "element"

    def then(self, function: Callable[[Chunk, Tensor], Tensor]) -> Merged:
        """The merged residual `function(chunk, tau_M)`."""
        return replace(self, compute=lambda chunk: function(chunk, self.compute(chunk)))

    def tensor(self, name: str) -> Tensor:
        """tau_M of one parameter, whole."""
        parts = list(self.residuals.map(self.compute, self.unit, [name]))
        whole = torch.cat(parts) if parts else torch.zeros(0, dtype=self.residuals.dtype)
        return whole.view(self.residuals.shapes[name])


class MemoryTensors:
    """Named tensors that lie in memory, as `Tensors`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: wide(tensor, name) for name, tensor in tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor; not a copy."""
        return self._tensors[name].reshape(-1)[start:stop]


def residuals_in_memory(
    residuals: Sequence[Mapping[str, Tensor]],
    *,
    sft: Mapping[str, Tensor] | None = None,
    statistics: Sequence[Mapping[str, Tensor]] = (),
    elements: int = ELEMENTS,
) -> Residuals:
    """K mappings from parameter name to tensor as `Residuals`; a missing name counts as zero.

    Raises:
        ValueError: no residual, shapes that differ, or a tensor that is not floating-point.
    """
    if not residuals:
        raise ValueError("got no residuals, expected at least one")
    held = [MemoryTensors(residual) for residual in residuals]
    base = MemoryTensors(sft) if sft is not None else None
    shapes: dict[str, tuple[int, ...]] = {}
    for tensors in held:
        for name, shape in tensors.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"{name!r} has shapes {shapes[name]} and {shape}; residuals of one base have equal shapes"
                )
    for name, shape in shapes.items():
        if base is not None and base.shapes.get(name) != shape:
            raise ValueError(f"the SFT model has {base.shapes.get(name)} for {name!r}, the residuals have {shape}")
    dtype = widest(tensor.dtype for residual in residuals for tensor in residual.values())

    def read(span: Span) -> Chunk:
        taus = [
            tensors.read(span.name, span.start, span.stop).to(dtype)
            if span.name in tensors.shapes
            else torch.zeros(span.stop - span.start, dtype=dtype)
            for tensors in held
        ]
        values = base.read(span.name, span.start, span.stop).to(dtype) if base is not None else None
        return Chunk(span, shapes[span.name], taus, values)

    return Residuals(
        len(residuals), shapes, dtype, read, tuple(MemoryTensors(tensors) for tensors in statistics), elements=elements
    )
