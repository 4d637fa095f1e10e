"""What is kept of the sweeps of a study: run store, front, config and record of each, in one archive.

Completions of validation prompts are kept as scores alone, texts outside the task as their source and a hash. Where a
task's prompts are not ours to pass on, they are kept as hashes, and the example that a page shows is left out. Of
folders that models and data lie in, the last name is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from rlhf_lines.artifact import CONFIG, RECORD
from rlhf_lines.pareto.schema import FILE_NAME
from rlhf_lines.sweep.finished.front import front_of
from rlhf_lines.sweep.store import RUN_STORE


FOLDERS = re.compile(r'(?<=[":])/(?:[^"/]+/)+')  # of absolute paths in JSON, and behind `similarity:`
FOLDERS_IN_YAML = re.compile(r"(?m)(?<=[:-] )/(?:[^/\n]+/)+")
LEARNED = ("method", "aim", "space", "prompts", "candidates", "validation", "differences", "profiles")
BLANK_VALIDATION = """
UPDATE completions SET text = '', token_ids = '[]' WHERE prompt IN (SELECT id FROM prompts WHERE split = 'validation')
"""


def keep(run_dir: Path, control: Path, archive: Path, *, hide_prompts: bool) -> None:
    """Write what is kept of a finished sweep.

    Args:
        run_dir: of the sweep.
        control: JSONL of the texts outside the task, with their sources; none where there is no such file.
        archive: the `.tar.xz` to write; the same content gives the same bytes.
        hide_prompts: keep hashes in place of prompts.
    """
    lines = control.read_text(encoding="utf-8").splitlines() if control.is_file() else []
    sources = {row["text"]: row["source"] for row in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / RUN_STORE
        with contextlib.closing(sqlite3.connect(copy)) as store:
            with contextlib.closing(sqlite3.connect(run_dir / RUN_STORE)) as original:
                original.backup(store)
            store.create_function("sha256", 1, _sha256, deterministic=True)
            store.create_function("source", 1, lambda text: f"{sources[text]} {_sha256(text)}", deterministic=True)
            store.create_function("last_names", 1, lambda text: FOLDERS.sub("", text), deterministic=True)
            store.execute(BLANK_VALIDATION)
            store.execute("UPDATE meta SET value = last_names(value)")
            store.execute("UPDATE control_texts SET text = source(text)")
            if hide_prompts:
                store.execute("UPDATE prompts SET text = sha256(text), scored_text = sha256(text)")
                store.execute("DROP TABLE IF EXISTS shown")
                store.execute("DELETE FROM meta WHERE key = 'example'")
            store.commit()
            store.execute("PRAGMA journal_mode = DELETE")
            store.execute("VACUUM")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz", preset=9) as packed:
            for path in (copy, *(run_dir / name for name in (FILE_NAME, RECORD, CONFIG))):
                content = path.read_bytes()
                if path.name == CONFIG:
                    content = without_folders(content.decode()).encode()
                entry = tarfile.TarInfo(path.name)
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


def without_folders(config: str) -> str:
    """A config file with the last names alone of what has an absolute path."""
    return FOLDERS_IN_YAML.sub("", config)


def keep_learned(folder: Path, path: Path) -> None:
    """Write what the record of a finished `learn` says it found."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: record[key] for key in LEARNED}, indent=1) + "\n", encoding="utf-8")


def unpack(archive: Path, folder: Path) -> Path:
    """The folder of a kept sweep, made below `folder`, whose front is made anew if it is that of an older version."""
    run_dir = folder / archive.parent.parent.name / archive.parent.name / archive.name.removesuffix(".tar.xz")
    run_dir.mkdir(parents=True)
    with tarfile.open(archive, "r:xz") as packed:
        packed.extractall(run_dir, filter="data")
    front_of(run_dir)
    return run_dir


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
