"""Which part of a prompt is left where a text is too long: template, special tokens and completion stay whole."""

from __future__ import annotations

from collections.abc import Callable

from reward_models.conversation import Prompt, Turn


def fitting(
    prompt: Prompt, completion: str, fits: Callable[[Prompt, str], bool], *, side: str = "left"
) -> tuple[Prompt, str] | None:
    """The longest prompt and completion that fit, of a pair that does not; None where not even empty texts do.

    A conversation first loses its oldest turns, up to one of the user; then its last turn of the user, or a prompt that
    is a text, loses one end. Only when the completion does not fit alone is it cut, at its end.

    Args:
        prompt: a text or its turns.
        completion: a text.
        fits: whether what is made of a pair is short enough.
        side: the end of the prompt that is cut, `left` or `right`.
    """
    if not isinstance(prompt, str):
        prompt = _last_turns([dict(turn) for turn in prompt], completion, fits)
        if fits(prompt, completion):
            return prompt, completion
    text, rebuilt = _last_text(prompt)

    def part(size: int) -> Prompt:
        return rebuilt(text[len(text) - size :] if side == "left" else text[:size])

    if fits(rebuilt(""), completion):
        return part(longest(len(text), lambda size: fits(part(size), completion))), completion
    if not fits(rebuilt(""), ""):
        return None
    return rebuilt(""), completion[: longest(len(completion), lambda size: fits(rebuilt(""), completion[:size]))]


def longest(size: int, fits: Callable[[int], bool]) -> int:
    """A size up to `size` that fits while one more does not, by bisection; 0 is known to fit, and `size` not to."""
    fitting, too_long = 0, size
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if fits(middle):
            fitting = middle
        else:
            too_long = middle
    return fitting


def _last_turns(turns: list[Turn], completion: str, fits: Callable[[Prompt, str], bool]) -> list[Turn]:
    """The longest end of a conversation that fits, from a turn of the user on; the last of them where none does."""
    starts = [i for i, turn in enumerate(turns) if i > 0 and turn["role"] == "user"]
    ends = [turns[start:] for start in starts] or [turns]
    return next((end for end in ends if fits(end, completion)), ends[-1])


def _last_text(prompt: Prompt) -> tuple[str, Callable[[str], Prompt]]:
    """The text of a prompt that is cut, its last turn of the user, and the function that puts another in its place."""
    if isinstance(prompt, str):
        return prompt, lambda text: text
    last = max((i for i, turn in enumerate(prompt) if turn["role"] == "user"), default=len(prompt) - 1)
    return prompt[last]["content"], lambda text: [
        {**turn, "content": text} if i == last else turn for i, turn in enumerate(prompt)
    ]
