"""One bar over all that is measured while learning."""

from __future__ import annotations

from rlhf_lines.progress import Bar


class Progress:
    """The bar, a context manager. Its unit is a completion.

    Args:
        total: completions in all.
        done: how many a stopped run has left.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._bar = Bar(total=total, initial=done, desc="learn", unit="completions")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def enter(self, phase: str, specs: int) -> None:
        """Say what is measured from now on."""
        self._bar.begin(f"learn, {phase}", self._total)

    def update(self, count: int) -> None:
        """Count completions that are done."""
        self._bar.update(count)
