"""Exact order statistics of values that do not fit in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rlhf_lines.merge.tensors.residuals import Chunk, Residuals


DIRECT = 1 << 20  # so many values per policy are simply sorted
DIGIT = 16  # bits by which the search narrows in one pass
AT_ONCE = 1 << 18  # digits that are counted together: a table of counts takes as long as a part of them


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

    Exact: floats are read as integers that sort alike, whose digits of 16 bits are counted from the highest down. Each
    digit is one pass over the residuals: two in float32, four in float64. Few values are sorted instead.

    Args:
        residuals: K residuals.
        ranks: for each policy the ranks wanted, each 0 <= rank < number of elements.
        values: what of a chunk is ranked, K flat tensors of `residuals.dtype` without NaN; magnitudes by
            default.
        names: the parameters to look at; None is all.

    Returns:
        K lists, in the order of `ranks`.
    """
    names = list(residuals.shapes if names is None else names)
    if residuals.size(names) <= DIRECT:
        return _sorted(residuals, ranks, values, names)
    searches = [[_Search(rank) for rank in wanted] for wanted in ranks]
    for done in range(torch.finfo(residuals.dtype).bits // DIGIT):
        counters = _Counters()

        def count(chunk: Chunk, done: int = done, counters: _Counters = counters) -> None:
            for k, value in enumerate(values(chunk)):
                keys = _keys(value)
                for prefix in {search.prefix for search in searches[k]}:
                    counters.add((k, prefix), _digits(keys, prefix, done))

        for _ in residuals.map(count, "element", names):
            pass
        totals = counters.totals()
        for k, wanted in enumerate(searches):
            for search in wanted:
                search.narrow(totals[k, search.prefix])
    return [[_value(search.prefix, residuals.dtype) for search in wanted] for wanted in searches]


def _sorted(
    residuals: Residuals,
    ranks: Sequence[Sequence[int]],
    values: Callable[[Chunk], list[Tensor]],
    names: Sequence[str],
) -> list[list[float]]:
    chunks = list(residuals.map(lambda chunk: [value.clone() for value in values(chunk)], "element", names))
    ordered = [torch.cat(parts).sort().values for parts in zip(*chunks, strict=True)]
    return [[ordered[k][rank].item() for rank in wanted] for k, wanted in enumerate(ranks)]


class _Search:
    """The digits found so far of the value of one rank, and its rank among the values that share them."""

    def __init__(self, rank: int) -> None:
        self.prefix, self.rank = 0, rank

    def narrow(self, counts: Tensor) -> None:
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, self.rank, right=True))
        self.rank -= int(below[digit - 1]) if digit else 0
        self.prefix = (self.prefix << DIGIT) | digit


class _Counters:
    """Counts of digits, which several threads add to, each in tables of its own."""

    def __init__(self) -> None:
        self._local, self._lock, self._all = threading.local(), threading.Lock(), []

    def add(self, key: tuple[int, int], digits: Tensor) -> None:
        tables = getattr(self._local, "tables", None)
        if tables is None:
            tables = self._local.tables = {}
            with self._lock:
                self._all.append(tables)
        tables.setdefault(key, _Table()).add(digits)

    def totals(self) -> dict[tuple[int, int], Tensor]:
        keys = {key for tables in self._all for key in tables}
        return {key: sum(tables[key].counts() for tables in self._all if key in tables) for key in keys}


class _Table:
    """How often each digit was added; `counts()` is `[2^16]`, int64."""

    def __init__(self) -> None:
        # Copied into memory of its own: many small tensors that stay would tear the heap into pieces, which grows then.
        self._waiting = torch.empty(AT_ONCE, dtype=torch.int32)
        self._used = 0
        self._counts = torch.zeros(1 << DIGIT, dtype=torch.int64)

    def add(self, digits: Tensor) -> None:
        for part in digits.split(AT_ONCE):
            if self._used + len(part) > AT_ONCE:
                self.counts()
            self._waiting[self._used : self._used + len(part)] = part
            self._used += len(part)

    def counts(self) -> Tensor:
        self._counts += torch.bincount(self._waiting[: self._used], minlength=1 << DIGIT)
        self._used = 0
        return self._counts


def _keys(values: Tensor) -> Tensor:
    """The bits of floats as integers that sort as the floats do (negative floats count downwards)."""
    bits = values.contiguous().view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    width = 63 if bits.dtype == torch.int64 else 31
    return bits ^ ((bits >> width) & ((1 << width) - 1))


def _digits(keys: Tensor, prefix: int, done: int) -> Tensor:
    """The next digit of the keys that start with `prefix`, which stands for the first `done` digits."""
    shift = keys.element_size() * 8 - DIGIT * (done + 1)
    if done == 0:  # the sign makes the first digit run from -2^15
        return (keys >> shift) + (1 << (DIGIT - 1))
    alike = _where_equal(keys, keys >> (shift + DIGIT), prefix - (1 << (DIGIT * done - 1)))
    return (alike >> shift) & ((1 << DIGIT) - 1)


def _where_equal(tensor: Tensor, labels: Tensor, label: int) -> Tensor:
    """The elements whose label is this one."""
    if tensor.device.type != "cpu":
        return tensor[labels == label]
    # On a CPU numpy picks few out of many several times faster than torch.
    return torch.from_numpy(tensor.numpy()[labels.numpy() == label])


def _value(prefix: int, dtype: torch.dtype) -> float:
    bits = torch.finfo(dtype).bits
    key = prefix - (1 << (bits - 1))
    if key < 0:
        key ^= (1 << (bits - 1)) - 1
    return torch.tensor(key, dtype=torch.int64 if bits == 64 else torch.int32).view(dtype).item()
