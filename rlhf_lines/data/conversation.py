"""A conversation: turns of a system, a user and an assistant, each with a text. The one definition of it."""

from __future__ import annotations

from collections.abc import Sequence


Messages = list[dict[str, str]]  # [{"role": "user", "content": "..."}, ...], as TRL and transformers have them

KINDS = {str: "a text", list: "a list", dict: "a mapping"}
ROLES = ("system", "user", "assistant")
# What else a message may say, which neither a template here nor a reward model would be shown.
SAYS_MORE = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking", "images", "audio")


def turns_of(value: Sequence) -> Messages:
    """The turns of a list of messages, each with a role and a text, and nothing else.

    A content is a text, a list of text parts, which are joined, or null, which is an empty text.

    >>> turns_of([{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you."}]}])
    [{'role': 'user', 'content': 'Hi you.'}]

    Raises:
        ValueError: there is no turn, or one that is not of this form.
    """
    if not len(value):
        raise ValueError("holds no turn, expected messages with role and content")
    return [_turn(number, message) for number, message in enumerate(value, start=1)]


def _turn(number: int, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"holds {kind_of(message)} as item {number}, expected a message with role and content")
    if not {"role", "content"} <= set(message):
        has = ", ".join(map(str, message)) or "nothing"
        raise ValueError(f"holds a message with {has} as turn {number}, expected role and content")
    role = message["role"]
    if role not in ROLES:
        raise ValueError(f"has the role {role!r} in turn {number}, expected {', '.join(ROLES)}")
    more = [name for name in SAYS_MORE if message.get(name)]
    if more:
        raise ValueError(f"has {more[0]} in turn {number}, which cannot be shown: leave it out, or the row")
    return {"role": role, "content": _text(number, message["content"])}


def _text(number: int, content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"holds {kind_of(content)} as content of turn {number}, expected a text or text parts")
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            what = f"a part of type {part['type']!r}" if isinstance(part, dict) and "type" in part else kind_of(part)
            raise ValueError(f"holds {what} in turn {number}, expected text parts only")
    return "".join(texts)


def kind_of(value: object) -> str:
    """What a value is, in words for a sentence.

    >>> kind_of(3), kind_of(["a"])
    ('a number (3)', 'a list')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a switch ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    return KINDS.get(type(value), f"a {type(value).__name__}")


def shared_turns(chosen: Messages, rejected: Messages) -> int:
    """How many turns two dialogues begin with alike: those are the prompt of a pair. Each keeps a turn of its own.

    >>> shared_turns([{"role": "user", "content": "Hi."}], [{"role": "user", "content": "Hi."}])
    0
    """
    shortest = min(len(chosen), len(rejected))
    alike = next((n for n in range(shortest) if chosen[n] != rejected[n]), shortest)
    return min(alike, shortest - 1)


def behind(prompt: Messages, dialogue: Messages) -> Messages:
    """The turns that a dialogue has behind the prompt, which it may repeat."""
    repeats = len(dialogue) > len(prompt) and dialogue[: len(prompt)] == prompt
    return dialogue[len(prompt) :] if repeats else dialogue


def last_reply(dialogue: Messages) -> tuple[Messages, Messages]:
    """A dialogue as prompt and reply: the last turn, if it is the assistant's and not the only one.

    >>> last_reply([{"role": "user", "content": "Hi."}])
    ([{'role': 'user', 'content': 'Hi.'}], [])
    """
    if len(dialogue) > 1 and dialogue[-1]["role"] == "assistant":
        return dialogue[:-1], dialogue[-1:]
    return dialogue, []


def opened(prompt: Messages) -> Messages:
    """The turns of a prompt without a last turn of the assistant that says nothing: it only opens the reply."""
    while prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]
    return prompt


def is_continued(prompt: Messages) -> bool:
    """Whether the prompt ends in a turn of the assistant, which the completion goes on with."""
    return bool(prompt) and prompt[-1]["role"] == "assistant"
