"""The run store: every completion of a sweep with its scores, in one SQLite file.

One row per (point, prompt, sample) in ``completions``, one per reward in ``scores``. Rows are committed in chunks, so a
killed sweep goes on where it was.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_lines.merge import MergeSpec


FILE = "run.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS points (
    id INTEGER PRIMARY KEY, split TEXT NOT NULL, "group" TEXT NOT NULL, spec TEXT NOT NULL,
    UNIQUE (split, "group", spec)
);
CREATE TABLE IF NOT EXISTS prompts (
    id INTEGER PRIMARY KEY, split TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (split, text)
);
CREATE TABLE IF NOT EXISTS completions (
    point INTEGER NOT NULL REFERENCES points, prompt INTEGER NOT NULL REFERENCES prompts, sample INTEGER NOT NULL,
    text TEXT NOT NULL, tokens INTEGER NOT NULL, kl REAL NOT NULL,
    PRIMARY KEY (point, prompt, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    point INTEGER NOT NULL, prompt INTEGER NOT NULL, sample INTEGER NOT NULL, reward TEXT NOT NULL,
    score REAL NOT NULL,
    PRIMARY KEY (point, prompt, sample, reward)
) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """One completion: which point, prompt and sample, what was written, and its scores by reward."""

    point: int
    prompt: int
    sample: int
    text: str
    tokens: int
    kl: float
    scores: dict[str, float]


class Store:
    """An open run store; a context manager.

    Args:
        folder: where ``run.sqlite`` is or will be.

    Raises:
        ValueError: the file is there and is no database.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / FILE
        self._db = sqlite3.connect(path)
        try:
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(
                f"cannot open {path} as a run store ({error}): expected the file that a sweep wrote"
            ) from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_) -> None:
        self._db.close()

    def remember(self, **facts) -> None:
        """Keep facts about the run (JSON values); a fact that is kept already must be the same.

        Raises:
            ValueError: the store belongs to a run with other settings.
        """
        for key, value in facts.items():
            written = json.dumps(value, sort_keys=True)
            known = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            if known is not None and known[0] != written:
                raise ValueError(
                    f"the run to be resumed had {key} {known[0]}, now it is {written}: give the settings of that run, "
                    "or start again without --resume"
                )
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, written))
        self._db.commit()

    def recall(self, key: str):
        """Return a fact that ``remember`` kept.

        Raises:
            ValueError: there is no such fact, so no sweep has begun here.
        """
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise ValueError(f"{FILE} does not say its {key}: expected the output_dir of a finished rlhf-lines sweep")
        return json.loads(row[0])

    def add_points(self, split: str, group: str, specs: Iterable[MergeSpec]) -> list[tuple[int, MergeSpec]]:
        """Return (id, spec) of every spec of a group, adding those that are not there yet."""
        added = []
        for spec in specs:
            key = (split, group, json.dumps(spec.to_dict(), sort_keys=True))
            self._db.execute('INSERT OR IGNORE INTO points (split, "group", spec) VALUES (?, ?, ?)', key)
            query = 'SELECT id FROM points WHERE split = ? AND "group" = ? AND spec = ?'
            added.append((self._db.execute(query, key).fetchone()[0], spec))
        self._db.commit()
        return added

    def add_prompts(self, split: str, texts: Sequence[str]) -> list[int]:
        """Return the ids of the prompts, in their order, adding those that are not there yet."""
        self._db.executemany("INSERT OR IGNORE INTO prompts (split, text) VALUES (?, ?)", [(split, t) for t in texts])
        self._db.commit()
        ids = dict(self._db.execute("SELECT text, id FROM prompts WHERE split = ?", (split,)))
        return [ids[text] for text in texts]

    def finished(self) -> set[tuple[int, int, int]]:
        """Return the (point, prompt, sample) that are stored."""
        return set(self._db.execute("SELECT point, prompt, sample FROM completions"))

    def add(self, rows: Iterable[Row]) -> None:
        """Store completions with their scores, all or none."""
        rows = list(rows)
        with self._db:
            self._db.executemany("INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?)", [row[:6] for row in rows])
            self._db.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?)",
                [(*row[:3], reward, score) for row in rows for reward, score in row.scores.items()],
            )

    def points(self, split: str) -> list[tuple[int, str, MergeSpec]]:
        """Return (id, group, spec) of every point of a split."""
        query = 'SELECT id, "group", spec FROM points WHERE split = ? ORDER BY id'
        return [
            (i, group, MergeSpec.from_dict(json.loads(spec))) for i, group, spec in self._db.execute(query, (split,))
        ]

    def scores(self, point: int, rewards: Sequence[str]) -> np.ndarray:
        """Return the scores of a point, mean over samples, ``[prompts, rewards]``, in the order of prompt ids."""
        columns = [self._column("SELECT prompt, AVG(score) FROM scores WHERE point = ? AND reward = ?", point, r)
                   for r in rewards]  # fmt: skip
        return np.stack(columns, axis=1)

    def kl(self, point: int) -> np.ndarray:
        """Return the KL to the SFT model of a point, mean over samples, ``[prompts]``."""
        return self._column("SELECT prompt, AVG(kl) FROM completions WHERE point = ?", point)

    def _column(self, query: str, *keys) -> np.ndarray:
        rows = self._db.execute(f"{query} GROUP BY prompt ORDER BY prompt", keys)
        return np.array([value for _, value in rows], dtype=np.float64)
