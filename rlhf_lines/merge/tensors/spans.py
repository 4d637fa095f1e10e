"""Parts of parameters: cut so that a rule finds whole what it needs whole, read by threads into buffers they reuse."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor


ELEMENTS = 1 << 18  # of a chunk: a few such float32 buffers stay in a cache, and Python has little to do between them


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


class Scratch(threading.local):
    """Flat tensors by key, one set per thread, as large as the largest that was asked for.

    A merge goes through memory of many times its buffers' size; asking the system for it anew, page by page, costs more
    than the arithmetic.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[object, torch.dtype], Tensor] = {}

    def take(self, key: object, size: int, dtype: torch.dtype) -> Tensor:
        """A tensor `[size]` with anything in it; the next call with this key may return the same memory."""
        held = self._held.get((key, dtype))
        if held is None or held.numel() < size:
            held = self._held[key, dtype] = torch.empty(size, dtype=dtype)
        return held[:size]


T = TypeVar("T")

BATCH = 8  # spans that a thread takes at once
LARGE = 8 * ELEMENTS  # a span of more elements has the machine to itself


def in_threads(function: Callable[[Span], T], spans: Iterable[Span], workers: int) -> Iterator[T]:
    """`function` of every span, in order; at most a few batches of spans per thread are in work or waiting.

    A thread that works on chunks of its own leaves nothing for torch to divide, so torch gets one thread there. Large
    spans (whole parameters, for the rules that need them) run alone in the calling thread, and torch divides the work.
    """
    if workers <= 1:
        yield from map(function, spans)
        return
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def work(batch: list[Span]) -> list[T]:
        return [function(span) for span in batch]

    waiting: deque[Future[list[T]]] = deque()
    try:
        for batch in _batches(spans):
            alone = batch[0].stop - batch[0].start > LARGE
            while waiting and (alone or len(waiting) >= 4 * workers):
                yield from waiting.popleft().result()
            if alone:
                torch.set_num_threads(threads_before)
                yield from work(batch)
            else:
                waiting.append(pool.submit(work, batch))
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Lists of up to `BATCH` spans; a large one is alone."""
    batch: list[Span] = []
    for span in spans:
        large = span.stop - span.start > LARGE
        if batch and (large or len(batch) == BATCH):
            yield batch
            batch = []
        if large:
            yield [span]
        else:
            batch.append(span)
    if batch:
        yield batch
