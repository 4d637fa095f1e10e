"""Parts of parameters, cut so that a rule finds whole what it needs whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


ELEMENTS = 1 << 17  # of a piece: a few such float32 buffers stay in a cache, and Python has little to do between them


@dataclass(frozen=True)
class Span:
    """Elements `start` to `stop` of the flattened parameter `name`."""

    name: str
    start: int
    stop: int


def cut(name: str, shape: tuple[int, ...], unit: str, elements: int) -> Iterator[Span]:
    """Spans of one parameter: of at most `elements` elements, or of one row or the whole tensor where that is more.

    >>> [(span.start, span.stop) for span in cut("w", (5, 3), "row", 7)]
    [(0, 6), (6, 12), (12, 15)]
    """
    size = math.prod(shape)
    columns = shape[-1] if shape else 1
    if unit == "tensor":
        step = max(size, 1)
    elif unit == "row":
        step = max(elements // max(columns, 1), 1) * max(columns, 1)
    else:
        step = elements
    for start in range(0, size, step):
        yield Span(name, start, min(start + step, size))
