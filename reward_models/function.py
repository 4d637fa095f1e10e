"""A Python function as a reward model, in the form that TRL's trainers ask for, or as `f(prompts, completions)`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reward_models.base import check_lengths, checked_scores, excerpt
from reward_models.conversation import CHAT, Prompt, prompt_turns, reply


PROMPTS, COMPLETIONS = ("prompts", "prompt"), ("completions", "completion")  # what a parameter may call them
LONGEST_REASON = 200


class FunctionReward:
    """A plain Python function as a reward model.

    A function with a parameter `completions` is called by name, as TRL calls it: it gets what it asks for of `prompts`,
    `completions` and the columns of the data, whatever their order; `**kwargs` gets all. Any other is called as
    `f(prompts, completions)`, with the columns that it names. It may be `async`.

    >>> short = FunctionReward(lambda prompts, completions: [-len(text) for text in completions], name="short")
    >>> short.score(["a"], ["bc"])
    [-2.0]
    >>> equal = lambda completions, answer, **_: [c == a for c, a in zip(completions, answer)]
    >>> FunctionReward(equal, name="equal").score(["2+2?", "1+1?"], ["4", "3"], {"answer": ["4", "2"]})
    [1.0, 0.0]

    Attributes:
        function: what is called.
        name: what the score is called.
        reads_turns: whether the function gets conversations, as lists of messages, in place of texts.
        reads_columns: always; the function may ask for them.
    """

    reads_columns = True

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, template: str | None = None) -> None:
        """Make a reward model of a function.

        Args:
            function: of prompts and completions; it returns one number per pair.
            name: what the score is called; None is the function's name.
            template: None for texts, or `chat` for messages: each prompt as the list of its turns, each completion as a
                list of one turn of the assistant, as TRL's trainers give them for conversations.

        Raises:
            ValueError: the template is another.
        """
        self.function, self.name = function, name or function.__name__
        if template not in (None, CHAT):
            raise ValueError(
                f"the template of the function {self.name!r} is {template!r}; expected chat, for lists of messages, or "
                "none, for texts"
            )
        self.reads_turns = template == CHAT
        self._runner = None  # of async functions, one event loop for all calls

    def score(
        self, prompts: Sequence[Prompt], completions: list[str], columns: Mapping[str, Any] | None = None
    ) -> list[float]:
        """The function's values as floats.

        Args:
            prompts: texts, or where the function reads turns, texts or turns.
            completions: texts.
            columns: what the function may ask for by name; a list with a value per pair, or one value for all.

        Raises:
            ValueError: the lists differ in length, the function asks for something else or fails (names the row), or it
                returns too few, too many or non-finite values.
        """
        check_lengths(self.name, prompts, completions, turns=self.reads_turns)
        columns = columns or {}
        try:
            returned = self._call(prompts, completions, columns)
        except (Exception, SystemExit) as error:
            if isinstance(error, _WrongForm):
                raise ValueError(str(error)) from None
            raise ValueError(self._failure(error, prompts, completions, columns)) from error
        return checked_scores(self.name, returned, prompts)

    def check_form(self, columns: Sequence[str]) -> None:
        """Stop where the function cannot be called with prompts, completions and these columns.

        Raises:
            ValueError: it asks for something else.
        """
        try:
            self._arguments([], [], dict.fromkeys(columns))
        except _WrongForm as error:
            raise ValueError(str(error)) from None

    def _call(self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Any]) -> Any:
        # Lists of its own: a function that changes them changes nothing else.
        if self.reads_turns:
            given = [prompt_turns(prompt) for prompt in prompts], [[reply(text)] for text in completions]
        else:
            given = list(prompts), list(completions)
        arguments, named = self._arguments(*given, columns)
        with _settings_of_torch_kept():
            returned = self.function(*arguments, **named)
            if inspect.isawaitable(returned):
                returned = self._wait(returned)
            if inspect.isgenerator(returned):  # which fails, if it does, while it is read
                returned = list(returned)
            return returned

    def _arguments(self, prompts: list, completions: list, columns: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the function is called with: positional, and by name."""
        if inspect.isclass(self.function):
            raise _WrongForm(
                f"the reward function {self.name!r} is a class: name a function, or an object of the class that can be "
                "called, made in its module"
            )
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # a built-in function that does not tell
            return (prompts, completions), {}
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        nameable = [n for n, kind in kinds.items() if kind in (_PLAIN, inspect.Parameter.KEYWORD_ONLY)]
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds.values()
        options = getattr(self.function, "keywords", {}) if isinstance(self.function, functools.partial) else {}
        free = {name: value for name, value in columns.items() if name not in options}
        texts = dict.fromkeys(PROMPTS, prompts) | dict.fromkeys(COMPLETIONS, completions)
        unnamed = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.kind in (_PLAIN, inspect.Parameter.POSITIONAL_ONLY)
            and parameter.default is inspect.Parameter.empty
            and name not in free
            and name not in texts
        ]
        first_two = [name for name, kind in kinds.items() if kind in (_PLAIN, inspect.Parameter.POSITIONAL_ONLY)][:2]
        # f(questions, completions): ours, with a name of its own for the prompts.
        is_ours = len(first_two) == 2 and first_two[0] in unnamed and first_two[1] in COMPLETIONS
        if (any(name in COMPLETIONS for name in nameable) and not is_ours) or (takes_all and not unnamed):
            everything = {**free, "prompts": prompts, "completions": completions} if takes_all else free
            arguments, named = (), {**everything, **{n: texts[n] for n in nameable if n in texts}}
            if not takes_all:
                named = {name: value for name, value in named.items() if name in nameable}
        else:
            arguments = (prompts, completions)
            named = {n: v for n, v in free.items() if n not in first_two and (takes_all or n in nameable)}
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            raise _WrongForm(
                f"the reward function {self.name!r} cannot be called: {error}; it may ask for prompts, completions "
                f"and, by name, {', '.join(sorted(columns)) or 'no more, because the data has no other columns'}"
            ) from None
        return arguments, named

    def _wait(self, awaitable: Any) -> Any:
        import asyncio

        async def result() -> Any:
            return await awaitable

        self._runner = self._runner or asyncio.Runner()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._runner.run(result())
        with ThreadPoolExecutor(1) as thread:  # in a notebook a loop runs in this one
            return thread.submit(self._runner.run, result()).result()

    def _failure(
        self, error: BaseException, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> str:
        """The sentence on an error inside the function: which, where, and at which row, which is looked for alone."""
        found = f"the first of {len(prompts)} rows, none of which fails alone, which is"
        row = 0
        for i, pair in enumerate(zip(prompts, completions, strict=True)):
            of_row = {
                name: value[i : i + 1] if isinstance(value, list) and len(value) == len(prompts) else value
                for name, value in columns.items()
            }
            try:
                self._call([pair[0]], [pair[1]], of_row)
            except (Exception, SystemExit) as alone:
                error, row, found = alone, i, "the row with"
                break
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        reason = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
        hint = (
            ""
            if self.reads_turns
            else "; texts are given, and lists of messages, as TRL gives them, with template: chat"
        )
        return (
            f"the reward function {self.name!r} raised {reason} ({self._place(error)}) at {found} the prompt "
            f"{excerpt(prompts[row])} and the completion {excerpt(completions[row])}"
            f"{hint if isinstance(error, TypeError | AttributeError) else ''}"
        )

    def _place(self, error: BaseException) -> str:
        """File and line of the deepest call in the function's own file, or else of the deepest call."""
        frames = traceback.extract_tb(error.__traceback__)
        function = inspect.unwrap(getattr(self.function, "func", self.function))
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
        return f"{Path(frame.filename).name}, line {frame.lineno}"


@contextlib.contextmanager
def _settings_of_torch_kept() -> Iterator[None]:
    """What the block sets for all of torch ends with it: gradients off, another default dtype."""
    import torch

    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)


class _WrongForm(Exception):
    """The function has parameters that nothing is known for."""


_PLAIN = inspect.Parameter.POSITIONAL_OR_KEYWORD
