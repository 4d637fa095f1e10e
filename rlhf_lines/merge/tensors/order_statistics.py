"""Exact order statistics of values that do not fit in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_lines.merge.tensors.residuals import Chunk, Residuals


# A sample has so many more values than lie within the errors of a quantile that every pass narrows a search.
DIRECT = 1 << 20  # so many values are all held
MOST = 1 << 24  # of a sample at most; twice as many are held between two of its values
ERRORS = 5  # standard errors of a sample's quantile, on either side of it, within which the value is looked for


def magnitudes(chunk: Chunk) -> list[Tensor]:
    """|tau_k| of a chunk."""
    return [tau.abs() for tau in chunk.residuals]


def order_statistics(
    residuals: Residuals,
    ranks: Sequence[Sequence[int]],
    values: Callable[[Chunk], list[Tensor]] = magnitudes,
    *,
    names: Iterable[str] | None = None,
) -> list[list[float]]:
    """For policy k, the values of the given ranks, counted from 0 for the smallest, over all its elements.

    Exact. A first pass over the residuals takes a sample, whose quantiles say between which two values the one of a
    rank almost surely lies; a second counts what lies below and at these two, and holds what lies between. Where the
    value is elsewhere, or too much lies between, it goes on there. Few values are all held in the first pass.

    Source: the selection of Floyd and Rivest (Communications of the ACM 18, 1975), on a disk.

    Args:
        residuals: K residuals.
        ranks: for each policy the ranks wanted, each 0 <= rank < number of elements.
        values: what of a chunk is ranked, K flat tensors of `residuals.dtype`; magnitudes by default. NaN counts as
            larger than all; where a sample has it near a rank, it is what is found.
        names: the parameters to look at; None is all.

    Returns:
        K lists, in the order of `ranks`.
    """
    names = list(residuals.shapes if names is None else names)
    size = residuals.size(names)
    searches = [[_Search(rank, size) for rank in wanted] for wanted in ranks]
    while open_searches := [(k, one) for k, wanted in enumerate(searches) for one in wanted if one.found is None]:
        windows = {(k, one.bounds): _Window(one.bounds, residuals.dtype) for k, one in open_searches}

        def look(chunk: Chunk, windows: dict[tuple[int, _Bounds], _Window] = windows) -> None:
            ranked = [_array(value) for value in values(chunk)]
            for (k, _), window in windows.items():
                window.add(ranked[k])

        for _ in residuals.map(look, "element", names):
            pass
        for k, one in open_searches:
            one.narrow(windows[k, one.bounds])
    return [[one.found for one in wanted] for wanted in searches]


def held_values(size: int) -> int:
    """How many of `size` values a search looks at closely: as a sample, and then between two values of it.

    (ERRORS size)^(2/3), which makes both about equally many, but at most `MOST`; few are all looked at.
    """
    return size if size <= DIRECT else min(math.ceil((ERRORS * size) ** (2 / 3)), size, MOST)


@dataclass(frozen=True)
class _Bounds:
    """Between which two values, exclusive, a search looks; None is no bound.

    Of `every` values there one is held, and `most` at most.
    """

    low: float | None
    high: float | None
    every: int
    most: int


class _Window:
    """What was seen of the values around and between two bounds; several threads add to it.

    Attributes:
        below: the number of values below `low`.
        to_low: of those up to `low`, itself included.
        to_high: of those below `high`.
        through: of those up to `high`, itself included.
    """

    def __init__(self, bounds: _Bounds, dtype: torch.dtype) -> None:
        self._bounds, self._lock = bounds, threading.Lock()
        self.below = self.to_low = self.to_high = self.through = 0
        # One array, whose memory the system gives when it is written to: many small ones that stay would tear the heap
        # into pieces, which grows then.
        self._held, self._used = np.empty(bounds.most, np.float64 if dtype == torch.float64 else np.float32), 0
        self._is_full = False

    def add(self, values: np.ndarray | Tensor) -> None:
        """Look at further values."""
        low, high, every = self._bounds.low, self._bounds.high, self._bounds.every
        below = 0 if low is None else _count(values < low)
        to_low = 0 if low is None else _count(values <= low)
        through = len(values) if high is None else _count(values <= high)
        inside = values
        if low is not None and high is not None:
            inside = values[(values > low) & (values < high)]
        elif low is not None or high is not None:
            inside = values[values < high if low is None else values > low]
        picked = inside[::every]
        if isinstance(picked, Tensor):
            picked = picked.cpu().numpy()
        with self._lock:
            self.below, self.to_low = self.below + below, self.to_low + to_low
            self.to_high, self.through = self.to_high + to_low + len(inside), self.through + through
            self._hold(picked)

    def held(self) -> np.ndarray | None:
        """The values that are held, in no order; None where they were to be all of them, and were too many."""
        return None if self._is_full and self._bounds.every == 1 else self._held[: self._used]

    def _hold(self, picked: np.ndarray) -> None:
        room = len(self._held) - self._used
        self._is_full |= len(picked) > room
        picked = picked[:room]
        self._held[self._used : self._used + len(picked)] = picked
        self._used += len(picked)


class _Search:
    """The search for the value of one rank.

    Attributes:
        found: the value, once it is known.
        bounds: where the next pass looks.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.found: float | None = None
        self._rank = rank
        self._surely_in(None, None, 0, size)

    def narrow(self, window: _Window) -> None:
        """Draw the conclusions of a pass in the bounds."""
        low, high, held = self.bounds.low, self.bounds.high, window.held()
        if self._rank < window.below:
            self._surely_in(self._low, low, self._before, window.below - self._before)
        elif self._rank < window.to_low:
            self.found = _plain(low)
        elif self._rank >= window.through:
            self._surely_in(high, self._high, window.through, self._before + self._count - window.through)
        elif self._rank >= window.to_high:
            self.found = math.nan if high is None else _plain(high)
        elif held is None:
            self._surely_in(low, high, window.to_low, window.to_high - window.to_low)
        elif self.bounds.every == 1:
            index = self._rank - window.to_low
            self.found = _plain(np.partition(held, index)[index])
        else:
            self._likely_in(held)

    def _surely_in(self, low: float | None, high: float | None, before: int, count: int) -> None:
        """The value is one of `count` between these two, and `before` are below them: a sample is needed of those."""
        self._low, self._high, self._before, self._count = low, high, before, count
        every = -(-count // held_values(count))
        # An odd step meets all columns of a matrix, whose number is even.
        self.bounds = _Bounds(low, high, every if every == 1 else every | 1, most=min(count, 2 * held_values(count)))

    def _likely_in(self, sample: np.ndarray) -> None:
        """The value almost surely lies between two values of the sample, or one of them and a sure bound."""
        share = (self._rank - self._before + 0.5) / self._count
        expected = share * len(sample)
        margin = ERRORS * math.sqrt(len(sample) * share * (1 - share)) + ERRORS
        first, last = math.floor(expected - margin), math.ceil(expected + margin)
        inside = [index for index in (first, last) if 0 <= index < len(sample)]
        ordered = np.partition(sample, inside) if inside else sample
        if np.isnan(ordered[inside]).any():
            self.found = math.nan
            return
        low = float(ordered[first]) if first >= 0 else self._low
        high = float(ordered[last]) if last < len(sample) else self._high
        self.bounds = _Bounds(low, high, every=1, most=2 * held_values(self._count))


def _array(values: Tensor) -> np.ndarray | Tensor:
    """The same memory as numpy sees it, which picks and counts several times faster than torch on a CPU."""
    return values.detach().numpy() if values.device.type == "cpu" else values


def _count(mask: np.ndarray | Tensor) -> int:
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.count_nonzero())


def _plain(value: float) -> float:
    """A Python number; zero has no sign, since which of equal values is met depends on the order."""
    return float(value) + 0.0
