"""The arithmetic of time: pure functions from seconds of passes to those of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Tokens(NamedTuple):
    """Tokens of a pass: so many rows of one length."""

    rows: int
    length: int

    @property
    def count(self) -> int:
        """How many tokens they are."""
        return self.rows * self.length

    def at_most(self, count: int) -> Tokens:
        """As many whole rows as have so many tokens, or else a part of one: one token at least."""
        if count >= self.length:
            return Tokens(min(self.rows, count // self.length), self.length)
        return Tokens(1, max(1, count))


def at_depth(seconds: Mapping[int, float], layers: int) -> float:
    """The seconds of a pass through so many layers, a + b L, from those through few.

    Args:
        seconds: by depth, one or two; of one, what it took.
        layers: L.
    """
    (low, fast), (high, slow) = min(seconds.items()), max(seconds.items())
    of_layer = max(0.0, slow - fast) / (high - low) if high > low else 0.0
    return fast + of_layer * (layers - low)


def padded(lengths: Sequence[int], batch: int) -> float:
    """The mean length of rows that are padded to the longest of their batch: batches of neighbours, the last one whole.

    Args:
        lengths: of the rows, in no order that has to do with their lengths.
        batch: rows.
    """
    batch = min(batch, len(lengths))
    starts = range(0, len(lengths) - batch + 1, batch)
    return sum(max(lengths[start : start + batch]) for start in starts) / len(starts)


def written(one: float, many: float, rows: int, *, batch: int, steps: float, mean: float) -> float:
    """The seconds in which a batch is written, whose rows leave it when they end.

    A step that draws a token of each of r rows takes a + b r; of all steps r sums up to `batch` times `mean`.

    Args:
        one: seconds of a step with one row, a + b.
        many: of one with `rows` rows.
        rows: two or more, or one where there are no more.
        batch: rows at the first step.
        steps: tokens of its longest completion.
        mean: tokens of a completion.
    """
    of_row = max(0.0, many - one) / (rows - 1) if rows > 1 else 0.0
    return steps * (one - of_row) + batch * mean * of_row


def in_words(seconds: float) -> str:
    """About how long that is: `40 s`, `6 min`, `3.5 h`, `12 days`."""
    units = {"s": (1, 90), "min": (60, 90), "h": (3600, 48), "days": (86400, math.inf)}
    unit, amount = next((unit, seconds / size) for unit, (size, most) in units.items() if seconds / size < most)
    digits = 1 if amount < 10 and unit != "min" else 0
    return f"{amount:,.{digits}f} {unit}"
