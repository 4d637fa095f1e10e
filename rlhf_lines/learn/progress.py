"""One bar over all that is measured while learning."""

from __future__ import annotations

from rlhf_lines.progress import Bar


class Progress:
    """The bar, a context manager. Its unit is a completion, or a text outside the task that a candidate reads.

    Args:
        total: of them in all.
        done: how many a stopped run has left.
        with_texts: whether there are texts.
    """

    def __init__(self, total: int, done: int, *, with_texts: bool = False) -> None:
        self._total, unit = total, "completions and texts" if with_texts else "completions"
        self._bar = Bar(total=total, initial=done, desc="learn", unit=unit)

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
