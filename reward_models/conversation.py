"""Prompt and completion as the turns of a conversation, for whoever reads those: chat templates, TRL's functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


CHAT = "chat"  # the template that is the tokenizer's own
Turn = dict[str, str]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Mapping[str, str]]  # a text, or the turns of a conversation


def prompt_turns(prompt: Prompt) -> list[Turn]:
    """The turns of a prompt. A text is one turn of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def reply(completion: str) -> Turn:
    """A completion as a turn of the assistant: what is said, without the blanks around it."""
    return {"role": "assistant", "content": completion.strip()}


def conversation(prompt: Prompt, completion: str, system: str | None = None) -> list[Turn]:
    """The turns of prompt and completion; where the prompt ends in the assistant's words, the completion goes on there.

    >>> conversation("2+2?", " 4")
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]

    Args:
        prompt: a text or its turns.
        completion: a text.
        system: what stands first as the turn of the system, in place of any of the prompt's; None leaves those.
    """
    turns = prompt_turns(prompt)
    if system is not None:
        turns = [{"role": "system", "content": system}, *(turn for turn in turns if turn["role"] != "system")]
    if turns and turns[-1]["role"] == "assistant":
        return [*turns[:-1], {**turns[-1], "content": turns[-1]["content"] + completion.rstrip()}]
    return [*turns, reply(completion)]


def conversation_text(prompt: Prompt) -> str:
    r"""A prompt as whoever grades reads it: a text as it is, turns with their roles.

    >>> conversation_text([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
    'User: 2+2?\n\nAssistant: 4'
    """
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in prompt)
