"""The run store: every completion of a sweep with its scores, in one SQLite file.

A point is a spec in a group on a split; two points with one spec share its completions. There is one row per (spec,
prompt, sample) in `completions`, and one per reward in `scores`. Rows are committed in chunks, so a killed sweep
goes on where it was.

A run that writes keeps what it adds in a second file (SQLite's write-ahead log), so that it goes on while others read;
when it is done there is one file again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_lines.artifact import is_complete, partial_folder, read_record, whole_file
from rlhf_lines.completions import samples_policy
from rlhf_lines.disk import named_faults
from rlhf_lines.merge import MergeSpec


RUN_STORE, STAGE = "run.sqlite", "sweep"
FORMAT = 2
PAGE = 1024  # completions that are read at once
JOURNAL, LOG = "WAL", ("-wal", "-shm")  # while it is written, and the endings of the files beside it
PATIENCE, SHORT_PATIENCE = 600.0, 5.0  # seconds that a run waits for others to let go of the file; that a reader waits
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS specs (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS points (
    id INTEGER PRIMARY KEY, split TEXT NOT NULL, "group" TEXT NOT NULL, spec INTEGER NOT NULL REFERENCES specs,
    UNIQUE (split, "group", spec)
);
CREATE TABLE IF NOT EXISTS prompts (
    id INTEGER PRIMARY KEY, split TEXT NOT NULL, text TEXT NOT NULL, scored_text TEXT NOT NULL, UNIQUE (split, text)
);
CREATE TABLE IF NOT EXISTS completions (
    spec INTEGER NOT NULL REFERENCES specs, prompt INTEGER NOT NULL REFERENCES prompts, sample INTEGER NOT NULL,
    text TEXT NOT NULL, tokens INTEGER NOT NULL, token_ids TEXT NOT NULL, kl REAL NOT NULL,
    PRIMARY KEY (spec, prompt, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    spec INTEGER NOT NULL, prompt INTEGER NOT NULL, sample INTEGER NOT NULL, reward TEXT NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (spec, prompt, sample, reward)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS control_texts (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS control (
    spec INTEGER NOT NULL REFERENCES specs, text INTEGER NOT NULL REFERENCES control_texts, nats REAL NOT NULL,
    PRIMARY KEY (spec, text)
) WITHOUT ROWID;
"""
SHOWN = "CREATE TABLE IF NOT EXISTS shown (prompt INTEGER PRIMARY KEY REFERENCES prompts, more TEXT NOT NULL)"
EVALUATED = (
    "CREATE TABLE IF NOT EXISTS evaluations (spec INTEGER NOT NULL REFERENCES specs, task TEXT NOT NULL, "
    "found TEXT NOT NULL, PRIMARY KEY (spec, task)) WITHOUT ROWID"
)
UNSCORED = (
    "NOT EXISTS (SELECT 1 FROM scores s WHERE (s.spec, s.prompt, s.sample) = (c.spec, c.prompt, c.sample) "
    "AND s.reward = ?)"
)


class StoredPoint(NamedTuple):
    """One point: its id, its group, its spec, and the id of the spec, under which its completions are."""

    id: int
    group: str
    spec: MergeSpec
    spec_id: int


class Row(NamedTuple):
    """One completion: which spec, prompt and sample (ids of the store), what was written, and its scores by reward."""

    spec: int
    prompt: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    kl: float
    scores: dict[str, float]


class Unscored(NamedTuple):
    """A completion without a certain score: its ids, what is shown of its prompt, its text and its tokens."""

    spec: int
    prompt: int
    sample: int
    scored_text: str
    text: str
    token_ids: tuple[int, ...]


class StoredPrompt(NamedTuple):
    """What the policy read, and what reward models are shown of it."""

    text: str
    scored_text: str


class StoredText(NamedTuple):
    """A text outside the task: its id, itself, and how many of its tokens are predicted."""

    id: int
    text: str
    tokens: int


def has_begun(folder: str | Path) -> bool:
    """Whether a folder has a run store; one of a run that stopped before its first table is empty, and none."""
    return _says(folder, "SELECT count(*) FROM sqlite_master")


