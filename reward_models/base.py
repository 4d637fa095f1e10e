"""What every reward model is: a name, and a function from texts to numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Protocol, runtime_checkable


EXCERPT = 80


@runtime_checkable
class RewardModel(Protocol):
    """Score completions; higher is better.

    A reward model that may cut texts counts them in an attribute `truncated`, the number of texts cut since it was
    made. One that never cuts needs none: ask with `getattr(model, "truncated", 0)`.

    Attributes:
        name: what the score is called in files, tables and figures.
    """

    name: str

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One finite score per pair of prompt and completion, in order.

        The score of a pair depends on nothing but the pair: not on its neighbours, their number or their order.
        """
        ...


class FunctionReward:
    """A plain Python function as a reward model.

    >>> short = FunctionReward(lambda prompts, completions: [-len(text) for text in completions], name="short")
    >>> short.score(["a"], ["bc"])
    [-2.0]
    """

    def __init__(self, function: Callable[[list[str], list[str]], Sequence[float]], *, name: str | None = None) -> None:
        self.function = function
        self.name = name or function.__name__

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """The function's values as floats.

        Raises:
            ValueError: the lists differ in length, or the function returns too few, too many or non-finite values.
        """
        check_lengths(self.name, prompts, completions)
        return checked_scores(self.name, self.function(prompts, completions), prompts)


def check_lengths(name: str, prompts: Sequence[str], completions: Sequence[str]) -> None:
    """Stop with a ValueError unless there is one completion per prompt and both are lists of texts."""
    if isinstance(prompts, str) or isinstance(completions, str):
        raise ValueError(
            f"reward model {name!r} got a single string; expected a list of prompts and one of completions"
        )
    if len(prompts) != len(completions):
        raise ValueError(
            f"reward model {name!r} got {len(prompts)} prompts and {len(completions)} completions; "
            "expected one completion per prompt; repeat a prompt for each of its completions"
        )
    for kind, texts in (("prompt", prompts), ("completion", completions)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"reward model {name!r} got the {kind} {excerpt(text)} at index {i}; expected a text; put messages "
                    "through a chat template first"
                )


def checked_scores(name: str, scores: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """`scores` as floats.

    Raises:
        ValueError: there is not one score per prompt, or a score is no finite number; names the prompt.
    """
    try:
        scores = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward model {name!r} returned {excerpt(scores)}; expected one number per prompt ({error})"
        ) from None
    if len(scores) != len(prompts):
        raise ValueError(
            f"reward model {name!r} returned {len(scores)} scores for {len(prompts)} prompts; expected as many"
        )
    for i, (score, prompt) in enumerate(zip(scores, prompts, strict=True)):
        if not math.isfinite(score):
            raise ValueError(
                f"reward model {name!r} returned {score} for the pair at index {i} with the prompt {excerpt(prompt)}; "
                "expected a finite number"
            )
    return scores


def is_number(value: object) -> bool:
    """Whether a setting is a finite number: not true or false, which Python counts as 1 and 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def excerpt(value: object) -> str:
    """A text in quotes, anything else as Python writes it; shortened, and on one line, for an error message."""
    if isinstance(value, str):
        return repr(value if len(value) <= EXCERPT else value[:EXCERPT] + "...")
    written = " ".join(repr(value).split())
    return written if len(written) <= EXCERPT else written[:EXCERPT] + "..."


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A question that names the closest of the known names, with a blank after it; empty if none is close.

    >>> did_you_mean("rule:lenght", ["rule:length", "rule:format"])
    "did you mean 'rule:length'? "
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {close[0]!r}? " if close else ""
