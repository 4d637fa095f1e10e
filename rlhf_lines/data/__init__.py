"""Prompts, demonstrations and preferences, by task name, local file or Hub id."""

from __future__ import annotations

import logging

from rlhf_lines.data import docstrings, files, hh_rlhf, news, templates, tldr


TASKS = {"docstrings": docstrings, "tldr": tldr, "hh_rlhf": hh_rlhf, "news": news}
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
):
    """The `datasets.Dataset` of one kind of rows of one split.

    | kind | columns |
    |---|---|
    | text | text |
    | prompts | prompt: what the policy reads; scored_prompt, conversation: what reward models are shown |
    | demonstrations | prompt, completion; both as messages where the tokenizer has a chat template |
    | preferences | prompt: what reward models are shown; chosen, rejected |

    What the policy reads is written by the chat template of its tokenizer, or, where that has none, by the template of
    the data. Reward models have tokenizers of their own: what they are shown is always written by the template of the
    data, and for summaries it is the post or article alone. A reward model with a chat template of its own may be shown
    `conversation`: the turns of the prompt as messages, as a chat model is asked. (TRL would take a column `messages`
    for a conversation that it has to write itself.)

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

    Raises:
        FileNotFoundError: a source does not exist, or has no such split.
        ValueError: the task has no such rows or no such preference, a setting does not fit the source, or no row is
            left.
    """
    from datasets import Dataset

    task = TASKS.get(dataset_name)
    if task is None:
        if preference is not None:
            raise ValueError(f"preference {preference!r} was given, but {dataset_name} is a plain source of pairs")
        if dataset_path is not None:
            raise ValueError(f"dataset_path {dataset_path} was given, but {dataset_name} is no task: give one of them")
        rows, template = files.rows(dataset_name, kind, split, template=prompt_template)
    else:
        if prompt_template is not None:
            raise ValueError(f"prompt_template {prompt_template!r} was given, but the {dataset_name} task has its own")
        rows = _rows_of_task(dataset_name, kind, split, preference, dataset_path)
        template = templates.find(getattr(task, "TEMPLATE", "plain"))
    if kind == "text" and max_prompt_length is not None:
        raise ValueError(f"max_prompt_length is {max_prompt_length}, but text has no prompts: leave it out")
    if kind != "text":
        scored_prompt = getattr(task, "scored_prompt", lambda prompt: prompt)
        rows = [_row(row, kind, template, scored_prompt, tokenizer) for row in rows]
        if max_prompt_length is not None:
            rows = _short(rows, max_prompt_length, tokenizer, f"{dataset_name}, split {split}")
    if not rows[:max_samples]:
        raise ValueError(f"dataset {dataset_name} has no {kind} in its {split} split")
    return Dataset.from_list(rows[:max_samples])


def _rows_of_task(name: str, kind: str, split: str, preference: str | None, path: str | None) -> list[dict]:
    task = TASKS[name]
    if not hasattr(task, kind):
        raise ValueError(f"the {name} task has no {kind}; it has {', '.join(k for k in KINDS if hasattr(task, k))}")
    if path is not None and not hasattr(task, "HUB_ID"):
        raise ValueError(f"dataset_path {path} was given, but the {name} task reads no files: leave it out")
    options = {} if path is None else {"path": path}
    if kind == "preferences":
        return task.preferences(split, preference, **options)
    return getattr(task, kind)(split, **options)


def _row(row: dict, kind: str, template: templates.Template, scored_prompt, tokenizer) -> dict:
    """The row as the stages read it."""
    if kind == "preferences":
        return {"prompt": scored_prompt(row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}
    prompt, completion = row["prompt"], row.get("completion")
    conversation = template.asked(row.get("messages") or template.messages(prompt))
    if templates.has_chat_template(tokenizer):
        prompt = conversation
        if kind == "demonstrations":  # SFTTrainer applies the chat template itself, and so knows where a turn ends
            completion = [{"role": "assistant", "content": completion.strip()}]
        else:
            prompt = templates.chat_text(prompt, tokenizer)
    if kind == "demonstrations":
        return {"prompt": prompt, "completion": completion}
    return {"prompt": prompt, "scored_prompt": scored_prompt(row["prompt"]), "conversation": conversation}


def _short(rows: list[dict], longest: int, tokenizer, source: str) -> list[dict]:
    """The rows whose prompt has no more tokens."""
    if tokenizer is None:
        raise ValueError(f"max_prompt_length is {longest}, but there is no tokenizer to count with")
    if not rows:
        return rows
    prompts = [row["prompt"] for row in rows]
    if isinstance(prompts[0], str):
        ids = tokenizer(prompts)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
    short = [row for row, tokens in zip(rows, ids, strict=True) if len(tokens) <= longest]
    if len(short) < len(rows):
        logger.warning("%s: %d of %d prompts are longer than %d tokens: left out", source, len(rows) - len(short),
                       len(rows), longest)  # fmt: skip
    return short
