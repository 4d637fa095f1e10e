"""Rows of a local JSONL, JSON or Parquet file, of a folder of them, or of a data set on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.data import dialogues
from rlhf_lines.data.splits import SPLITS, rows_of
from rlhf_lines.data.templates import TEMPLATES, Template, find


FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".jsonl.gz": "json",
    ".json.gz": "json",
}
COLUMNS = {
    "text": ("text",),
    "demonstrations": ("prompt", "completion"),
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
}


def rows(source: str, kind: str, split: str, *, template: str | None = None) -> tuple[list[dict], Template]:
    """The rows of one kind of one split (see `splits.rows_of`), and the template of their prompts.

    A prompt is one of three:

    1. a column `prompt` of texts, read as they are, or as what the user says in `template`;
    2. a column `prompt` of messages `[{"role", "content"}, ...]`, written by `template` (default `hh`); the
       other columns then hold texts or lists of one message, and the rows keep their `messages`;
    3. without such a column, what the dialogues `chosen` and `rejected` have in common (see `dialogues`), as it
       is, or written by `template`. The chosen replies are demonstrations, too.

    Args:
        source: a file, a folder, or a Hub id `owner/name`.
        kind: `"text"`, `"demonstrations"`, `"prompts"` or `"preferences"`; it names the columns that are kept.
        split: `"train"`, `"validation"` or `"test"`.
        template: the name of a template.

    Raises:
        FileNotFoundError: the file or folder does not exist, the folder lacks the split, or the Hub has no such data.
        ValueError: a column is missing or holds no text, or the file format or the template is unknown.
    """
    own_splits = read(source)
    implicit = kind != "text" and all(_is_implicit(dataset) for dataset in own_splits.values())
    native = "hh" if implicit or any(_holds_messages(dataset, "prompt") for dataset in own_splits.values()) else "plain"
    written = find(template or native)

    def convert(name: str, wanted: str) -> list[dict]:
        dataset, where = own_splits[name], source if Path(source).is_file() else f"{source}, split {name},"
        if implicit:
            found = dialogues.rows(texts_of(dataset, ("chosen", "rejected"), wanted, where), wanted, source)
        else:
            found = texts_of(dataset, COLUMNS[wanted], wanted, where)
        return found if wanted == "text" else [_written(row, written, native) for row in found]

    found = split_rows(own_splits, split, convert, kind, source)
    return found, written


def split_rows(
    own_splits: Mapping[str, Any], split: str, convert: Callable[[str, str], list[dict]], kind: str, source: str
) -> list[dict]:
    """The rows of one kind of one split; of the other splits only the prompts are converted.

    Args:
        own_splits: what the source has, by split.
        split: `"train"`, `"validation"` or `"test"`.
        convert: from the name of an own split and a kind of rows to these rows.
        kind: a key of `COLUMNS`.
        source: its name, for errors.

    Raises:
        FileNotFoundError: the source has neither the split nor a train split to take it from.
    """
    if split in SPLITS and not {split, "train"} & set(own_splits):
        raise FileNotFoundError(f"dataset {source} has no {split} split, nor a train split to take one from")
    needed = split if split in own_splits else "train"
    others = "text" if kind == "text" else "prompts"
    converted = {name: convert(name, kind if name == needed else others) for name in own_splits}
    return rows_of(converted, split, key="text" if kind == "text" else "prompt")


def read(source: str, *, subset: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """The data sets of a file, a folder or a Hub id, by the splits that it has.

    A file is one split, `"train"`. A folder holds a split as `train.jsonl`, as shards `train-*.parquet`, or as a
    folder `train/` of shards, itself or in `data/`: so does a downloaded data set of the Hub.

    Args:
        source: a file, a folder, or a Hub id `owner/name`.
        subset: a folder inside a folder or Hub data set; a local source may be that folder itself.
        revision: of a Hub data set.

    Raises:
        FileNotFoundError: there is no such source, or a folder without splits.
        ValueError: the file format is unknown.
    """
    path = Path(source)
    if path.is_file():
        return {"train": _read([path])}
    if path.is_dir():
        folder = path / subset if subset and (path / subset).is_dir() else path
        found = {split: files for split in SPLITS if (files := _files_of(folder, split))}
        if not found:
            raise FileNotFoundError(f"dataset folder {folder} has no train split: expected {folder / 'train.jsonl'}")
        return {split: _read(files) for split, files in found.items()}
    if _format_of(path) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"dataset file {source} does not exist")
    return _fetch(source, subset, revision)


def columns_of(dataset, columns: Sequence[str], purpose: str, source: str) -> list[dict]:
    """The rows of a `datasets.Dataset` with these columns.

    Raises:
        ValueError: one is missing.
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"dataset {source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} for {purpose}; "
            f"it has {', '.join(dataset.column_names)}"
        )
    return dataset.select_columns(list(columns)).to_list()


