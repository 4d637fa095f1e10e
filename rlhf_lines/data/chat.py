"""How a tokenizer writes a conversation: its chat template, with the user's settings, and a BOS token written once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_lines.data.conversation import Messages, is_continued
from rlhf_lines.errors import about, alternatives, reason


# Names that every template is given; the rest of what it reads are settings of its user.
GIVEN = {"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now"}
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own, unknown to Jinja


def has_chat_template(tokenizer) -> bool:
    """Whether a tokenizer (or None) writes conversations its own way."""
    return getattr(tokenizer, "chat_template", None) is not None


def chat_text(messages: Messages, tokenizer, settings: Mapping[str, Any] | None = None, *, bos_is_added: bool) -> str:
    """The prompt as the tokenizer's chat template writes it, up to where the reply starts.

    A last turn of the assistant is left open: the completion goes on with it. A BOS token that the tokenizer will add
    itself is left out, so that the tokens of the text are those of
    `apply_chat_template(messages, add_generation_prompt=True)`.

    Args:
        messages: the turns.
        tokenizer: whose chat template writes them.
        settings: `chat_template_kwargs`.
        bos_is_added: `adds_bos` of the tokenizer, which is asked once for all rows.

    Raises:
        ValueError: the template refuses the conversation.
    """
    goes_on = is_continued(messages)
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **(settings or {}),
        )
    except Exception as error:  # a template is a program: what it raises may be anything
        told = (
            f"its last turn is the assistant's, and cannot be continued: {reason(error)}" if goes_on else reason(error)
        )
        raise ValueError(f"is refused by the chat template of {_name(tokenizer)}: {told}") from error
    return without_bos(text, tokenizer) if bos_is_added else text


def unread_turn(messages: Messages, text: str) -> dict[str, str] | None:
    """The first turn of which the text of a chat template does not hold what was said, or None."""
    return next((turn for turn in messages if turn["content"].strip() not in text), None)


def count_written(texts: Iterable[str], tokenizer) -> int:
    """How many texts begin with a special token, as if a chat template had written them already."""
    # A tokenizer makes this table anew whenever it is asked, of thousands of tokens: once for all texts.
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sum(text.lstrip().startswith(special) for text in texts)


def check_settings(settings: Mapping[str, Any] | str | None, tokenizer) -> dict[str, Any]:
    """`chat_template_kwargs`, which the tokenizer's chat template must read: anything else would have no effect.

    Raises:
        ValueError: there is no chat template, or it does not read one of them.
    """
    if not settings:
        return {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"chat_template_kwargs is {settings!r}, expected a mapping")
    if not has_chat_template(tokenizer):
        raise ValueError(
            f"chat_template_kwargs is {dict(settings)}, but the tokenizer has no chat template: leave it out"
        )
    read = _settings_of(tokenizer)
    unread = [name for name in settings if name not in read]
    if unread:
        has = f"it reads {alternatives(sorted(read))}" if read else "it has no settings"
        raise ValueError(
            f"chat_template_kwargs has {', '.join(unread)}, which the chat template of "
            f"{_name(tokenizer)} does not read: {has}"
        )
    return dict(settings)


def adds_bos(tokenizer) -> bool:
    """Whether a tokenizer puts its BOS token before every text."""
    first = tokenizer("")["input_ids"][:1]
    return tokenizer.bos_token is not None and first == [tokenizer.bos_token_id]


def without_bos(text: str, tokenizer) -> str:
    """The text without the tokenizer's BOS text at its start."""
    while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text.removeprefix(tokenizer.bos_token)
    return text


def _settings_of(tokenizer) -> set[str]:
    """What the chat template reads beside the conversation."""
    from jinja2 import meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    template = GENERATION_TAG.sub("", tokenizer.get_chat_template())
    with about(f"chat template of {_name(tokenizer)} cannot be read"):
        names = meta.find_undeclared_variables(environment.parse(template))
    return names - GIVEN - set(environment.globals) - set(tokenizer.special_tokens_map)


def _name(tokenizer) -> str:
    return tokenizer.name_or_path or "the tokenizer"
