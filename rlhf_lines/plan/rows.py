"""What is known about a data set where it is at hand: how many rows, and how long they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf_lines import data
from rlhf_lines.data import files


OFFLINE_TASKS = ("docstrings",)
ASSUMED_TOKENS = 512
CHARACTERS_PER_TOKEN = 4
READ_ROWS = 2000


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        count: how many; None where the data set is not here.
        longest: tokens of the longest text among the first 2,000, or what is assumed.
        source: how that is known.
    """

    count: int | None
    longest: int
    source: str


def look_at(
    dataset_name: str,
    kind: str,
    *,
    columns: tuple[tuple[str, ...], ...],
    tokenizer_from: str,
    split: str = "train",
    max_samples: int | None = None,
    preference: str | None = None,
    given: int | None = None,
) -> Rows:
    """Return what is known about the rows of a stage, by the stage's own loading where the data set is local.

    Args:
        columns: which columns make one text; with several such tuples, the longest counts.
        tokenizer_from: folder of the model, for its tokenizer; without one, 4 characters are taken for a token.
        given: tokens of the longest text, as the user says.

    Raises:
        FileNotFoundError, ValueError: as ``data.load``.
    """
    if not _is_local(dataset_name):
        tokens = given or ASSUMED_TOKENS
        return Rows(None, tokens, "as given" if given else "assumed: the data set is not here; see --prompt_tokens")
    dataset = data.load(dataset_name, kind, split, preference=preference, max_samples=max_samples)
    if given:
        return Rows(len(dataset), given, "as given")
    few = dataset.select(range(min(READ_ROWS, len(dataset))))
    texts = ["".join(row[column] for column in group) for row in few for group in columns]
    longest, source = _longest(texts, Path(tokenizer_from))
    return Rows(len(dataset), longest, f"longest of {len(few):,} rows, {source}")


def _longest(texts: Iterable[str], folder: Path) -> tuple[int, str]:
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return max(len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]), "by the model's tokenizer"
    longest = max(len(text) for text in texts)
    return -(-longest // CHARACTERS_PER_TOKEN), f"{CHARACTERS_PER_TOKEN} characters taken for a token"


def _is_local(name: str) -> bool:
    path = Path(name)
    if name in data.TASKS:
        return name in OFFLINE_TASKS
    return path.exists() or path.suffix in files.FORMATS or name.startswith((".", "/", "~"))
