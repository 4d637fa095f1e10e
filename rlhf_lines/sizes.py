"""Sizes as people write them."""

from __future__ import annotations

import re


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
