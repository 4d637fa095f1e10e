"""What a disk refuses is one sentence that names the file, whichever library met it."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_lines.artifact import new_folder, write_record, write_whole
from rlhf_lines.disk import DiskFault, disk_fault, named_faults


@pytest.fixture
def largest_file():
    """A function that limits the size of files, as a full disk would, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def by_torch(folder: Path) -> None:
    torch.save({"a": torch.zeros(1 << 16)}, folder / "file")


def by_safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(1 << 16)}, folder / "file")


def by_tokenizers(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word{i}": i for i in range(9999)}, unk_token="word0")).save(str(folder / "file"))


def by_pyarrow(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": torch.rand(1 << 16).numpy()}), folder / "file")


def by_sqlite(folder: Path) -> None:
    database = sqlite3.connect(folder / "file")
    try:
        database.execute("CREATE TABLE a (b)")
        database.executemany("INSERT INTO a VALUES (?)", [("text" * 999,)] * 999)
        database.commit()
    finally:
        database.close()


def by_hand(folder: Path) -> None:
    (folder / "file").write_text("text" * 99999)


@pytest.mark.parametrize("write", [by_torch, by_safetensors, by_tokenizers, by_pyarrow, by_sqlite, by_hand])
def test_a_disk_without_space_is_a_sentence_and_leaves_nothing(tmp_path, largest_file, write):
    out = tmp_path / "out"
    with pytest.raises(DiskFault) as caught, new_folder(out) as folder:
        largest_file(1 << 14)
        write(folder)
    said = str(caught.value)
    assert str(out) in said or str(folder) in said
    assert "nothing was left under a final name" in said and "\n" not in said and list(tmp_path.iterdir()) == []
    if write is not by_sqlite:  # which only says that writing failed
        assert said.startswith("no space left while writing ") and "free some space" in said


def test_what_can_go_on_says_so(tmp_path, largest_file):
    with (
        pytest.raises(DiskFault, match="kept for --resume"),
        new_folder(tmp_path / "out", leave_partial=True) as folder,
    ):
        largest_file(1 << 14)
        by_hand(folder)


def of_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


def of_copying(*numbers: int) -> shutil.Error:
    """What `shutil.copytree` raises that met these."""
    met = [("from", "to", str(OSError(number, os.strerror(number), "to"))) for number in numbers]
    return shutil.Error(met)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space", "read", None, "written"), "no space left while writing written ("),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x may not be read or written (Permission denied)"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x may not be read or written (Read-only file system)"),
        (OSError(errno.EIO, "Input/output error"), "reading or writing place failed ("),
        (OSError(errno.EMFILE, "Too many open files", b"x"), "x cannot be opened (Too many open files)"),
        (of_sqlite(sqlite3.SQLITE_IOERR_READ), "reading or writing place failed ("),
        (of_sqlite(sqlite3.SQLITE_IOERR_SHMSIZE), "no space left while writing place ("),
        (Exception("I/O error: No space left on device (os error 28)"), "no space left while writing place ("),
        (of_copying(errno.ENOENT, errno.ENOSPC), "no space left while writing place ("),
    ],
    ids=str,
)
def test_a_fault_names_the_file_or_else_the_folder(error, words):
    with pytest.raises(DiskFault) as caught, named_faults("place"):
        raise error
    assert str(caught.value).startswith(words)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # other processes hear of it


def test_a_library_that_wraps_the_fault_is_seen_through():
    try:
        raise RuntimeError("An error occurred while generating the dataset") from OSError(errno.ENOSPC, "No space", "x")
    except RuntimeError as error:
        assert disk_fault(error).filename == "x"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a sentence"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        sqlite3.IntegrityError("x"),
        of_copying(errno.ENOENT),
    ],
)
def test_anything_else_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, named_faults("place"):
        raise error
    assert caught.value is error and disk_fault(error) is None


def test_a_file_that_cannot_be_written_whole_is_as_before(tmp_path, largest_file):
    write_whole(tmp_path / "file", "before")
    (tmp_path / ".new.file").write_text("left by a run that was killed")
    largest_file(1 << 14)
    with pytest.raises(DiskFault, match=r"no space left while writing .*file is as it was before"):
        write_whole(tmp_path / "file", "after" * 9999)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "before"


def test_what_a_killed_run_left_beside_a_file_goes_with_the_next(tmp_path):
    child = os.fork()
    if child == 0:
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_record(tmp_path, "sft", {"seed": 1})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".new.config.yaml"]
    write_record(tmp_path, "sft", {"seed": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "rlhf_lines.json"]
