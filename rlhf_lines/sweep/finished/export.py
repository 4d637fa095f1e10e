"""Verb `export`: the run store of a finished sweep as tables, in Parquet or CSV."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.store import Store, open_finished


FORMATS = {"parquet": ("parquet",), "csv": ("csv",), "both": ("parquet", "csv")}
BATCH = 4096  # rows in memory; of Parquet, in a row group
INTEGERS, NUMBER, TEXT, INTEGER = "integers", "number", "text", "integer"


class Table(NamedTuple):
    """A table to be written: its name, the types of its columns, and its rows, which are made as they are read."""

    name: str
    columns: dict[str, str]
    rows: Iterable[dict[str, Any]]


def export(
    folder: str | Path, output_dir: str | Path | None = None, *, format: str = "parquet", overwrite: bool = False
) -> list[Path]:
    """Write the tables of a finished sweep, and return their paths.

    `completions` has a row per (split, spec, prompt, sample), `points` one per point, and `control`, where texts
    outside the task were measured, one per (spec, text). All files are complete before the first takes its name; memory
    does not grow with the run.

    Args:
        folder: the `output_dir` of a sweep.
        output_dir: where to write; None is `export` in that folder.
        format: `"parquet"`, `"csv"` or `"both"`.
        overwrite: replace files of these names.

    Raises:
        FileNotFoundError: there is no finished sweep.
        FileExistsError: a file is there already and `overwrite` is false.
        ValueError: the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected parquet, csv or both")
    target = Path(folder) / "export" if output_dir is None else Path(output_dir)
    with open_finished(folder) as store:
        tables = _tables(store)
        paths = [target / f"{name}.{suffix}" for name in tables for suffix in FORMATS[format]]
        _check_free(target, paths, overwrite=overwrite)
        target.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".export.", dir=target))
        try:
            for path in paths:
                WRITERS[path.suffix](tables[path.stem](), hidden / path.name)
            for path in paths:
                (hidden / path.name).replace(path)
        finally:
            shutil.rmtree(hidden)
    return paths


def _check_free(target: Path, paths: list[Path], *, overwrite: bool) -> None:
    above = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise FileExistsError(f"output_dir {target} cannot be made, because {above} is a file: give a folder")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists: choose another output_dir, or add --overwrite to replace it")


def _tables(store: Store) -> dict[str, Any]:
    """Functions that make the tables, by name."""
    tables = {"completions": lambda: _completions(store), "points": lambda: _points(store)}
    if store.finished_forgetting():
        tables["control"] = lambda: _forgetting(store)
    return tables


def _completions(store: Store) -> Table:
    rewards = store.recall("reward_names")
    num_policies = _num_policies(store)
    columns = {
        "split": TEXT,
        "spec": INTEGER,
        "prompt": INTEGER,
        "sample": INTEGER,
        "prompt_text": TEXT,
        "completion": TEXT,
        "tokens": INTEGER,
        "token_ids": INTEGERS,
        "kl": NUMBER,
        **_score_columns(rewards),
        **_spec_columns(num_policies),
    }

    def rows() -> Iterator[dict[str, Any]]:
        specs = {spec_id: _spec_values(spec, num_policies) for spec_id, spec in store.specs().items()}
        for split in store.splits():
            prompts = store.prompts(split)
            for row in store.rows(split, rewards):
                yield {
                    "split": split,
                    "spec": row.spec,
                    "prompt": row.prompt,
                    "sample": row.sample,
                    "prompt_text": prompts[row.prompt].text,
                    "completion": row.text,
                    "tokens": len(row.token_ids),
                    "token_ids": row.token_ids,
                    "kl": row.kl,
                    **{_score_column(reward): row.scores[reward] for reward in rewards},
                    **specs[row.spec],
                }

    return Table("completions", columns, rows())


def _points(store: Store) -> Table:
    rewards = store.recall("reward_names")
    num_policies = _num_policies(store)
    columns = {
        "point": INTEGER,
        "split": TEXT,
        "group": TEXT,
        "spec": INTEGER,
        **_spec_columns(num_policies),
        "prompts": INTEGER,
        **_score_columns(rewards),
        "kl": NUMBER,
    }

    def rows() -> Iterator[dict[str, Any]]:
        for split in store.splits():
            for point in store.points(split):
                scores = store.scores(point.spec_id, split, rewards)  # [prompts, rewards]
                means = scores.mean(axis=0).tolist()
                yield {
                    "point": point.id,
                    "split": split,
                    "group": point.group,
                    "spec": point.spec_id,
                    **_spec_values(point.spec, num_policies),
                    "prompts": len(scores),
                    **dict(zip(map(_score_column, rewards), means, strict=True)),
                    "kl": float(store.kl(point.spec_id, split).mean()),
                }

    return Table("points", columns, rows())


def _forgetting(store: Store) -> Table:
    num_policies = _num_policies(store)
    columns = {
        "spec": INTEGER,
        "text": INTEGER,
        "control_text": TEXT,
        "tokens": INTEGER,
        "nats": NUMBER,
        **_spec_columns(num_policies),
    }

    def rows() -> Iterator[dict[str, Any]]:
        texts = store.forgetting_texts()
        for spec_id, spec in store.specs().items():
            nll = store.nll(spec_id).tolist()
            if not nll:  # a spec that only validation has is not measured
                continue
            for text, value in zip(texts, nll, strict=True):
                yield {
                    "spec": spec_id,
                    "text": text.id,
                    "control_text": text.text,
                    "tokens": text.tokens,
                    "nats": value,
                    **_spec_values(spec, num_policies),
                }

    return Table("control", columns, rows())


def _num_policies(store: Store) -> int:
    return max(len(spec.weights) for spec in store.specs().values())


def _score_column(reward: str) -> str:
    return f"score_{reward}"


def _score_columns(rewards: list[str]) -> dict[str, str]:
    return {_score_column(reward): NUMBER for reward in rewards}


def _spec_columns(num_policies: int) -> dict[str, str]:
    weights = {f"weight_{k}": NUMBER for k in range(1, num_policies + 1)}
    return {"rule": TEXT, **weights, "alpha": NUMBER, "beta": NUMBER, "schedule": TEXT, "options": TEXT}


def _spec_values(spec: MergeSpec, num_policies: int) -> dict[str, Any]:
    """The columns of a spec: missing weights are 0; alpha is null where it is `auto`."""
    weights = (*spec.weights, *(0.0,) * (num_policies - len(spec.weights)))
    return {
        "rule": spec.rule,
        **{f"weight_{k}": weight for k, weight in enumerate(weights, start=1)},
        "alpha": None if spec.alpha == "auto" else spec.alpha,
        "beta": spec.beta,
        "schedule": spec.schedule,
        "options": json.dumps(spec.options, sort_keys=True),
    }


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _write_parquet(table: Table, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {INTEGER: pa.int64(), NUMBER: pa.float64(), TEXT: pa.string(), INTEGERS: pa.list_(pa.int32())}
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])
    with contextlib.closing(parquet.ParquetWriter(path, schema)) as writer:
        for batch in _batches(table.rows):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _write_csv(table: Table, path: Path) -> None:
    """Write RFC 4180: fields with quotes, commas or line breaks are quoted, floats have the digits that give them back.

    Not pyarrow's writer, which knows no lists.
    """
    lists = [name for name, kind in table.columns.items() if kind == INTEGERS]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table.columns)
        writer.writeheader()
        for row in table.rows:
            writer.writerow({**row, **{name: json.dumps(row[name]) for name in lists}})


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv}
