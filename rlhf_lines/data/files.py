"""Rows of a file, a folder or a Hub data set as prompts, demonstrations or preferences, whatever form they have."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from reward_models.base import is_number
from rlhf_lines.data import conversation, dialogues
from rlhf_lines.data.conversation import KINDS, Messages, kind_of
from rlhf_lines.data.sources import Rows, columns, read
from rlhf_lines.data.splits import ALL, HELD_OUT, SHARE, SPLITS, TestSize, prompts_by_split, rows_of
from rlhf_lines.data.templates import TEMPLATES, Template, find
from rlhf_lines.data.writer import MARGIN


COLUMNS = {
    "text": ("text",),
    "demonstrations": ("prompt", "completion"),
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
}
PAIR = ("chosen", "rejected")
ALIKE = {"completion": "chosen"}  # what is a demonstration where there is no other
SPOKEN = ("prompt", "completion", *PAIR, "messages")  # the columns that may hold messages
# What a chat template or a model of images would be given besides: a conversation is not the same without it.
BESIDE_MESSAGES = ("tools", "chat_template_kwargs", "images", "image")

# What data sets call our columns; they are not renamed here, because two of them may be one of ours.
CALLED_ELSEWHERE = {
    **dict.fromkeys(("prompt", "question", "query", "instruction", "input"), "prompt"),
    **dict.fromkeys(("completion", "answer", "response", "output"), "completion"),
    **dict.fromkeys(("conversations", "conversation", "dialogue"), "messages, a list of turns with role and content,"),
}

T = TypeVar("T")
logger = logging.getLogger(__name__)


def rows(
    source: str, kind: str, split: str, *, template: str | None = None, test_size: TestSize = None
) -> tuple[list[dict], Template]:
    """The rows of one kind of one split (see `splits.rows_of`), and the template of their prompts.

    A source is one of three:

    1. texts: a column `prompt` is read as it is, or as what the user says in `template`;
    2. pairs of dialogues without a column `prompt`: it is what `chosen` and `rejected` have in common (see
       `dialogues`), as it is, or written by `template`. The chosen replies are demonstrations, too;
    3. conversations: some column holds messages (see `conversation`). `template` (default `hh`) writes the prompt, and
       the rows keep its turns as `messages`. A prompt that is not given as messages is what `chosen` and `rejected`
       share, or what `messages` has before its last reply, or else a text that the user says.

    Rows of the kind `"prompts"` keep what else the source says of them as `columns`, a JSON text, and `"preferences"` a
    column `margin` of numbers.

    Args:
        source: a file, a folder, or a Hub id `owner/name`.
        kind: `"text"`, `"demonstrations"`, `"prompts"` or `"preferences"`; it names the columns that are kept.
        split: `"train"`, `"validation"` or `"test"`.
        template: the name of a template.
        test_size: see `splits.read_test_size`.

    Raises:
        FileNotFoundError: the file or folder does not exist, the folder lacks the split, or the Hub has no such data.
        ValueError: a column is missing or holds no text, or the file format or the template is unknown.
    """
    own_splits = read(source)
    everything = [row for own in own_splits.values() for row in own]
    spoken = kind != "text" and any(isinstance(row.get(column), list) for row in everything for column in SPOKEN)
    names = set(columns(everything))
    implicit = kind != "text" and not spoken and "prompt" not in names and set(PAIR) <= names
    native = "hh" if spoken or implicit else "plain"
    written = find(template or native)

    def convert(name: str, wanted: str) -> list[dict]:
        own, where = own_splits[name], place(source, name)
        if wanted == "text":
            return texts_of(own, COLUMNS["text"], wanted, where)
        if spoken:
            return _conversations(own, wanted, written, where)
        margins = _margins(own, where) if wanted == "preferences" else [{}] * len(own)
        if implicit:
            texts = texts_of(own, PAIR, wanted, where)
            pairs = [{**pair, **margin} for pair, margin in zip(texts, margins, strict=True)]
            found = dialogues.rows(pairs, wanted, source)
            return [_rewritten(row, written, native, f"a prompt of dataset {where}") for row in found]
        found, named = texts_of(own, COLUMNS[wanted], wanted, where), columns(own)
        return [
            {
                **_rewritten(row, written, native, f"row {number} of dataset {where}"),
                "row": number,
                **(_columns(whole, named) if wanted == "prompts" else {}),
                **margin,
            }
            for number, (row, whole, margin) in enumerate(zip(found, own, margins, strict=True), start=1)
        ]

    return split_rows(own_splits, split, convert, kind, source, test_size), written


def split_rows(
    own_splits: Mapping[str, Sequence],
    split: str,
    convert: Callable[[str, str], list[dict]],
    kind: str,
    source: str,
    test_size: TestSize = None,
) -> list[dict]:
    """The rows of one kind of one split; of the other splits only the prompts are converted.

    Args:
        own_splits: what the source has, by split.
        split: `"train"`, `"validation"` or `"test"`.
        convert: from the name of an own split and a kind of rows to these rows.
        kind: a key of `COLUMNS`.
        source: its name, for errors.
        test_size: see `splits.read_test_size`.

    Raises:
        FileNotFoundError: the source has neither the split nor a train split to take it from.
        ValueError: the source has splits of its own, so `test_size` means nothing, or cannot be `"all"`.
    """
    if split in SPLITS and not {split, "train"} & set(own_splits):
        nor = "" if split == "train" else ", nor a train split to take one from"
        raise FileNotFoundError(f"dataset {source} has no {split} split{nor}")
    lacking = [name for name in HELD_OUT if name not in own_splits]
    if test_size is not None and ("train" not in own_splits or not lacking):
        raise ValueError(f"test_size is {test_size}, but dataset {source} has splits of its own: leave it out")
    if test_size == ALL and (own := " and ".join(name for name in HELD_OUT if name in own_splits)):
        raise ValueError(
            f"test_size is {ALL}, but dataset {source} has a {own} split of its own, so that not all of it can be "
            "test: leave it out, or give one file with all rows"
        )
    needed = split if split in own_splits else "train"
    others = "text" if kind == "text" else "prompts"
    converted = {name: convert(name, kind if name == needed else others) for name in own_splits}
    key = "text" if kind == "text" else "prompt"
    if lacking and "train" in own_splits:
        sizes = prompts_by_split(converted, key=key, test_size=test_size)
        _tell_split(source, " and ".join(lacking), tuple(sizes.items()), SHARE if test_size is None else test_size)
    return rows_of(converted, split, key=key, test_size=test_size)


def place(source: str, split: str) -> str:
    """What a sentence about a row calls its source, of one split."""
    return source if Path(source).is_file() else f"{source}, split {split},"


@contextlib.contextmanager
def about_row(number: int, source: str) -> Iterator[None]:
    """Inside, a ValueError is about this row, and says so.

    Raises:
        ValueError: in its place.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"row {number} of dataset {source}: {error}") from None


