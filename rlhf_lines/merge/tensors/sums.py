"""Sums over a parameter whose last bit does not depend on how it is read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from rlhf_lines.merge.tensors.residuals import Chunk, Residuals, Unit
from rlhf_lines.merge.tensors.spans import ELEMENTS


SERIAL = 1 << 14  # torch adds up fewer than 2^15 elements in one thread, so always in the same order


def parameter_sums(
    residuals: Residuals,
    values: Callable[[Chunk], Iterable[Tensor]],
    unit: Unit = "element",
    names: Iterable[str] | None = None,
) -> dict[str, list[float]]:
    """Parameter name to the sums of `values` over it, in float64.

    The chunks have one fixed size here, and their sums are added without rounding in between: the result is the same
    bit for bit however many threads read, and whatever size of chunk or order of parameters the residuals have.

    Args:
        residuals: K residuals.
        values: flat tensors of a chunk, any number of them.
        unit: what a chunk must hold whole, as in `Merged`.
        names: the parameters to look at; None is all.

    Returns:
        One sum per tensor that `values` gives; none for a parameter without elements.
    """
    residuals = replace(residuals, elements=ELEMENTS)
    names = list(residuals.shapes if names is None else names)
    sums: dict[str, list[float]] = {name: [] for name in names}

    def measure(chunk: Chunk) -> tuple[str, list[list[float]]]:
        return chunk.name, [_serial_sums(value) for value in values(chunk)]

    # Chunks come in order, so that the parts of one parameter alone are held at a time.
    for name, chunks in itertools.groupby(residuals.map(measure, unit, names), key=lambda measured: measured[0]):
        columns = zip(*(found for _, found in chunks), strict=True)
        sums[name] = [math.fsum(itertools.chain(*column)) for column in columns]
    return sums


def _serial_sums(values: Tensor) -> list[float]:
    return [part.double().sum().item() for part in values.split(SERIAL)]
