"""Progress of a stage on stderr: one bar on a terminal, and a plain line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm.std import tqdm


EVERY = 30  # seconds between two lines of a log
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed} so far{postfix}"
_LINE_OF_STEPS = "{desc}: {elapsed} so far{postfix}"
_open: list[Bar] = []


class Bar(tqdm):
    """tqdm's bar, which in a log is a line every `EVERY` seconds, and which shows life between two of its units.

    Args:
        total: how many units there are, if known.
        late: in a log, say nothing of what is done sooner than that.
        **settings: of tqdm.
    """

    def __init__(self, *, total: float | None, late: bool = False, **settings) -> None:
        self._numbers, self._doing, self._beaten = "", "", 0.0
        self._said: float | None = None  # how many units the last line of the log told
        self.in_log = not sys.stderr.isatty()
        if self.in_log:
            line = _LINE_WITHOUT_TOTAL if total is None else _LINE
            settings = {"bar_format": line, **settings, "mininterval": EVERY, "miniters": 1, "leave": False}
            settings["delay"] = EVERY if late else 0
        super().__init__(total=total, file=sys.stderr, **settings)
        if not self.disable:
            _open.append(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Draw the bar again, or write a line."""
        if not self.in_log:
            return super().display(msg, pos)
        if msg != "":  # which clears a bar; a log keeps what it has
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()
            self._said = self.n
        return None

    def update(self, n: float | None = 1) -> bool | None:
        """Count units that are done."""
        self._doing = ""
        self._show(refresh=False)
        return super().update(n)

    def close(self) -> None:
        """Leave the last state."""
        if self in _open:
            _open.remove(self)
            if self.in_log and self._said is not None and self.n != self._said:
                self.display()
        super().close()

    def begin(self, description: str, total: float) -> None:
        """Say what is done from now on, and how many units there are by now; in a log by a line, if that is news."""
        if (self.desc, self.total) != (description, total):
            self.desc, self.total = description, total
            self.refresh()

    def numbers(self, values: Mapping[str, str]) -> None:
        """Show some values beside the bar from now on."""
        self._numbers = ", ".join(f"{name}={value}" for name, value in values.items())
        self._show(refresh=not self.in_log)

    def doing(self, what: str) -> None:
        """Show what is done of the unit that is being worked on."""
        self._doing, now = what, self._time()
        if now - max(self._beaten, self.last_print_t) >= self.mininterval and now - self.start_t >= self.delay:
            self._beaten = now
            self._show(refresh=True)

    def _show(self, *, refresh: bool) -> None:
        self.set_postfix_str(", ".join(filter(None, [self._numbers, self._doing])), refresh=refresh)


def steps(name: str, first: str) -> Bar:
    """The bar of what is short, of unlike parts that nobody counts: it says which one is done, and for how long.

    A log has a line only of what takes longer than `EVERY`, and what is left on a terminal is nothing.

    Args:
        name: of the whole.
        first: part of it; the others are told by `beat`.
    """
    bar = Bar(total=None, late=True, desc=name, leave=False, bar_format=_LINE_OF_STEPS)
    bar.doing(first)
    return bar


def beat(what: str) -> None:
    """Show life in the bar that is open, if one is: what is done of a unit that takes long, such as `token 3 of 64`."""
    if _open:
        _open[-1].doing(what)