def checked(value: object, kind: type[T], name: str) -> T:
    """The value, if it is of this kind.

    >>> checked(5, str, "text of summary 2")
    Traceback (most recent call last):
    ValueError: text of summary 2 is a number (5), expected a text

    Raises:
        ValueError: it is not.
    """
    if value is None:
        raise ValueError(f"{name} is missing: fill it in, or leave out the row")
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {kind_of(value)}, expected {KINDS[kind]}")
    return value


def texts_of(rows: Rows, wanted: Sequence[str], purpose: str, source: str) -> list[dict]:
    """The rows with these columns of texts.

    Raises:
        ValueError: a column is missing, or holds something else in a row.
    """
    found = columns_of(rows, wanted, purpose, source)
    for number, row in enumerate(found, start=1):
        for column, value in row.items():
            if not isinstance(value, str):
                raise ValueError(_no_text(number, source, column, value, "a text"))
    return found


def columns_of(rows: Rows, wanted: Sequence[str], purpose: str, source: str) -> list[dict]:
    """The rows with these columns; a column that a row lacks is None there.

    Raises:
        ValueError: no row has one of them.
    """
    _check_columns(rows, wanted, columns(rows), purpose, source)
    return [{column: row.get(column) for column in wanted} for row in rows]


def _check_columns(rows: Rows, wanted: Sequence[str], given: Sequence[str], purpose: str, source: str) -> None:
    missing = [column for column in wanted if column not in given]
    if not missing:
        return
    has = columns(rows)
    if "messages" in has and "prompt" in missing:
        number, said = next((n, row["messages"]) for n, row in enumerate(rows, start=1) if "messages" in row)
        raise ValueError(_no_text(number, source, "messages", said, "a list of messages with role and content"))
    meant = [
        f"{known} is called {name} here"
        for name in has
        if (known := CALLED_ELSEWHERE.get(name.strip().lower())) not in (None, name)
    ]
    renaming = f": rename columns ({', '.join(meant)})" if meant else ""
    raise ValueError(
        f"dataset {source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} for {purpose}; "
        f"it has {', '.join(has)}{renaming}"
    )


def _no_text(number: int, source: str, column: str, value: object, expected: str) -> str:
    if value is None:
        return f"row {number} of dataset {source} has no {column}: fill it in, or leave out the row"
    return f"row {number} of dataset {source}: {column} is {kind_of(value)}, expected {expected}"


@cache  # a stage reads several splits of one source, and is told once
def _tell_split(source: str, lacking: str, sizes: tuple[tuple[str, int], ...], test_size: TestSize) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in sizes)
    if test_size == "all":
        logger.warning("%s has no %s split, so all of it is test: %s (test_size: all)", source, lacking, counts)
        return
    logger.warning(
        "%s has no %s split, so a hash of the prompt holds some of train out: %s (test_size: %s)",
        source, lacking, counts, test_size,
    )  # fmt: skip


# --- conversations


