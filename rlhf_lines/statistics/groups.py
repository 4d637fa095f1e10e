"""Which accumulators are in memory at the same time."""

from __future__ import annotations

from collections.abc import Mapping


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
