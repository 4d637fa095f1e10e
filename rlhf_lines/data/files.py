"""Rows of a local JSONL, JSON or Parquet file, of a folder of them, or of a data set on the Hub."""

from __future__ import annotations

from pathlib import Path

from rlhf_lines.data.splits import split_of


FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COLUMNS = {
    "text": ("text",),
    "demonstrations": ("prompt", "completion"),
    "prompts": ("prompt",),
    "preferences": ("prompt", "chosen", "rejected"),
}


def rows(source: str, kind: str, split: str):
    """Return the ``datasets.Dataset`` of one kind of rows of one split.

    A local file has no splits of its own: the hash of the prompt decides (see ``splits``). A folder that holds
    ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (or Parquet) and a Hub data set keep theirs.

    Args:
        source: a file, a folder, or a Hub id ``owner/name``.
        kind: ``"text"``, ``"demonstrations"``, ``"prompts"`` or ``"preferences"``; it names the columns that are kept.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        FileNotFoundError: the file or folder does not exist, the folder lacks the split, or the Hub has no such data.
        ValueError: a column is missing or holds no plain text, or the file format is unknown.
    """
    path = Path(source)
    if path.is_file():
        dataset = _read(path)
        _require_columns(dataset, kind, source)
        key = "text" if kind == "text" else "prompt"
        dataset = dataset.filter(lambda row: split_of(row[key]) == split)
    elif path.is_dir():
        candidates = [path / f"{split}{suffix}" for suffix in FORMATS]
        found = [candidate for candidate in candidates if candidate.is_file()]
        if not found:
            raise FileNotFoundError(f"dataset folder {source} has no {split} split: expected {candidates[0]}")
        dataset = _read(found[0])
        _require_columns(dataset, kind, str(found[0]))
    elif path.suffix in FORMATS or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"dataset file {source} does not exist")
    else:
        dataset = _fetch(source, split)
        _require_columns(dataset, kind, source)
    return dataset.select_columns(list(COLUMNS[kind]))


def _fetch(source: str, split: str):
    from datasets import load_dataset

    try:
        return load_dataset(source, split=split)
    except Exception as error:  # offline, gated, mistyped, no such split: the library has an exception class for each
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"dataset {source} is neither a task, nor a local file or folder, nor a Hub data set whose {split} split "
            f"can be fetched ({reason})"
        ) from error


def _read(path: Path):
    from datasets import Dataset

    if path.suffix not in FORMATS:
        raise ValueError(f"dataset file {path} has the format {path.suffix!r}, expected one of {', '.join(FORMATS)}")
    # Not load_dataset(), which reports every use to the Hub, also of a local file, and waits where there is none.
    read = {"json": Dataset.from_json, "parquet": Dataset.from_parquet}[FORMATS[path.suffix]]
    return read(str(path))


def _require_columns(dataset, kind: str, source: str) -> None:
    missing = [column for column in COLUMNS[kind] if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"dataset {source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} for {kind}; "
            f"it has {', '.join(dataset.column_names)}"
        )
    for column in COLUMNS[kind]:
        held = getattr(dataset.features[column], "dtype", "lists")
        if held not in ("string", "large_string"):
            raise ValueError(f"column {column} of dataset {source} holds {held}, expected plain text")
