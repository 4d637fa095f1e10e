"""From a conversation to the text of a prompt, and back.

A policy reads its tokenizer's chat template where there is one. Without one, and always for reward models, the
text comes from a named template. Those are data: how a turn of each role is written, and what opens the reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


Messages = list[dict[str, str]]  # [{"role": "user", "content": "..."}, ...], as TRL and transformers have them


@dataclass(frozen=True)
class Template:
    """A plain-text form of conversations.

    Attributes:
        user: a turn of the user (or of the system); `{content}` stands for what was said.
        assistant: a turn of the assistant.
        reply: what opens the reply, at the end of a prompt.
        chat: what the user says when a tokenizer's own chat template writes the turns.
    """

    user: str = "{content}"
    assistant: str = "{content}"
    reply: str = ""
    chat: str = "{content}"

    def text(self, messages: Messages) -> str:
        r"""The prompt that asks for the next turn.

        >>> TEMPLATES["hh"].text([{"role": "user", "content": "Hi."}])
        '\n\nHuman: Hi.\n\nAssistant:'
        """
        turns = [(self.assistant if m["role"] == "assistant" else self.user).format_map(m) for m in messages]
        return "".join(turns) + self.reply

    def messages(self, text: str) -> Messages:
        r"""The turns of a prompt of this form, the opened reply left out; other text is one turn of the user.

        Turns of one role in a row become one, because chat templates ask for turns that alternate.

        >>> TEMPLATES["hh"].messages("\n\nHuman: Hi.\n\nAssistant:")
        [{'role': 'user', 'content': 'Hi.'}]
        """
        roles = {self._mark(self.user): "user", self._mark(self.assistant): "assistant", self.reply: "assistant"}
        marks = [mark for mark in roles if mark]
        if not marks:
            return [{"role": "user", "content": text}]
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text)
        marked = zip(pieces[1::2], pieces[2::2], strict=True)
        turns = [("user", pieces[0]), *((roles[mark], content) for mark, content in marked)]
        messages: Messages = []
        for role, content in turns:
            if not content.strip():
                continue
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n\n{content.strip()}"
            else:
                messages.append({"role": role, "content": content.strip()})
        return messages

    def asked(self, messages: Messages) -> Messages:
        """The messages as a chat model is asked: `chat` around every turn of the user."""
        return [
            {"role": m["role"], "content": self.chat.format_map(m) if m["role"] == "user" else m["content"]}
            for m in messages
        ]

    @staticmethod
    def _mark(turn: str) -> str:
        return turn.partition("{content}")[0].rstrip(" ")


TEMPLATES = {
    "plain": Template(),
    # The dialogues of Anthropic/hh-rlhf.
    "hh": Template(user="\n\nHuman: {content}", assistant="\n\nAssistant: {content}", reply="\n\nAssistant:"),
    # Rewarded soups (arXiv 2306.04488, llama/utils/llama_utils.py) and rewards-in-context (arXiv 2402.10207,
    # ppo/utils.py). They leave a space at the end of the prompt; here it starts the completion, as tokenizers expect.
    "summary": Template(
        user="### Instruction: Generate a one-sentence summary of this post. ### Input: {content}",
        reply=" ### Response:",
        chat="Generate a one-sentence summary of this post.\n\n{content}",
    ),
}


def find(name: str) -> Template:
    """The template of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in TEMPLATES:
        raise ValueError(f"prompt_template {name!r} is unknown, expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def has_chat_template(tokenizer) -> bool:
    """Whether a tokenizer (or None) writes conversations its own way."""
    return getattr(tokenizer, "chat_template", None) is not None


def chat_text(messages: Messages, tokenizer) -> str:
    """The prompt as the tokenizer's chat template writes it, up to where the reply starts.

    A BOS token that the tokenizer will add itself is left out, so that the tokens of the text are those of
    `apply_chat_template(messages, add_generation_prompt=True)`.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds_bos else text
