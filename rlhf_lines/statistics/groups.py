"""Which accumulators are in memory at the same time."""

from __future__ import annotations

import re
from collections.abc import Mapping


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str | int) -> int:
    """Return a size in bytes: a number, alone or with KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    >>> parse_size("1.5GB"), parse_size("2 KiB"), parse_size(300)
    (1500000000, 2048, 300)

    Raises:
        ValueError: the text is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: expected a number with a unit, such as 4GB or 512MiB")
    number, unit, binary = match.groups(default="")
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit])


def in_groups(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return the names in their order, in as few consecutive groups of at most ``limit`` bytes as fit.

    >>> in_groups({"a": 3, "b": 2, "c": 4}, 5)
    [['a', 'b'], ['c']]

    Raises:
        ValueError: one name alone is larger than the limit.
    """
    groups: list[list[str]] = []
    used = limit
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(
                f"max_memory is {limit:,} bytes, but what is summed up for {name!r} takes {size:,}: give more"
            )
        if used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
