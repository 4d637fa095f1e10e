"""Texts outside a task, by which a study measures what merged policies forget."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from stages import SWEEP

from rlhf_lines import data


CODE_LINES = 20


def control_texts(other: str, hh_path: str | None, count: int = SWEEP["control_texts"]) -> Iterator[dict[str, str]]:
    """Rows of text outside the task, with their source: half of them code, half of the other task where it can be read.

    Code is the middle of source files of the standard library, evenly among all; the other task is read as
    demonstrations of its test split.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in files[:: len(files) // (count // 2)][: count // 2]:
        lines = path.read_text(encoding="utf-8").splitlines()
        middle = len(lines) // 2
        yield {"source": "code", "text": "\n".join(lines[middle : middle + CODE_LINES])}
    if other == "hh":
        if hh_path is None:
            return
        shown = data.load("hh_rlhf", "demonstrations", "test", dataset_path=hh_path, max_samples=count // 2)
    else:
        shown = data.load("docstring_sentences", "demonstrations", "test", max_samples=count // 2)
    for row in shown:
        yield {"source": other, "text": row["prompt"] + row["completion"]}
