"""From a row of the data to what a stage reads: the policy's prompt, and what reward models are shown of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lines.data import chat
from rlhf_lines.data.conversation import is_continued
from rlhf_lines.data.templates import Template
from rlhf_lines.limits import without_tokens


MARGIN = "margin"  # a column beside a pair


def margin_of(pair: Mapping[str, Any]) -> dict[str, float]:
    """The column `margin` of a pair, by how much the chosen reply is to score higher, or nothing."""
    return {MARGIN: pair[MARGIN]} if MARGIN in pair else {}


@dataclass(frozen=True)
class Writer:
    """How the rows of a source are written for a stage.

    Attributes:
        kind: `"demonstrations"`, `"prompts"` or `"preferences"`.
        template: of the data.
        scored_prompt: from the text of a prompt to what reward models are shown.
        blank: what a completion as a text begins with, and as the turn of a chat model does not.
        tokenizer: the policy's; its chat template, where it has one, writes what the policy reads.
        settings: of that chat template.
        source: the name of the data, for errors.
        with_turns: whether preferences have their prompt as `conversation`, too.
    """

    kind: str
    template: Template
    scored_prompt: Callable[[str], str]
    blank: str
    tokenizer: Any
    settings: Mapping[str, Any]
    source: str
    with_turns: bool = False

    def row(self, row: dict) -> dict:
        """The row with its columns as the kind has them, and under `read` the text of the prompt that is read.

        Raises:
            ValueError: the chat template refuses the conversation.
        """
        shown = self.scored_prompt(row["prompt"])
        if self.kind == "preferences":
            more = {"conversation": self._turns(row)} if self.with_turns else {}
            more |= margin_of(row)
            return {"prompt": shown, "chosen": row["chosen"], "rejected": row["rejected"], **more, "read": shown}
        turns = self._turns(row)
        is_chat = chat.has_chat_template(self.tokenizer)
        read = self._chat_text(row, turns) if is_chat else row["prompt"]
        if self.kind == "prompts":
            self._check_starts(row, read)
            more = {key: row[key] for key in ("columns",) if key in row}
            if is_chat:
                more["blank"] = "" if is_continued(turns) else self.blank
            return {"prompt": read, "scored_prompt": shown, "conversation": turns, **more, "read": read}
        if not is_chat:
            return {"prompt": read, "completion": row["completion"], "read": read}
        # SFTTrainer applies the chat template itself, and so knows where a turn ends.
        reply = [{"role": "assistant", "content": self.said(row)}]
        more = {"chat_template_kwargs": dict(self.settings)} if self.settings else {}
        return {"prompt": turns, "completion": reply, **more, "read": read}

    def said(self, row: dict) -> str:
        """What the assistant says next; a completion as a text may go on with turns of its own."""
        if "messages" in row or not self.template.reply:
            return row["completion"].strip()
        turns = self.template.messages(self.template.reply + row["completion"])
        return turns[0]["content"] if turns and turns[0]["role"] == "assistant" else ""

    def _turns(self, row: dict) -> list[dict[str, str]]:
        return self.template.asked(row.get("messages") or self.template.messages(row["prompt"]))

    @functools.cached_property
    def _adds_bos(self) -> bool:
        return chat.adds_bos(self.tokenizer)

    def _check_starts(self, row: dict, read: str) -> None:
        if self.tokenizer is not None and not read.strip() and not self.tokenizer(read)["input_ids"]:
            raise ValueError(without_tokens(self.source, _name(row)))

    def _chat_text(self, row: dict, turns: list[dict[str, str]]) -> str:
        try:
            return chat.chat_text(turns, self.tokenizer, self.settings, bos_is_added=self._adds_bos)
        except ValueError as error:
            raise ValueError(f"{_name(row)} of dataset {self.source} {error}") from error


def _name(row: dict) -> str:
    return f"row {row['row']}" if "row" in row else f"the prompt {row['prompt'][:40]!r}"