def texts_of(dataset, columns: Sequence[str], purpose: str, source: str) -> list[dict]:
    """The rows of a `datasets.Dataset` with these columns of texts or messages.

    Raises:
        ValueError: one is missing, is of another type, or is empty (null) in a row.
    """
    rows = columns_of(dataset, columns, purpose, source)
    for column in columns:
        held = getattr(dataset.features[column], "dtype", "lists")
        if held not in ("string", "large_string") and not _holds_messages(dataset, column):
            raise ValueError(f"column {column} of dataset {source} holds {held}, expected plain text or messages")
        number = next((number for number, row in enumerate(rows, start=1) if row[column] is None), None)
        if number is not None:
            raise ValueError(f"row {number} of dataset {source} has no {column}: fill it in, or leave out the row")
    return rows


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in the first place that has any, in one format."""
    for place in (folder, folder / "data"):
        for suffix in FORMATS:
            for pattern in (f"{split}{suffix}", f"{split}-*{suffix}", f"{split}/*{suffix}"):
                if found := sorted(place.glob(pattern)):
                    return found
    return []


def _fetch(source: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    from datasets import load_dataset

    try:
        fetched = load_dataset(source, data_dir=subset, revision=revision)
    except Exception as error:  # offline, gated, mistyped: the library has an exception class for each
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"dataset {source} is neither a task, nor a local file or folder, nor a Hub data set that can be fetched "
            f"({reason})"
        ) from error
    found = {split: fetched[split] for split in SPLITS if split in fetched}
    if not found:
        raise FileNotFoundError(f"dataset {source} has the splits {', '.join(fetched)}, expected one of {SPLITS}")
    return found


def _read(paths: list[Path]):
    from datasets import Dataset

    format = _format_of(paths[0])
    if format is None:
        raise ValueError(
            f"dataset file {paths[0]} has the format {paths[0].suffix!r}, expected one of {', '.join(FORMATS)}"
        )
    if not any(path.stat().st_size for path in paths):
        raise ValueError(f"dataset file {paths[0]} is empty, expected rows")
    # Not load_dataset(), which reports every use to the Hub, also of a local file, and waits where there is none.
    from_files = {"json": Dataset.from_json, "parquet": Dataset.from_parquet}[format]
    return from_files([str(path) for path in paths])


def _format_of(path: Path) -> str | None:
    return next((FORMATS[suffix] for suffix in FORMATS if path.name.endswith(suffix)), None)


def _is_implicit(dataset) -> bool:
    return "prompt" not in dataset.column_names and {"chosen", "rejected"} <= set(dataset.column_names)


def _holds_messages(dataset, column: str) -> bool:
    feature = dataset.features.get(column)
    item = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    return isinstance(item, dict) and {"role", "content"} <= set(item)


def _written(row: dict, template: Template, native: str) -> dict:
    """The row with its prompt as a text of the template, and every other column as a text."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
        texts = {k: v if isinstance(v, str) else v[-1]["content"] for k, v in row.items() if k != "prompt"}
        return {"prompt": template.text(messages), **texts, "messages": messages}
    if template == TEMPLATES[native]:
        return row
    # A dialogue is taken apart by its own marks; a plain text may already be of the wanted form.
    messages = (TEMPLATES[native] if native == "hh" else template).messages(prompt)
    return {**row, "prompt": template.text(messages)}
