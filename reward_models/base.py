"""What every reward model is: a name, and a function from texts to numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Protocol, runtime_checkable

from reward_models.conversation import Prompt


EXCERPT = 80
LARGEST = 1e18  # of a score: PPO squares differences of scores in float32, which ends at 3e38


@runtime_checkable
class RewardModel(Protocol):
    """Score completions; higher is better.

    A reward model that may cut texts counts them in an attribute `truncated`, the number of texts cut since it was
    made. One that never cuts needs none: ask with `getattr(model, "truncated", 0)`.

    One that reads conversations has an attribute `reads_turns` that is true: then a prompt may be a text or the list of
    its turns `{"role", "content"}`. Of any other, prompts are texts: ask with `getattr(model, "reads_turns", False)`.

    One that reads other columns of the data has an attribute `reads_columns` that is true: then `score` takes them as a
    third argument, a mapping from names to lists.

    Attributes:
        name: what the score is called in files, tables and figures.
    """

    name: str

    def score(self, prompts: Sequence[Prompt], completions: list[str]) -> list[float]:
        """One finite score per pair of prompt and completion, in order.

        The score of a pair depends on nothing but the pair: not on its neighbours, their number or their order.
        """
        ...


def check_lengths(name: str, prompts: Sequence[Prompt], completions: Sequence[str], *, turns: bool = False) -> None:
    """Stop with a ValueError unless there is one completion per prompt and both are lists of texts.

    Args:
        name: of the reward model.
        prompts: of the pairs.
        completions: of the pairs.
        turns: whether a prompt may also be a list of turns.
    """
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
            if not isinstance(text, str) and not (turns and kind == "prompt" and _are_turns(text)):
                raise ValueError(
                    f"reward model {name!r} got the {kind} {excerpt(text)} at index {i}; expected a text; put messages "
                    "through a chat template first, or set template: chat"
                )


def check_batch_size(name: str, batch_size: int) -> None:
    """Stop with a ValueError unless a batch of the reward model holds a text."""
    if batch_size < 1:
        raise ValueError(f"the batch size of reward model {name!r} is {batch_size}; expected at least 1")


def check_column(name: str, use: str, column: str, columns: Iterable[str], *, otherwise: str = "") -> None:
    """Stop with a ValueError unless the data has the column that a reward model asks for.

    Args:
        name: of the reward model.
        use: what it does with the column, as in `sends`.
        column: its name.
        columns: those that the data has.
        otherwise: what the reward model does that is asked for no column, as the end of the sentence.
    """
    if column not in columns:
        known = ", ".join(sorted(columns)) or "no further columns"
        raise ValueError(
            f"reward model {name!r} {use} the column {column!r}, which the data lacks; "
            f"{did_you_mean(column, columns)}it has {known}{otherwise}"
        )


def checked_scores(name: str, scores: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """`scores` as floats.

    Raises:
        ValueError: there is not one score per prompt, or a score is no finite number of at most `LARGEST` in size;
            names the prompt.
    """
    try:
        if isinstance(scores, str | bytes | Mapping | Set):
            raise TypeError(f"{type(scores).__name__} is no list")
        scores = list(scores)
        numbers = [float(score) for score in scores if not isinstance(score, str)]
    # RuntimeError is of a tensor with several numbers a pair, OverflowError of a whole number that no float holds.
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        hint = (
            "None, for 'does not apply', would leave a gap: return a number for every pair"
            if _has_none(scores)
            else error
        )
        raise ValueError(
            f"reward model {name!r} returned {excerpt(scores)}; expected one number per prompt ({hint})"
        ) from None
    if len(numbers) < len(scores):
        raise ValueError(f"reward model {name!r} returned {excerpt(scores)}; expected numbers, not texts")
    scores = numbers
    if len(scores) != len(prompts):
        raise ValueError(
            f"reward model {name!r} returned {len(scores)} scores for {len(prompts)} prompts; expected as many"
        )
    for i, (score, prompt) in enumerate(zip(scores, prompts, strict=True)):
        if not abs(score) <= LARGEST:
            raise ValueError(
                f"reward model {name!r} returned {score} for the pair at index {i} with the prompt {excerpt(prompt)}; "
                f"expected a finite number{f' of at most {LARGEST:g} in size' if math.isfinite(score) else ''}"
            )
    return scores


def _are_turns(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(t, Mapping) and {"role", "content"} <= t.keys() for t in prompt
    )


def _has_none(scores: object) -> bool:
    return isinstance(scores, list | tuple) and any(score is None for score in scores)


def is_number(value: object) -> bool:
    """Whether a setting is a finite number: not true or false, which Python counts as 1 and 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def excerpt(value: object) -> str:
    """A text in quotes, anything else as Python writes it; shortened, and on one line, for an error message."""
    if isinstance(value, str):
        return repr(value if len(value) <= EXCERPT else value[:EXCERPT] + "...")
    try:
        written = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of thousands of digits
        written = f"{type(value).__name__} of more digits than can be written"
    return written if len(written) <= EXCERPT else written[:EXCERPT] + "..."


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A question that names the closest of the known names, with a blank after it; empty if none is close.

    >>> did_you_mean("rule:lenght", ["rule:length", "rule:format"])
    "did you mean 'rule:length'? "
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {close[0]!r}? " if close else ""
