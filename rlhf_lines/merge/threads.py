"""Work on spans, by several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from rlhf_lines.merge.tensors.spans import ELEMENTS, Span


T = TypeVar("T")

BATCH = 16  # spans that a thread takes at once
LARGE = 16 * ELEMENTS  # a span of more elements has the machine to itself


def in_threads(function: Callable[[Span], T], spans: Iterable[Span], workers: int) -> Iterator[T]:
    """`function` of every span, in order; at most a few batches of spans per thread are in work or waiting.

    A thread that works on pieces of its own leaves nothing for torch to divide, so torch gets one thread there. Large
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
