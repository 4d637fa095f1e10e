"""Prompts, demonstrations and preferences, by task name, local file or Hub id."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lines.data import chat, docstring_sentences, docstrings, files, hh_rlhf, left_out, news, templates, tldr
from rlhf_lines.data.splits import HELD_OUT, TestSize
from rlhf_lines.data.writer import Writer
from rlhf_lines.errors import closest


TASKS = {
    "docstrings": docstrings,
    "docstring_sentences": docstring_sentences,
    "tldr": tldr,
    "hh_rlhf": hh_rlhf,
    "news": news,
}
KINDS = tuple(files.COLUMNS)

logger = logging.getLogger(__name__)


def load(
    dataset_name: str,
    kind: str,
    split: str,
    *,
    tokenizer=None,
    dataset_path: str | None = None,
    prompt_template: str | None = None,
    preference: str | None = None,
    max_prompt_length: int | None = None,
    max_samples: int | None = None,
    test_size: TestSize = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    with_turns: bool = False,
):
    """The `datasets.Dataset` of one kind of rows of one split.

    | kind | columns |
    |---|---|
    | text | text |
    | prompts | prompt: as the policy reads it; scored_prompt, conversation: for reward models; blank; columns |
    | demonstrations | prompt, completion; both as messages where the tokenizer has a chat template |
    | preferences | prompt: what reward models are shown; chosen, rejected; margin, where a file has it |

    What the policy reads is written by the chat template of its tokenizer, or, where that has none, by the template of
    the data. Reward models have tokenizers of their own: what they are shown is always written by the template of the
    data, and for summaries it is the post or article alone. A reward model with a chat template of its own may be shown
    `conversation`: the turns of the prompt as messages, as a chat model is asked. (TRL would take a column `messages`
    for a conversation that it has to write itself.) `columns` has what else a file says of a prompt, as a JSON text.
    `blank` is what stands between `scored_prompt` and a completion of a chat model.

    Args:
        dataset_name: a task of this package (a key of `TASKS`), a local file or folder, or a Hub id.
        kind: `"text"`, `"demonstrations"`, `"prompts"` or `"preferences"`.
        split: `"train"`, `"validation"` or `"test"`; see `splits.rows_of`.
        tokenizer: the policy's.
        dataset_path: where a task's rows are, in place of its own Hub id: a local file or folder, or a Hub id.
        prompt_template: a key of `templates.TEMPLATES` for a source that is no task; see `files.rows`.
        preference: which preference of the task, for kind `"preferences"`; None where a source has only one.
        max_prompt_length: leave out rows whose prompt has more tokens; their number is logged. Needs a tokenizer.
        max_samples: keep the first so many rows; None keeps all.
        test_size: how much is held out of a source without splits; see `splits.read_test_size`.
        chat_template_kwargs: settings of the tokenizer's chat template.
        with_turns: whether preferences have their prompt as `conversation`, too.

    Raises:
        FileNotFoundError: a source does not exist, or has no such split.
        ValueError: the task has no such rows or no such preference, a setting does not fit the source, a row cannot be
            read, or no row is left.
    """
    from datasets import Dataset

    if kind == "text":
        _refuse_of_prompts(
            max_prompt_length=max_prompt_length,
            prompt_template=prompt_template,
            chat_template_kwargs=chat_template_kwargs,
        )
    if max_prompt_length is not None and tokenizer is None:
        raise ValueError(f"max_prompt_length is {max_prompt_length}, but there is no tokenizer to count with")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}, expected at least 1")
    settings = chat.check_settings(chat_template_kwargs, tokenizer)
    task = TASKS.get(dataset_name)
    if task is None:
        if preference is not None:
            raise ValueError(f"preference {preference!r} was given, but {dataset_name} is a plain source of pairs")
        if dataset_path is not None:
            raise ValueError(f"dataset_path {dataset_path} was given, but {dataset_name} is no task: give one of them")
        rows, template = _rows_of_source(dataset_name, kind, split, prompt_template, test_size)
    else:
        if prompt_template is not None:
            raise ValueError(f"prompt_template {prompt_template!r} was given, but the {dataset_name} task has its own")
        rows = _rows_of_task(dataset_name, kind, split, preference, dataset_path, test_size)
        template = templates.find(getattr(task, "TEMPLATE", "plain"))
    source = f"{dataset_name}, split {split}"
    if not rows:
        unless = "" if test_size is None else f" (test_size is {test_size})"
        may_grow = split in HELD_OUT and (task is None or hasattr(task, "HUB_ID"))
        way_out = ": add some, or hold out more of them (test_size)" if may_grow else ""
        raise ValueError(f"dataset {dataset_name} has no {kind} in its {split} split{unless}{way_out}")
    if tokenizer is not None:
        rows = _with_one_bos(rows, tokenizer, source)
    if kind == "preferences":
        _tell_equal_replies(rows, source)
    if kind != "text":
        if kind != "preferences" and chat.has_chat_template(tokenizer):
            _refuse_blank_prompts(rows, dataset_name)
        scored_prompt = getattr(task, "scored_prompt", lambda prompt: prompt)
        blank = template.blank if task is None else " "  # which the completions of every task begin with
        write = Writer(kind, template, scored_prompt, blank, tokenizer, settings, dataset_name, with_turns)
        written = [write.row(row) for row in rows]
        if kind != "preferences" and chat.has_chat_template(tokenizer):
            _tell_chat_template(rows, written, tokenizer, source)
            if kind == "demonstrations":
                _tell_further_turns(rows, written, source)
        rows = left_out.leave_out(written, kind, tokenizer, max_prompt_length, source)
    return Dataset.from_list(rows[:max_samples])


def _refuse_of_prompts(**settings) -> None:
    for name, value in settings.items():
        if value:
            raise ValueError(f"{name} is {value}, but text has no prompts: leave it out")


def _rows_of_source(name: str, kind: str, split: str, template: str | None, test_size: TestSize):
    try:
        return files.rows(name, kind, split, template=template, test_size=test_size)
    except FileNotFoundError as error:
        if (close := closest(name, TASKS)) is None:
            raise
        raise FileNotFoundError(f"{error}; did you mean {close!r}?") from error


def _rows_of_task(
    name: str, kind: str, split: str, preference: str | None, path: str | None, test_size: TestSize
) -> list[dict]:
    task = TASKS[name]
    if not hasattr(task, kind):
        raise ValueError(f"the {name} task has no {kind}; it has {', '.join(k for k in KINDS if hasattr(task, k))}")
    given = {"path": path, "test_size": test_size}
    options = {option: value for option, value in given.items() if value is not None}
    if options and not hasattr(task, "HUB_ID"):
        option, value = next(iter(options.items()))
        key = {"path": "dataset_path"}.get(option, option)
        raise ValueError(f"{key} {value} was given, but the {name} task reads no files: leave it out")
    if kind == "preferences":
        return task.preferences(split, preference, **options)
    return getattr(task, kind)(split, **options)


def _refuse_blank_prompts(rows: Sequence[dict], dataset_name: str) -> None:
    """Stop where a chat template would write a turn of a prompt that says nothing."""
    for row in rows:
        if not row["prompt"].strip():
            place = f" (row {row['row']})" if "row" in row else ""
            raise ValueError(
                f"dataset {dataset_name} has a prompt that says nothing{place}: fill it in, or leave out the row"
            )


def _tell_equal_replies(rows: Sequence[dict], source: str) -> None:
    """Log how many pairs prefer nothing."""
    equal = sum(row["chosen"].strip() == row["rejected"].strip() for row in rows)
    if equal:
        logger.warning(
            "%s: chosen and rejected say the same in %d of %d pairs, from which nothing is learned",
            source, equal, len(rows),
        )  # fmt: skip


def _tell_chat_template(rows: list[dict], written: list[dict], tokenizer, source: str) -> None:
    """Log what a chat template may do to a conversation without a word: write it twice, or leave a turn out."""
    twice = chat.count_written((row["prompt"] for row in rows if "messages" not in row), tokenizer)
    if twice:
        logger.warning(
            "%s: %d of %d prompts begin with a special token, as if a chat template had written them; it writes them "
            "again, as what the user says: give the turns as messages instead",
            source, twice, len(rows),
        )  # fmt: skip
    turns = [row["conversation"] if "conversation" in row else row["prompt"] for row in written]
    unread = [chat.unread_turn(messages, row["read"]) for messages, row in zip(turns, written, strict=True)]
    if any(unread):
        first = next(turn for turn in unread if turn)
        logger.warning(
            "%s: the chat template changes or leaves out a turn of %d of %d prompts; the first is one of the %s: %r",
            source, sum(turn is not None for turn in unread), len(rows), first["role"], first["content"][:60],
        )  # fmt: skip


def _tell_further_turns(rows: list[dict], written: list[dict], source: str) -> None:
    cut = sum(
        made["completion"][0]["content"] != row["completion"].strip() for row, made in zip(rows, written, strict=True)
    )
    if cut:
        logger.warning(
            "%s: %d of %d completions go on with turns of their own: the first turn of the assistant is learned",
            source, cut, len(rows),
        )  # fmt: skip


def _with_one_bos(rows: list[dict], tokenizer, source: str) -> list[dict]:
    """The rows, of texts that begin with the tokenizer's BOS text, which it or its chat template adds, without it."""
    if not (chat.adds_bos(tokenizer) or (tokenizer.bos_token and chat.has_chat_template(tokenizer))):
        return rows
    found = [_without_bos(row, tokenizer) for row in rows]
    changed = sum(new != old for new, old in zip(found, rows, strict=True))
    if changed:
        logger.warning(
            "%s: %d of %d texts begin with the BOS token %s, which the tokenizer adds itself: written once",
            source, changed, len(rows), tokenizer.bos_token,
        )  # fmt: skip
    return found


def _without_bos(row: dict, tokenizer) -> dict:
    made = {**row, **{key: chat.without_bos(row[key], tokenizer) for key in ("prompt", "text") if key in row}}
    if row.get("messages"):
        first, *others = row["messages"]
        made["messages"] = [{**first, "content": chat.without_bos(first["content"], tokenizer)}, *others]
    return made
