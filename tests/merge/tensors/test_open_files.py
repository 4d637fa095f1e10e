"""Files that are opened when needed and closed when others are."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_lines.merge.tensors import open_files
from rlhf_lines.merge.tensors.open_files import OpenFile


def test_few_are_open_and_every_thread_reads_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "MOST", 3)
    paths = [tmp_path / str(i) for i in range(40)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 8)
    files = [OpenFile(path, os.O_RDONLY) for path in paths]
    most = []

    def read(i: int) -> bytes:
        with files[i % 40].descriptor() as descriptor:
            most.append(len(open_files._open))
            return os.pread(descriptor, 8, 0)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(4000)))
    assert found == [bytes([i % 40]) * 8 for i in range(4000)] and max(most) <= 3 + 8
    for file in files:
        file.close()
        file.close()  # what was closed meanwhile is closed
    assert not open_files._open


def test_a_file_that_was_replaced_meanwhile_is_not_read_for_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "MOST", 0)
    (tmp_path / "a").write_text("before")
    file = OpenFile(tmp_path / "a", os.O_RDONLY)
    OpenFile(tmp_path / "a", os.O_RDONLY).close()  # which closes the first
    (tmp_path / "b").write_text("after")
    (tmp_path / "b").replace(tmp_path / "a")
    with pytest.raises(ValueError, match="a' was changed while it was read: start again"), file.descriptor():
        pass
    assert not open_files._open


def test_what_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "MOST", 1)
    files = [OpenFile(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) for name in "ab"]
    for offset in range(0, 100, 10):
        for file in files:
            with file.descriptor() as descriptor:
                os.pwrite(descriptor, str(offset).encode().rjust(10), offset)
    for file in files:
        file.close()
        assert file.path.read_text().split() == [str(offset) for offset in range(0, 100, 10)]
    with pytest.raises(FileExistsError):
        OpenFile(tmp_path / "a", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
