"""Mistakes of the input: told all at once, in sentences that suggest what was meant.

An error is about the input if our own code raised it, which our checks do on purpose, and `about` for the libraries:
it stands around every call that hands them what the user gave. Anything else is a bug, and shows its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
from collections.abc import Collection, Iterable, Iterator, Sequence


OWN_MODULES = re.compile(r"(rlhf_lines|reward_models|__main__)(\..*)?")  # the last is what python -m runs
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, or the limit on a file's size is reached
BROKEN = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)  # another command would meet it as well
# Of a path that the user chose. ENOENT is not among them: a file that is not there may be one that we forgot to write.
OF_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
SAYS_ENOUGH = (ValueError, RuntimeError, OSError, ImportError, NotImplementedError)  # without the name of its class
LONGEST = 400  # characters of a library's reason


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

    def __reduce__(self):  # to be told in another process
        return type(self), (self.problems,)


class ProcessEnded(RuntimeError):
    """Of several processes of a run, another one has ended."""


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


@contextlib.contextmanager
def about(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Inside, what a library raises about the user's input becomes one sentence.

    What our own code raises passes as it is, and so does a fault of the machine: a full disk, exhausted memory. The
    block holds little more than the library's call, because there a bug looks like a mistake of the user.

    Args:
        what: what was done with which input, such as `tokenizer of ./sft cannot be loaded`; the reason follows it.
        kinds: the errors that are meant; all of them if none is given.

    Raises:
        ValueError: in place of the library's error.
    """
    try:
        yield
    except kinds or (Exception,) as error:  # noqa: B030 - a tuple it is
        if is_ours(error) or is_of_machine(error):
            raise
        raise ValueError(f"{what}: {reason(error)}") from error


def is_ours(error: BaseException) -> bool:
    """Whether our own code raised the error, not a library below it."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return OWN_MODULES.fullmatch(traceback.tb_frame.f_globals.get("__name__", "")) is not None


def is_of_machine(error: BaseException) -> bool:
    """Whether memory, disk or open files ran out, a device failed, or a process ended: nobody's mistake, and no bug."""
    if isinstance(error, OSError):
        return error.errno in (*NO_SPACE, *BROKEN)
    return isinstance(error, ProcessEnded) or is_of_memory(error)


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its GPU; torch has an error for the latter only."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


def is_about_input(error: BaseException) -> bool:
    """Whether an error is a mistake of the user: a check of ours, or a path that cannot be used."""
    if isinstance(error, OSError) and error.errno in OF_PATHS:
        return True
    return isinstance(error, (ValueError, FileNotFoundError, FileExistsError)) and is_ours(error)


def reason(error: BaseException) -> str:
    """What a library's error says, as the rest of one sentence: one line, no longer than a reader follows.

    >>> reason(KeyError("rope_type"))
    "KeyError 'rope_type'"
    """
    if isinstance(error, OSError) and error.strerror and error.errno:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()).removesuffix(".")
    if len(text) > LONGEST:  # whole sentences, as far as they fit, or whole words
        text = text[:LONGEST].rpartition(". ")[0] or f"{text[: LONGEST + 1].rpartition(' ')[0] or text[:LONGEST]} ..."
    if not text:
        return type(error).__name__
    return text if isinstance(error, SAYS_ENOUGH) else f"{type(error).__name__} {text}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence that lists the known names and suggests the closest.

    >>> unknown_name("rule", "liner", ["linear", "sum"])
    "unknown rule 'liner'; known: linear, sum; did you mean 'linear'?"
    """
    known = sorted(known)
    sentence = f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}"
    close = closest(name, known)
    return f"{sentence}; did you mean {close!r}?" if close else sentence


def one_of(kind: str, value: object, known: Collection[str]) -> None:
    """Stop with a ValueError, as `unknown_name` words it, unless `value` is one of the known names."""
    if not isinstance(value, str) or value not in known:  # a list or a mapping cannot be looked up
        raise ValueError(unknown_name(kind, value, known))


def alternatives(names: Sequence[str]) -> str:
    """Names of which one is to be chosen, as people list them.

    >>> alternatives(["grid", "list", "map"])
    'grid, list or map'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things, in the singular or the plural.

    >>> counted(1, "weight"), counted(2, "policy", "policies")
    ('1 weight', '2 policies')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def closest(name: object, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, or None."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
