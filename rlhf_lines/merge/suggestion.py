"""The sentence for a name that is not in a table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence that lists the known names and suggests the closest.

    >>> unknown_name("rule", "liner", ["linear", "sum"])
    "unknown rule 'liner'; known: linear, sum; did you mean 'linear'?"
    """
    known = sorted(known)
    sentence = f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}"
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"{sentence}; did you mean {close[0]!r}?" if close else sentence
