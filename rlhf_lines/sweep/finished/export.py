"""Verb `export`: the run store of a finished sweep as tables, in Parquet or CSV."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lines.disk import named_faults
from rlhf_lines.lock import only_writer
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.front import measure_point
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import SFT
from rlhf_lines.pareto.spreadsheet import measured_columns, measured_row
from rlhf_lines.sweep.finished.front import answers_of, asked_metrics, measured_points, metrics_of, objectives_of
from rlhf_lines.sweep.store import Store, open_finished


FORMATS = {"parquet": ("parquet",), "csv": ("csv",), "both": ("parquet", "csv")}
BATCH = 4096  # rows in memory; of Parquet, in a row group
INTEGERS, NUMBER, TEXT, INTEGER = "integers", "number", "text", "integer"


class Table(NamedTuple):
    """A table to be written: the types of its columns, and its rows in their order, which are made as they are read."""

    columns: dict[str, str]
    rows: Iterable[tuple]


def export(
    folder: str | Path, output_dir: str | Path | None = None, *, format: str = "parquet", overwrite: bool = False
) -> list[Path]:
    """Write the tables of a finished sweep, and return their paths.

    `completions` has a row per (split, spec, prompt, sample), `points` one per point of all splits, measured as in
    `front.json`, and `control`, where texts outside the task were measured, one per (spec, text). All files are
    complete before the first takes its name.

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
    with only_writer(folder), only_writer(target), open_finished(folder) as store:
        tables = _tables(store)
        paths = [target / f"{name}.{suffix}" for name in tables for suffix in FORMATS[format]]
        _check_free(target, paths, overwrite=overwrite)
        with named_faults(target, kept="no table was written"):
            hidden = target / ".export.partial"
            shutil.rmtree(hidden, ignore_errors=True)  # of a run that was killed
            made = [above for above in hidden.parents if not above.exists()]  # the deepest first
            try:
                hidden.mkdir(parents=True)
                for path in paths:
                    WRITERS[path.suffix](tables[path.stem](), hidden / path.name)
                for path in paths:
                    (hidden / path.name).replace(path)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
                for above in made:
                    with contextlib.suppress(OSError):  # it has the tables now
                        above.rmdir()
    return paths


def _check_free(target: Path, paths: list[Path], *, overwrite: bool) -> None:
    above = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise FileExistsError(f"output_dir {target} cannot be made, because {above} is a file: give a folder")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists: choose another output_dir, or add --overwrite to replace it")


def _tables(store: Store) -> dict[str, Callable[[], Table]]:
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
        store.log_ratio_name: NUMBER,
        **_score_columns(rewards),
        **_spec_columns(num_policies),
    }

    def rows() -> Iterator[tuple]:
        specs = {spec_id: _spec_values(spec, num_policies) for spec_id, spec in store.specs().items()}
        for split in store.splits():
            prompts = store.prompts(split)
            for row in store.rows(split, rewards):
                scores = [row.scores.get(reward) for reward in rewards]
                text, ids = prompts[row.prompt].text, row.token_ids
                yield split, *row[:3], text, row.text, len(ids), ids, row.kl, *scores, *specs[row.spec]

    return Table(columns, rows())


def _points(store: Store) -> Table:
    objectives, metrics = objectives_of(store), metrics_of(store)
    asked, answers = asked_metrics(store), answers_of(store)
    num_policies = _num_policies(store)
    resampling = Resampling(seed=store.recall("seed"))
    columns = {
        "point": INTEGER,
        "split": TEXT,
        "group": TEXT,
        "spec": INTEGER,
        **_spec_columns(num_policies),
        "prompts": INTEGER,
        **dict.fromkeys(measured_columns(objectives, metrics, asked), NUMBER),
    }

    def rows() -> Iterator[tuple]:
        for split in store.splits():
            points, measurable = measured_points(store, split), metrics_of(store, split)
            sft = next((point.behaviour for point in points if point.group == SFT), None)
            for stored, point in zip(store.points(split), points, strict=True):
                options = {"further": metrics, "asked": asked, "answers": answers}
                measured = measure_point(point, sft, objectives, measurable, resampling, **options)
                found = measured_row(measured, objectives, metrics, asked).values()
                spec = _spec_values(stored.spec, num_policies)
                yield stored.id, split, stored.group, stored.spec_id, *spec, measured["prompts"], *found

    return Table(columns, rows())


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

    def rows() -> Iterator[tuple]:
        texts = store.forgetting_texts()
        for spec_id, spec in store.specs().items():
            nll = store.nll(spec_id).tolist()
            if not nll:  # a spec that only validation has is not measured
                continue
            for text, value in zip(texts, nll, strict=True):
                yield spec_id, *text, value, *_spec_values(spec, num_policies)

    return Table(columns, rows())


def _num_policies(store: Store) -> int:
    return max(len(spec.weights) for spec in store.specs().values())


def _score_columns(rewards: list[str]) -> dict[str, str]:
    return {f"score_{reward}": NUMBER for reward in rewards}


def _spec_columns(num_policies: int) -> dict[str, str]:
    weights = {f"weight_{k}": NUMBER for k in range(1, num_policies + 1)}
    return {"rule": TEXT, **weights, "alpha": NUMBER, "beta": NUMBER, "schedule": TEXT, "options": TEXT, "lines": TEXT}


def _spec_values(spec: MergeSpec, num_policies: int) -> tuple:
    """The values of `_spec_columns`: missing weights are 0; alpha is null where it is `auto`."""
    weights = (*spec.weights, *(0.0,) * (num_policies - len(spec.weights)))
    alpha = None if spec.alpha == "auto" else spec.alpha
    return spec.rule, *weights, alpha, spec.beta, spec.schedule, json.dumps(spec.options, sort_keys=True), spec.lines


def _write_parquet(table: Table, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {INTEGER: pa.int64(), NUMBER: pa.float64(), TEXT: pa.string(), INTEGERS: pa.list_(pa.int32())}
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])
    rows = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    with contextlib.closing(parquet.ParquetWriter(path, schema)) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _write_csv(table: Table, path: Path) -> None:
    """Write RFC 4180: fields with quotes, commas or line breaks are quoted, floats have the digits that give them back.

    Not pyarrow's writer, which knows no lists.
    """
    lists = [kind == INTEGERS for kind in table.columns.values()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        for row in table.rows:
            writer.writerow(json.dumps(value) if a_list else value for a_list, value in zip(lists, row, strict=True))


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv}