def has_measured(folder: str | Path) -> bool:
    """Whether a folder has a run store with a completion, from which a stopped run can go on."""
    return has_begun(folder) and _says(folder, "SELECT EXISTS (SELECT 1 FROM completions)")


def _says(folder: str | Path, query: str) -> bool:
    """Whether the run store of a folder answers with more than 0."""
    path = Path(folder) / RUN_STORE
    if not path.is_file():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=SHORT_PATIENCE)) as store:
        return store.execute(query).fetchone()[0] > 0
    return True  # it is damaged or locked, as whoever opens it is told


class Store:
    """An open run store; a context manager, which tells faults of the file and of its disk in one sentence.

    Args:
        folder: where `run.sqlite` is, or will be.
        reading: leave the file as it is, and stop where there is none. Without it the file is made if need be, and
            others may read while it is written.

    Raises:
        ValueError: the file is no run store of this format, or is damaged or locked.
        DiskFault: the disk is full, fails, or may not be written.
    """

    def __init__(self, folder: str | Path, *, reading: bool = False) -> None:
        self._path, self._reading = Path(folder) / RUN_STORE, reading
        with self._faults():
            self._db = sqlite3.connect(self._path, timeout=SHORT_PATIENCE)
        try:
            with self._faults():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        found, tables = self._one("PRAGMA user_version"), self._one("SELECT count(*) FROM sqlite_master")
        if tables and found != FORMAT:
            raise self._refusal(f"format {found}, and this version reads format {FORMAT}")
        if self._reading and not tables:
            raise self._refusal("it is empty")
        if (fault := self._one("PRAGMA quick_check(1)")) != "ok":
            raise self._refusal(f"it is damaged: {' '.join(fault.rpartition('***')[2].split())}")
        if not self._reading:
            # A file system without shared memory keeps what it has, and so does a file that somebody reads just now.
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute(f"PRAGMA journal_mode = {JOURNAL}")
            self._db.execute(f"PRAGMA busy_timeout = {int(1000 * PATIENCE)}")
        if not tables:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif not self._reading:
            # What cannot be written is told now, not when there is something to keep. A lock alone makes no journal.
            self._db.executescript(f"BEGIN IMMEDIATE; PRAGMA user_version = {FORMAT}; ROLLBACK;")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object = None, error: BaseException | None = None, _: object = None) -> None:
        try:
            if isinstance(error, sqlite3.Error):
                with self._faults():
                    raise error
        finally:
            self._db.close()

    def finish(self) -> None:
        """Close the store and leave one file, also where somebody reads it; for the only writer, when all is stored."""
        with self._faults(), contextlib.closing(self._db):
            self._db.execute("PRAGMA busy_timeout = 1000")
            try:
                self._db.execute("PRAGMA journal_mode = DELETE").fetchall()
                return
            except sqlite3.OperationalError as error:
                if not _is_of(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
            with whole_file(self._path) as whole:  # who reads the old files keeps them; they have no name then
                whole.unlink(missing_ok=True)
                self._db.execute("VACUUM INTO ?", (str(whole),))
                # The log has to go before the file gets its name, or SQLite would read it into that. Who is killed
                # between the two leaves the old file, to which the log is added here, as far as readers let it.
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._db.close()
                for ending in LOG:
                    self._path.with_name(RUN_STORE + ending).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Inside, what SQLite finds wrong with the file or its disk is told in one sentence."""
        try:
            with named_faults(self._path, kept="what was stored before is kept"):
                yield
        except sqlite3.Error as error:
            if _is_of(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ValueError(
                    f"{self._path} is locked by another process ({error}): wait until that has ended, and try again"
                ) from error
            if _is_of(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error):
                raise self._refusal(str(error)) from error
            raise

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"cannot open {self._path} as a run store ({reason}): expected the file that a sweep wrote; copy it again "
            "from where it is whole, or sweep again (--overwrite)"
        )

    def check(self, **facts) -> None:
        """Stop where a fact is kept that is not the same; those of which nothing is kept do not matter.

        Raises:
            ValueError: the store belongs to a run with other settings.
        """
        for key, value in facts.items():
            known, written = self._one("SELECT value FROM meta WHERE key = ?", key), json.dumps(value, sort_keys=True)
            if known not in (None, written):
                raise ValueError(
                    f"the run to be resumed had {key} {known}, now it is {written}: give the settings of that run, "
                    "or start again without --resume"
                )

    def remember(self, **facts) -> None:
        """Keep facts about the run (JSON values); a fact that is kept already must be the same.

        Raises:
            ValueError: the store belongs to a run with other settings.
        """
        self.check(**facts)
        with self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO meta VALUES (?, ?)",
                [(key, json.dumps(value, sort_keys=True)) for key, value in facts.items()],
            )

    def replace(self, **facts) -> None:
        """Keep facts about the run in place of what was kept under their names."""
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(key, json.dumps(value, sort_keys=True)) for key, value in facts.items()],
            )

    def recall(self, key: str, *default: Any) -> Any:
        """A fact that `remember` kept, or the default where there is none.

        Raises:
            ValueError: there is neither, so no sweep has begun here.
        """
        known = self._one("SELECT value FROM meta WHERE key = ?", key)
        if known is None and default:
            return default[0]
        if known is None:
            raise ValueError(
                f"{RUN_STORE} does not say its {key}: expected the output_dir of a finished rlhf-lines sweep"
            )
        return json.loads(known)

    def add_points(self, split: str, group: str, specs: Iterable[MergeSpec]) -> list[StoredPoint]:
        """The points of a group, in the order of the specs, adding those that are not there yet."""
        added = []
        with self._db:
            for spec in specs:
                text = json.dumps(spec.to_dict(), sort_keys=True)
                self._db.execute("INSERT OR IGNORE INTO specs (spec) VALUES (?)", (text,))
                spec_id = self._one("SELECT id FROM specs WHERE spec = ?", text)
                key = (split, group, spec_id)
                self._db.execute('INSERT OR IGNORE INTO points (split, "group", spec) VALUES (?, ?, ?)', key)
                point = self._one('SELECT id FROM points WHERE split = ? AND "group" = ? AND spec = ?', *key)
                added.append(StoredPoint(point, group, spec, spec_id))
        return added

    def add_prompts(self, split: str, prompts: Mapping[str, str]) -> list[int]:
        """The ids of the prompts, in their order, adding those that are not there yet.

        Args:
            split: which prompts these are.
            prompts: from what the policy reads to what reward models are shown.
        """
        with self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO prompts (split, text, scored_text) VALUES (?, ?, ?)",
                [(split, text, scored_text) for text, scored_text in prompts.items()],
            )
        ids = dict(self._db.execute("SELECT text, id FROM prompts WHERE split = ?", (split,)))
        return [ids[text] for text in prompts]

    def add_shown(self, shown: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep what reward models may be shown of prompts beside their text: JSON values by the ids of the prompts."""
        with self._db:
            self._db.execute(SHOWN)  # a store of an earlier version has no such table
            rows = [(prompt, json.dumps(more)) for prompt, more in shown.items()]
            self._db.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?)", rows)

    def shown(self) -> dict[int, dict[str, Any]]:
        """What `add_shown` kept, by the ids of the prompts."""
        if self._one("SELECT 1 FROM sqlite_master WHERE name = 'shown'") is None:
            return {}
        return {prompt: json.loads(more) for prompt, more in self._db.execute("SELECT prompt, more FROM shown")}

    def finished(self) -> set[tuple[int, int, int]]:
        """The (spec, prompt, sample) that are stored."""
        return set(self._db.execute("SELECT spec, prompt, sample FROM completions"))

    def add(self, rows: Iterable[Row]) -> None:
        """Store completions with their scores, all or none."""
        rows = list(rows)
        with self._db:
            self._db.executemany(
                "INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*row[:4], len(row.token_ids), json.dumps(row.token_ids), row.kl) for row in rows],
            )
            self._add_scores((*row[:3], reward, score) for row in rows for reward, score in row.scores.items())

    def _add_scores(self, scores: Iterable[tuple[int, int, int, str, float]]) -> None:
        self._db.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", scores)

    def points(self, split: str) -> list[StoredPoint]:
        """Every point of a split, in the order of their ids."""
        query = (
            'SELECT points.id, "group", specs.spec, specs.id FROM points JOIN specs ON specs.id = points.spec '
            "WHERE split = ? ORDER BY points.id"
        )
        return [
            StoredPoint(point, group, MergeSpec.from_dict(json.loads(spec)), spec_id)
            for point, group, spec, spec_id in self._db.execute(query, (split,))
        ]

    def scores(self, spec: int, split: str, rewards: Sequence[str]) -> np.ndarray:
        """The scores of a spec, mean over samples, `[prompts, rewards]`, in the order of prompt ids."""
        query = (
            "SELECT prompt, AVG(score) FROM scores JOIN prompts ON prompts.id = prompt "
            "WHERE spec = ? AND split = ? AND reward = ? GROUP BY prompt ORDER BY prompt"
        )
        return np.stack([self._column(query, spec, split, reward) for reward in rewards], axis=1)

    @property
    def log_ratio_name(self) -> str:
        """What `kl` of a completion, its log-ratio to the SFT model, is called: `log_ratio` where it is no estimate."""
        drawn = self.recall("temperature", 1.0), self.recall("top_k", None), self.recall("top_p", None)
        return "kl" if samples_policy(*drawn) else "log_ratio"

    def kl(self, spec: int, split: str) -> np.ndarray:
        """The KL to the SFT model of a spec, or its `log_ratio_name`, mean over samples, `[prompts]`."""
        query = (
            "SELECT prompt, AVG(kl) FROM completions JOIN prompts ON prompts.id = prompt "
            "WHERE spec = ? AND split = ? GROUP BY prompt ORDER BY prompt"
        )
        return self._column(query, spec, split)

    def specs(self) -> dict[int, MergeSpec]:
        """Every spec by its id."""
        query = "SELECT id, spec FROM specs ORDER BY id"
        return {spec_id: MergeSpec.from_dict(json.loads(spec)) for spec_id, spec in self._db.execute(query)}

    def splits(self) -> list[str]:
        """The splits that have points, in the order of their first."""
        return [split for (split,) in self._db.execute("SELECT split FROM points GROUP BY split ORDER BY MIN(id)")]

    def prompts(self, split: str) -> dict[int, StoredPrompt]:
        """The prompts of a split by their ids."""
        query = "SELECT id, text, scored_text FROM prompts WHERE split = ? ORDER BY id"
        return {prompt: StoredPrompt(*texts) for prompt, *texts in self._db.execute(query, (split,))}

    def rows(self, split: str, rewards: Sequence[str], *, tokens: bool = True) -> Iterator[Row]:
        """Yield every completion of a split with these scores, in the order of spec, prompt and sample.

        A page is read at a time: memory does not grow with the run. A score that is missing is left out of its row.
        Without `tokens` those of every row are empty.
        """
        return self._rows("p.split = ?", split, rewards, "c.token_ids" if tokens else "'[]'")

    def _rows(
        self, condition: str, value: Any, rewards: Sequence[str], token_ids: str = "c.token_ids"
    ) -> Iterator[Row]:
        columns = "".join(
            ", (SELECT score FROM scores s WHERE (s.spec, s.prompt, s.sample) = (c.spec, c.prompt, c.sample) "
            "AND reward = ?)"
            for _ in rewards
        )
        found = self._pages(f"c.text, {token_ids}, c.kl{columns}", condition, *rewards, value)
        for *key, text, token_ids, kl, in_order in ((*row[:6], row[6:]) for row in found):
            scores = {reward: score for reward, score in zip(rewards, in_order, strict=True) if score is not None}
            yield Row(*key, text, tuple(json.loads(token_ids)), kl, scores)

    def rows_of_length(self, tokens: int) -> Iterator[Row]:
        """Yield every completion of so many tokens or more, without its scores; see `rows`."""
        return self._rows("c.tokens >= ?", tokens, ())

    def last_tokens(self, *, shorter_than: int) -> set[int]:
        """The last tokens of all completions that have fewer tokens than this."""
        query = "SELECT DISTINCT json_extract(token_ids, '$[#-1]') FROM completions WHERE tokens < ?"
        return {token for (token,) in self._db.execute(query, (shorter_than,)) if token is not None}

    def rows_of(self, spec: int, rewards: Sequence[str]) -> Iterator[Row]:
        """Yield every completion of a spec with these scores, in the order of prompt and sample; see `rows`."""
        return self._rows("c.spec = ?", spec, rewards)

    def unscored(self, reward: str) -> Iterator[Unscored]:
        """Yield every completion without this score, in the order of spec, prompt and sample; see `rows`.

        Scores may be added meanwhile.
        """
        found = self._pages("p.scored_text, c.text, c.token_ids", UNSCORED, reward)
        return (Unscored(*row[:5], tuple(json.loads(row[5]))) for row in found)

    def count_unscored(self, reward: str) -> int:
        """How many completions have no such score."""
        return self._one(f"SELECT count(*) FROM completions c WHERE {UNSCORED}", reward)

    def has_scores(self, reward: str) -> bool:
        """Whether any completion has this score."""
        return self._one("SELECT 1 FROM scores WHERE reward = ? LIMIT 1", reward) is not None

    def are_answers(self, reward: str) -> bool:
        """Whether every single score of a reward is 0 or 1."""
        return self._one("SELECT 1 FROM scores WHERE reward = ? AND score NOT IN (0, 1) LIMIT 1", reward) is None

    def scored_splits(self, reward: str) -> list[str]:
        """The splits with completions that have this score."""
        found = self._db.execute(
            "SELECT DISTINCT split FROM scores JOIN prompts ON prompts.id = prompt WHERE reward = ?", (reward,)
        )
        return [split for (split,) in found]

    def add_scores(self, reward: str, scores: Iterable[tuple[int, int, int, float]]) -> None:
        """Store one more score of completions, all or none.

        Args:
            reward: its name.
            scores: (spec, prompt, sample, score) of each.
        """
        with self._db:
            self._add_scores((spec, prompt, sample, reward, score) for spec, prompt, sample, score in scores)

    def add_forgetting_texts(self, texts: Mapping[str, int]) -> list[int]:
        """The ids of texts outside the task, in their order, adding those that are not there yet.

        Args:
            texts: from a text to how many of its tokens are predicted.
        """
        with self._db:
            query = "INSERT OR IGNORE INTO control_texts (text, tokens) VALUES (?, ?)"
            self._db.executemany(query, texts.items())
        ids = {stored.text: stored.id for stored in self.forgetting_texts()}
        return [ids[text] for text in texts]

    def forgetting_texts(self) -> list[StoredText]:
        """The texts outside the task, in the order of their ids."""
        return [StoredText(*row) for row in self._db.execute("SELECT id, text, tokens FROM control_texts ORDER BY id")]

    def forgetting_tokens(self) -> np.ndarray:
        """How many tokens of every text outside the task are predicted, `[texts]`, in the order of ids."""
        return np.array([stored.tokens for stored in self.forgetting_texts()], dtype=np.float64)

    def finished_forgetting(self) -> set[tuple[int, int]]:
        """The (spec, text) whose -log p is stored."""
        return set(self._db.execute("SELECT spec, text FROM control"))

    def add_nll(self, rows: Iterable[tuple[int, int, float]]) -> None:
        """Store the (spec, text, -log p in nats) of texts outside the task, all or none."""
        with self._db:
            self._db.executemany("INSERT INTO control VALUES (?, ?, ?)", rows)

    def nll(self, spec: int) -> np.ndarray:
        """-log p of every text outside the task under a spec, in nats, `[texts]`, in the order of text ids."""
        return self._column("SELECT text, nats FROM control WHERE spec = ? ORDER BY text", spec)

    def nll_by_text(self, spec: int) -> dict[int, float]:
        """The same, by the ids of the texts."""
        return dict(self._db.execute("SELECT text, nats FROM control WHERE spec = ?", (spec,)))

    def add_evaluation(self, spec: int, task: str, found: Mapping[str, Any]) -> None:
        """Keep what a benchmark found of a spec, a JSON value, in place of what was kept before."""
        with self._db:
            self._db.execute(EVALUATED)  # a store of an earlier version, or of a run without any, has no such table
            self._db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?)", (spec, task, json.dumps(found)))

    def evaluations(self) -> dict[str, dict[int, dict[str, Any]]]:
        """What `add_evaluation` kept, by task, in the order of their names, and by the id of the spec."""
        if self._one("SELECT 1 FROM sqlite_master WHERE name = 'evaluations'") is None:
            return {}
        kept: dict[str, dict[int, dict[str, Any]]] = {}
        for task, spec, found in self._db.execute("SELECT task, spec, found FROM evaluations ORDER BY task, spec"):
            kept.setdefault(task, {})[spec] = json.loads(found)
        return kept

    def drop_evaluations(self, task: str) -> None:
        """Forget what a benchmark found of all specs."""
        if self.evaluations():
            with self._db:
                self._db.execute("DELETE FROM evaluations WHERE task = ?", (task,))

    def _pages(self, columns: str, condition: str, *values) -> Iterator[tuple]:
        """Yield spec, prompt, sample and more columns of completions `c` and their prompts `p`, by primary key.

        No statement is left open between pages, which would keep other processes from writing.
        """
        # CROSS JOIN keeps completions outside, whose key is the order: nothing is sorted.
        query = (
            f"SELECT c.spec, c.prompt, c.sample, {columns} FROM completions c CROSS JOIN prompts p ON p.id = c.prompt "
            f"WHERE {condition} AND (c.spec, c.prompt, c.sample) > (?, ?, ?) ORDER BY c.spec, c.prompt, c.sample "
            f"LIMIT {PAGE}"
        )
        after = (-1, -1, -1)
        while page := self._db.execute(query, (*values, *after)).fetchall():
            yield from page
            after = page[-1][:3]

    def _one(self, query: str, *keys):
        """The first value of the first row, or None."""
        row = self._db.execute(query, keys).fetchone()
        return None if row is None else row[0]

    def _column(self, query: str, *keys) -> np.ndarray:
        return np.array([value for _, value in self._db.execute(query, keys)], dtype=np.float64)