def _conversations(rows: Rows, wanted: str, template: Template, source: str) -> list[dict]:
    """The rows of one kind of a source that holds messages; a pair without a common turn is left out, and counted."""
    named = columns(rows)
    given = set(named)
    if "messages" in given:
        given |= {"prompt", "completion"}
    if set(PAIR) <= given:
        given |= {"completion"} | ({"prompt"} if any(isinstance(row.get("chosen"), list) for row in rows) else set())
    _check_columns(rows, COLUMNS[wanted], list(given), wanted, source)
    margins = _margins(rows, source) if wanted == "preferences" else [{}] * len(rows)
    found = []
    for number, (row, margin) in enumerate(zip(rows, margins, strict=True), start=1):
        with about_row(number, source):
            made = _spoken_row(row, wanted, template)
        if made is not None:
            found.append({**made, "row": number, **(_columns(row, named) if wanted == "prompts" else {}), **margin})
    if not found:
        raise ValueError(f"dataset {source} has no prompt: chosen and rejected share no turn in any row")
    if len(found) < len(rows):
        logger.warning("%s: %d of %d pairs share no turn: left out", source, len(rows) - len(found), len(rows))
    return found


def _spoken_row(row: dict, wanted: str, template: Template) -> dict | None:
    beside = [name for name in BESIDE_MESSAGES if row.get(name)]
    if beside:
        raise ValueError(f"{beside[0]} stands beside its messages, which no stage here reads: leave the column out")
    prompt, answers = _divided(row)
    if prompt is None:
        return None
    prompt = conversation.opened([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    if not any(turn["content"].strip() for turn in prompt):
        raise ValueError("prompt has no turn that says something")
    try:
        made = {"prompt": template.text(prompt)}
    except ValueError as error:
        raise ValueError(f"prompt {error}") from None
    for column in COLUMNS[wanted][1:]:
        alike = ALIKE.get(column, column)
        stands_in = column not in answers and row.get(column) is None and (alike in answers or alike in row)
        source = alike if stands_in else column
        answer = answers[source] if source in answers else _said(row, source)
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        made[column] = _reply(prompt, conversation.behind(prompt, answer), column, wanted, template)
    if wanted == "demonstrations" and conversation.is_continued(prompt):
        raise ValueError("prompt ends in a turn of the assistant, which no demonstration can go on with")
    return {**made, "messages": prompt}


def _divided(row: dict) -> tuple[str | Messages | None, dict[str, Messages]]:
    """The prompt, and those replies that are found with it; without a prompt where a pair shares no turn."""
    prompt = _said(row, "prompt") if row.get("prompt") is not None else None
    if isinstance(prompt, list):
        return prompt, {}
    # As TRL reads them: a prompt that is a text is no part of dialogues that begin with it as a turn.
    if all(isinstance(row.get(side), list) for side in PAIR):
        chosen, rejected = (_said(row, side) for side in PAIR)
        shared = conversation.shared_turns(chosen, rejected)
        if shared:
            replies = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
            return chosen[:shared], replies
        return prompt, {}
    if isinstance(row.get("messages"), list) and row.get("completion") is None:
        before, reply = conversation.last_reply(_said(row, "messages"))
        return before, {"completion": reply}
    if prompt is None:
        raise ValueError("prompt is missing: fill it in, or leave out the row")
    return prompt, {}


def _said(row: dict, column: str) -> str | Messages:
    """A text or the turns of messages."""
    value = row.get(column)
    if value is None or isinstance(value, str):
        return checked(value, str, column)
    if not isinstance(value, list):
        raise ValueError(f"{column} is {kind_of(value)}, expected a text or messages")
    try:
        return conversation.turns_of(value)
    except ValueError as error:
        raise ValueError(f"{column} {error}") from None


def _reply(prompt: Messages, turns: Messages, column: str, wanted: str, template: Template) -> str:
    """What stands behind the prompt, as a text: a turn of the assistant, in a preference perhaps with more after it."""
    if not turns:
        return ""
    several = len(turns) > 1 and (wanted == "demonstrations" or template.system is None)
    if turns[0]["role"] != "assistant" or several:
        has = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"{column} has turns of {has} behind the prompt, expected one of the assistant")
    return template.reply_text(turns, goes_on=conversation.is_continued(prompt))


def _margins(rows: Rows, source: str) -> list[dict[str, float]]:
    """By how much a pair's chosen reply is to score higher than the rejected one, where the source says so.

    Raises:
        ValueError: a row has none where others have, or one that is no finite number.
    """
    if MARGIN not in columns(rows):
        return [{}] * len(rows)
    for number, row in enumerate(rows, start=1):
        if not is_number(row.get(MARGIN)):
            raise ValueError(_no_text(number, source, MARGIN, row.get(MARGIN), "a finite number"))
    return [{MARGIN: float(row[MARGIN])} for row in rows]


def _columns(row: dict, named: Sequence[str]) -> dict[str, str]:
    """What a row says besides; what it lacks and others of its split have is null, for functions that ask for it."""
    others = {name: row.get(name) for name in (*row, *named) if name != "prompt"}
    return {"columns": json.dumps(others, default=str)} if others else {}


def _rewritten(row: dict, template: Template, native: str, where: str) -> dict:
    """The row with its prompt as a text of the template."""
    if template == TEMPLATES[native]:
        return row
    # A dialogue is taken apart by its own marks; a plain text may already be of the wanted form.
    messages = (TEMPLATES[native] if native == "hh" else template).messages(row["prompt"])
    try:
        return {**row, "prompt": template.text(messages)}
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
