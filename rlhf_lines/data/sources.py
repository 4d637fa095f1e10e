"""What a local file, a folder or a data set on the Hub holds: rows as mappings, by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from reward_models.files import refuse_pointer
from rlhf_lines.data.json_rows import read_json
from rlhf_lines.data.splits import SPLITS
from rlhf_lines.errors import about, closest, reason


Rows = list[dict]

logger = logging.getLogger(__name__)

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".jsonl.gz": "json",
    ".json.gz": "json",
}
TABLES = (".csv", ".tsv")
OTHER_SPLITS = ("dev", "eval", "val", "valid")  # what people call a split that is not read
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.")  # as the Hub and datasets number them
SAVED = {"dataset_dict.json": "a DatasetDict", "state.json": "a Dataset"}  # what save_to_disk of datasets leaves


def read(source: str, *, subset: str | None = None, revision: str | None = None) -> dict[str, Rows]:
    """The rows of a file, a folder or a Hub id, by the splits that it has.

    A file is one split, `"train"`. A folder holds a split as `train.jsonl`, as shards `train-*.parquet`, or as a
    folder `train/` of shards, itself or in `data/`: so does a downloaded data set of the Hub. It may also be what
    `save_to_disk` of `datasets` wrote.

    Args:
        source: a file, a folder, or a Hub id `owner/name`.
        subset: a folder inside a folder or Hub data set; a local source may be that folder itself.
        revision: of a Hub data set.

    Raises:
        FileNotFoundError: there is no such source, or a folder without splits.
        ValueError: the file format is unknown, or a file is broken.
    """
    path = Path(source)
    if path.is_file():
        return {"train": _read([path])}
    if path.is_dir():
        folder = path / subset if subset and (path / subset).is_dir() else path
        if any((folder / name).is_file() for name in SAVED):
            return _saved(folder)
        found = {split: files for split in SPLITS if (files := _files_of(folder, split))}
        if not found:
            names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
            holds = f"; it holds {', '.join(names[:8])}: rename what is meant, or name the file itself" if names else ""
            raise FileNotFoundError(
                f"dataset folder {folder} has no train split: expected {folder / 'train.jsonl'}{holds}"
            )
        _tell_not_read(source, [name for name in OTHER_SPLITS if _files_of(folder, name)])
        return {split: _read(files) for split, files in found.items()}
    if _format_of(path) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"dataset file {source} does not exist{_meant(path)}")
    return _fetch(source, subset, revision)


def columns(rows: Rows) -> list[str]:
    """The names of the columns that any of the rows has, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in the first place that has any, in one format.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the place has the split in several forms.
    """
    for place in (folder, folder / "data"):
        patterns = [f"{split}{way}{suffix}" for suffix in FORMATS for way in ("", "-*", "/*")]
        forms = [files for pattern in patterns if (files := sorted(place.glob(pattern)))]
        if len(forms) > 1:
            raise ValueError(
                f"dataset folder {place} has the {split} split in several forms ({forms[0][0].name}, "
                f"{forms[1][0].name}): keep one of them, or name the file itself"
            )
        if forms:
            _check_shards(forms[0])
            return forms[0]
    return []


def _check_shards(files: Sequence[Path]) -> None:
    """Stop where files are numbered as parts of more than there are: `train-00000-of-00002.parquet`."""
    numbered = {path.name: match for path in files if (match := SHARD.search(path.name))}
    for count in {int(match["count"]) for match in numbered.values()}:
        there = {int(match["number"]) for match in numbered.values() if int(match["count"]) == count}
        lacking = sorted(set(range(count)) - there)
        if lacking:
            raise FileNotFoundError(
                f"dataset folder {files[0].parent} has {len(there)} of {count} shards, such as {files[0].name}; "
                f"number {lacking[0]} is missing: fetch the others, too"
            )


def _fetch(source: str, subset: str | None, revision: str | None) -> dict[str, Rows]:
    from datasets import load_dataset

    try:
        fetched = load_dataset(source, data_dir=subset, revision=revision)
    except Exception as error:  # offline, gated, mistyped: the library has an exception class for each
        raise FileNotFoundError(
            f"dataset {source} is neither a task, nor a local file or folder, nor a Hub data set that can be fetched "
            f"({reason(error)})"
        ) from error
    return _of_splits(fetched, source)


def _saved(folder: Path) -> dict[str, Rows]:
    from datasets import Dataset, load_from_disk

    with about(f"dataset folder {folder} cannot be read"):
        loaded = load_from_disk(str(folder))
        return {"train": loaded.to_list()} if isinstance(loaded, Dataset) else _of_splits(loaded, str(folder))


def _of_splits(loaded, source: str) -> dict[str, Rows]:
    found = {split: loaded[split].to_list() for split in SPLITS if split in loaded}
    if not found:
        raise FileNotFoundError(f"dataset {source} has the splits {', '.join(loaded)}, expected one of {SPLITS}")
    _tell_not_read(source, set(loaded) - set(found))
    return found


def _tell_not_read(source: str, names: Iterable[str]) -> None:
    if names := ", ".join(sorted(names)):
        logger.warning("%s: %s is not read: splits are called %s", source, names, ", ".join(SPLITS))


def _read(paths: list[Path]) -> Rows:
    format = _format_of(paths[0])
    if format is None:
        raise ValueError(
            f"dataset file {paths[0]} has the format {paths[0].suffix!r}, expected one of {', '.join(FORMATS)}"
            f"{'; datasets.Dataset.from_csv(file).to_json(other) converts it' if paths[0].suffix in TABLES else ''}"
        )
    if not any(path.stat().st_size for path in paths):
        raise ValueError(f"dataset file {paths[0]} is empty, expected rows")
    for path in paths:
        refuse_pointer(path)
    # Not load_dataset(), which reports every use to the Hub, also of a local file, and waits where there is none.
    reader: Callable[[Path], Rows] = {"json": read_json, "parquet": _read_parquet}[format]
    rows = [row for path in paths for row in reader(path)]
    if not rows:
        raise ValueError(f"dataset file {paths[0]} holds no rows")
    return rows


def _read_parquet(path: Path) -> Rows:
    from pyarrow import parquet

    with about(f"dataset file {path} cannot be read"):
        return parquet.read_table(path).to_pylist()


def _format_of(path: Path) -> str | None:
    return next((FORMATS[suffix] for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def _meant(path: Path) -> str:
    """The end of a sentence about a file that is not there: which one may be meant."""
    if not path.parent.is_dir():
        return f", nor does its folder {path.parent}"
    close = closest(path.name, (entry.name for entry in path.parent.iterdir()))
    return f"; did you mean {str(path.parent / close)!r}?" if close else ""