def _is_of(error: sqlite3.Error, *kinds: int) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in kinds  # the low byte is the kind


def check_stage(folder: Path) -> None:
    """Stop with a ValueError where the folder is of another stage: learn has a run store, too."""
    if (stage := read_record(folder).get("stage", STAGE)) != STAGE:
        raise ValueError(f"{folder} is of rlhf-lines {stage}: expected the output_dir of rlhf-lines {STAGE}")


def open_finished(folder: str | Path, *, reading: bool = True) -> Store:
    """The run store of a finished sweep.

    Args:
        folder: of the sweep.
        reading: see `Store`.

    Raises:
        FileNotFoundError: the folder has no run store, or belongs to a sweep that has not finished.
        ValueError: the folder is of another stage, or the file is no run store of this format.
    """
    folder = Path(folder)
    if not (folder / RUN_STORE).is_file():
        raise FileNotFoundError(f"{folder} has no {RUN_STORE}: expected the output_dir of rlhf-lines sweep")
    if not is_complete(folder):
        raise FileNotFoundError(
            f"{folder} is of a sweep that has not finished: go on with it by rlhf-lines sweep --resume, with its config"
        )
    check_stage(folder)
    if (folder / RUN_STORE).stat().st_size == 0:
        reading = True  # refused there, and not filled
    return Store(folder, reading=reading)


def open_stored(folder: str | Path) -> Store:
    """The run store of a sweep into this folder, to be read: of a finished one or else of one that was stopped.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: as `open_finished`; or what was stopped was another stage, or had stored nothing.
    """
    stopped = partial_folder(folder)
    if (Path(folder) / RUN_STORE).is_file() or not has_begun(stopped):
        return open_finished(folder)
    store = Store(stopped, reading=True)
    if store.recall("engine", None) is None:
        store.__exit__()
        raise ValueError(f"what was stopped on its way to {folder} is no sweep, or had stored nothing yet")
    return store
