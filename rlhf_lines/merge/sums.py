"""Sums over a parameter whose last bit does not depend on how it is read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rlhf_lines.merge.pieces import ELEMENTS, Piece, Residuals


_SERIAL = 1 << 14  # torch adds up fewer than 2^15 elements in one thread, so always in the same order


def parameter_sums(residuals: Residuals, values: Callable[[Piece], list[Tensor]]) -> dict[str, list[float]]:
    """Parameter name to the sums of `values` over it, in float64.

    The pieces have one fixed size here, and their sums are added without rounding in between: the result is the same
    bit for bit however many threads read, and whatever size of piece or order of parameters the residuals have.

    Args:
        residuals: K residuals.
        values: flat tensors of a piece, any number of them.

    Returns:
        One sum per tensor that `values` gives; none for a parameter without elements.
    """
    residuals = replace(residuals, elements=ELEMENTS)
    parts: dict[str, list[list[list[float]]]] = {name: [] for name in residuals.shapes}
    for name, sums in residuals.map(lambda piece: (piece.name, [_serial_sums(value) for value in values(piece)])):
        parts[name].append(sums)
    return {
        name: [math.fsum(itertools.chain(*column)) for column in zip(*pieces, strict=True)]
        for name, pieces in parts.items()
    }


def _serial_sums(values: Tensor) -> list[float]:
    return [part.double().sum().item() for part in values.split(_SERIAL)]
