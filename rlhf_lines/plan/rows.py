"""What is known about a data set where it is at hand: how many rows, and how long they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lines import data
from rlhf_lines.data.config import ChatTemplateConfig, DataConfig
from rlhf_lines.plan.example import chat_ids
from rlhf_lines.progress import beat
from rlhf_lines.sweep.forgetting import load_forgetting_texts


OFFLINE_TASKS = ("docstrings", "docstring_sentences")
ASSUMED_TOKENS = 512
CHARACTERS_PER_TOKEN = 4
READ_ROWS = 2000
SUFFIXES = (".json", ".jsonl", ".parquet", ".gz", ".txt")  # of a file, also of one that does not exist


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        count: how many; None where the data set is not here.
        longest: tokens of the longest text among the first 2,000, or what is assumed.
        source: how that is known.
        first: the first row, where the data set is here.
        tokenizer: of the model, where it is here.
        lengths: tokens of each text of the first 2,000 rows; empty where none was measured.
        prompts: how many different prompts there are, of rows that are prompts; None where that is not known.
    """

    count: int | None
    longest: int
    source: str
    first: Mapping[str, Any] | None = None
    tokenizer: Any = None
    lengths: Sequence[int] = ()
    prompts: int | None = None

    @property
    def known(self) -> bool:
        """Whether the longest text was read or given, and not assumed."""
        return not self.source.startswith("assumed")


def look_at(
    config: DataConfig,
    kind: str,
    *,
    columns: tuple[tuple[str, ...], ...],
    tokenizer_from: str,
    split: str = "train",
    given: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    with_turns: bool = False,
) -> Rows:
    """What is known about the rows of a stage, by the stage's own loading where the data set is local.

    Args:
        config: where rows come from.
        kind: of rows, as `data.load` calls it.
        columns: which columns make one text; with several such tuples, the longest counts.
        tokenizer_from: folder of the model, for its tokenizer; without one, 4 characters are taken for a token.
        split: which rows.
        given: tokens of the longest text, as the user says.
        chat_template_kwargs: settings of the chat template that the config of the data does not have itself.
        with_turns: whether preferences have their prompt as `conversation`, too.

    Raises:
        FileNotFoundError, ValueError: as `data.load`.
    """
    limit = config.max_prompt_length if columns == (("prompt",),) else None
    if not is_local(config):
        if given or limit:
            return Rows(None, given or limit, "as given" if given else "max_prompt_length")
        return Rows(None, ASSUMED_TOKENS, "assumed: the data set is not here; see --prompt_tokens")
    beat(f"reading {split} rows")
    tokenizer = _tokenizer(Path(tokenizer_from))
    if tokenizer is None:  # nothing to count prompts with
        chat = {"chat_template_kwargs": None} if isinstance(config, ChatTemplateConfig) else {}
        config, chat_template_kwargs = dataclasses.replace(config, max_prompt_length=None, **chat), None
    dataset = config.load(kind, split, tokenizer, chat_template_kwargs=chat_template_kwargs, with_turns=with_turns)
    seen = {"first": dataset[0], "tokenizer": tokenizer}
    if kind == "prompts":
        seen["prompts"] = len(set(dataset["prompt"]))
    if given:
        return Rows(len(dataset), given, "as given", **seen)
    few = dataset.select(range(min(READ_ROWS, len(dataset))))
    seen["lengths"] = lengths = [_tokens(tokenizer, row, group) for row in few for group in columns]
    source = f"{CHARACTERS_PER_TOKEN} characters a token" if tokenizer is None else "by the model's tokenizer"
    if limit and limit < max(lengths):
        return Rows(len(dataset), limit, "max_prompt_length", **seen)
    return Rows(len(dataset), max(lengths), f"longest of {len(few):,} rows, {source}", **seen)


def _tokenizer(folder: Path):
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from rlhf_lines.models import load_tokenizer

    return load_tokenizer(folder)


def _tokens(tokenizer, row: Mapping[str, Any], columns: Sequence[str]) -> int:
    """How many tokens the columns of a row have, one after the other, in a chat template where they are messages."""
    parts = [row[column] for column in columns]
    if isinstance(parts[0], list):
        return len(chat_ids(tokenizer, row))
    text = "".join(parts)
    if tokenizer is None:
        return -(-len(text) // CHARACTERS_PER_TOKEN)
    return len(tokenizer(text, verbose=False)["input_ids"])


def is_local(config: DataConfig) -> bool:
    """Whether the rows can be read without the Hub."""
    if config.dataset_name in data.TASKS and config.dataset_path is None:
        return config.dataset_name in OFFLINE_TASKS
    name = config.dataset_path or config.dataset_name
    return Path(name).exists() or name.endswith(SUFFIXES) or name.startswith((".", "/", "~"))


def look_at_texts(source: str | None, count: int, max_tokens: int, tokenizer) -> list[int] | None:
    """The tokens of each text outside the task that a sweep will read; None without a source, or where it is not here.

    Args:
        source: of the texts, or None.
        count: how many are asked for.
        max_tokens: of each.
        tokenizer: of the model, or None where it is not here.

    Raises:
        FileNotFoundError, ValueError: as `load_forgetting_texts`.
    """
    if source is None or tokenizer is None or not is_local(DataConfig(source)):
        return None
    return [len(text.token_ids) for text in load_forgetting_texts(source, count, max_tokens, tokenizer)]


def completion_lengths(config: DataConfig, tokenizer) -> list[int]:
    """The tokens of the data's own completions, end token included: what a policy that learned from them may write.

    Empty where the data has none, or is not here, or the tokenizer (None) is not.
    """
    if tokenizer is None or not is_local(config):
        return []
    try:
        rows = config.load("demonstrations", "train", tokenizer)
    except (FileNotFoundError, ValueError):  # prompts alone, or another split
        return []
    found = rows.select(range(min(READ_ROWS, len(rows))))["completion"]
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in found]
    return [len(ids) + 1 for ids in tokenizer(texts, verbose=False)["input_ids"]]
