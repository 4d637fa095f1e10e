"""From a conversation to the text of a prompt, and back.

A policy reads its tokenizer's chat template where there is one (see `chat`). Without one, and for reward models, the
text comes from a named template. Those are data: how a turn of each role is written, and what opens the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_lines.data.conversation import Messages, is_continued


@dataclass(frozen=True)
class Template:
    """A plain-text form of conversations.

    Attributes:
        user: a turn of the user; `{content}` stands for what was said.
        assistant: a turn of the assistant.
        system: a turn of the system. A template without one has a form for a single turn of the user only.
        reply: what opens the reply, at the end of a prompt.
        blank: what stands between that and what is said.
        chat: what the user says when a tokenizer's own chat template writes the turns.
    """

    user: str = "{content}"
    assistant: str = "{content}"
    system: str | None = None
    reply: str = ""
    blank: str = ""
    chat: str = "{content}"

    def text(self, messages: Messages) -> str:
        r"""The prompt that asks for the next turn, or for the rest of the last one, if that is the assistant's.

        >>> TEMPLATES["hh"].text([{"role": "user", "content": "Hi."}])
        '\n\nHuman: Hi.\n\nAssistant:'

        Raises:
            ValueError: the template has no form for these turns.
        """
        roles = [m["role"] for m in messages]
        if self.system is None and roles not in ([], ["user"]):
            raise ValueError(
                f"has turns of {', '.join(roles)}, but the prompt_template writes one turn of the user only: leave it "
                "out, or take hh"
            )
        turns = [getattr(self, m["role"]).format_map(m) for m in messages]
        return "".join(turns) + ("" if is_continued(messages) else self.reply)

    def reply_text(self, turns: Messages, *, goes_on: bool) -> str:
        r"""A reply as what stands behind the prompt: what was said, and any turns that follow it.

        >>> TEMPLATES["hh"].reply_text([{"role": "assistant", "content": "4"}], goes_on=False)
        ' 4'

        Args:
            turns: the first of the assistant.
            goes_on: whether that goes on with a turn of the prompt, in place of a new one.
        """
        following = "".join(getattr(self, m["role"]).format_map(m) for m in turns[1:])
        return with_blank("" if goes_on else self.blank, turns[0]["content"]) + following

    def messages(self, text: str) -> Messages:
        r"""The turns of a prompt of this form, the opened reply left out; other text is one turn of the user.

        Turns of one role in a row become one, because chat templates ask for turns that alternate. A turn of the system
        can only come first: further on, its mark is part of what was said.

        >>> TEMPLATES["hh"].messages("\n\nHuman: Hi.\n\nAssistant:")
        [{'role': 'user', 'content': 'Hi.'}]
        """
        roles = {self._mark(self.user): "user", self._mark(self.assistant): "assistant", self.reply: "assistant"}
        marks = [mark for mark in roles if mark]
        if not marks:
            return [{"role": "user", "content": text}]
        pieces = _splitter(marks).split(text)
        marked = zip(pieces[1::2], pieces[2::2], strict=True)
        system = self._mark(self.system or "")
        is_system = bool(system) and pieces[0].startswith(system)
        first = ("system", pieces[0].removeprefix(system)) if is_system else ("user", pieces[0])
        turns = [first, *((roles[mark], content) for mark, content in marked)]
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

    @property
    def opening(self) -> tuple[str, ...]:
        """What a prompt of this form may begin with."""
        turns = (self.user, self.assistant, self.system or "")
        return tuple(mark for mark in map(self._mark, turns) if mark)

    @staticmethod
    def _mark(turn: str) -> str:
        return turn.partition("{content}")[0].rstrip(" ")


def with_blank(blank: str, said: str) -> str:
    """What was said as it stands behind an opened reply: `blank` comes first, unless there is one, or nothing to say.

    >>> with_blank(" ", "4"), with_blank(" ", " 4"), with_blank(" ", "")
    (' 4', ' 4', '')
    """
    return said if not said or said[0].isspace() else blank + said


TEMPLATES = {
    "plain": Template(),
    # The dialogues of Anthropic/hh-rlhf.
    "hh": Template(
        user="\n\nHuman: {content}",
        assistant="\n\nAssistant: {content}",
        system="\n\nSystem: {content}",
        reply="\n\nAssistant:",
        blank=" ",
    ),
    # Rewarded soups (arXiv 2306.04488, llama/utils/llama_utils.py) and rewards-in-context (arXiv 2402.10207,
    # ppo/utils.py). They leave a space at the end of the prompt; here it starts the completion, as tokenizers expect.
    "summary": Template(
        user="### Instruction: Generate a one-sentence summary of this post. ### Input: {content}",
        reply=" ### Response:",
        blank=" ",
        chat="Generate a one-sentence summary of this post.\n\n{content}",
    ),
}


def said(text: str) -> str:
    r"""What was said in a prompt, without the marks of the template that wrote it; a text without them is as it is.

    >>> said("\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: 2+2?\n\nAssistant:"), said("Hi. ")
    ('Hi.\n\nHello.\n\n2+2?', 'Hi. ')
    """
    for template in TEMPLATES.values():
        if template.reply and text.startswith(template.opening):
            return "\n\n".join(message["content"] for message in template.messages(text))
    return text


def bare(text: str) -> str:
    r"""A prompt without blanks around what each turn says, which a chat template may leave out: to compare by.

    >>> bare("Hi. \n"), bare("\n\nHuman: Hi. \n\nAssistant:") == bare("\n\n\nHuman:  Hi.\n\nAssistant:")
    ('Hi.', True)
    """
    for marks in _MARKS:
        before, *pieces = marks.split(text)
        if pieces and not before.strip():
            return "".join(piece.strip() if i % 2 else piece for i, piece in enumerate(pieces))
    return text.strip()


def _splitter(marks: Iterable[str]) -> re.Pattern:
    """What takes a text apart at marks, which then stand at the odd places."""
    return re.compile(f"({'|'.join(map(re.escape, marks))})")


# Of each template that marks turns: compiled once, for bare is asked of every row.
_MARKS = [_splitter((*template.opening, template.reply)) for template in TEMPLATES.values() if template.reply]


def find(name: str) -> Template:
    """The template of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in TEMPLATES:
        raise ValueError(f"prompt_template {name!r} is unknown, expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
