"""Mistakes of the input: told all at once, in sentences that suggest what was meant."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class InputProblems(ValueError):
    """Several sentences as one message, numbered.

    >>> str(InputProblems(["a is 1, expected 2", "b is missing"]))
    '2 problems: (1) a is 1, expected 2; (2) b is missing'

    Attributes:
        problems: the sentences.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        numbered = "; ".join(f"({number}) {problem}" for number, problem in enumerate(self.problems, start=1))
        super().__init__(f"{len(self.problems)} problems: {numbered}")


class Problems:
    """Collect mistakes of the input while checks go on, so that a user hears of all of them in one go.

    Args:
        sentences: what is known to be wrong.
    """

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self._errors: list[ValueError | FileNotFoundError] = [ValueError(sentence) for sentence in sentences]

    def add(self, sentence: str) -> None:
        """Keep a sentence for `check`."""
        self._errors.append(ValueError(sentence))

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Keep a ValueError or FileNotFoundError of the block for `check`; the rest of the block is left out."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            self._errors.append(error)

    def check(self) -> None:
        """Stop if something was collected: with the error itself if it is one, else with all sentences.

        Raises:
            FileNotFoundError: the only problem is one.
            ValueError: the only problem is one; `InputProblems` if there are several.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            # An error may itself hold several sentences; one that two checks found is told once.
            sentences = [
                sentence
                for error in self._errors
                for sentence in (error.problems if isinstance(error, InputProblems) else [str(error)])
            ]
            distinct = list(dict.fromkeys(sentences))
            if len(distinct) == 1:
                raise self._errors[0]
            raise InputProblems(distinct) from self._errors[0]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence that lists the known names and suggests the closest.

    >>> unknown_name("rule", "liner", ["linear", "sum"])
    "unknown rule 'liner'; known: linear, sum; did you mean 'linear'?"
    """
    known = sorted(known)
    sentence = f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}"
    close = closest(name, known)
    return f"{sentence}; did you mean {close!r}?" if close else sentence


def alternatives(names: Sequence[str]) -> str:
    """Names of which one is to be chosen, as people list them.

    >>> alternatives(["grid", "list", "map"])
    'grid, list or map'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def closest(name: object, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or None."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
