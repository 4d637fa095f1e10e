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
    close = closest(name, known)
    return f"{sentence}; did you mean {close!r}?" if close else sentence


def closest(name: object, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or None."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
