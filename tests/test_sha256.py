"""SHA-256 over files, and when it is computed."""

from __future__ import annotations

import hashlib
import os

import pytest

from rlhf_lines import sha256
from rlhf_lines.known_hashes import FileState, recall, remember
from rlhf_lines.sha256 import contents_sha256, sha256_of


PLANTED = "a" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Files of any size and age are looked for in an empty cache."""
    monkeypatch.setenv("RLHF_LINES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sha256, "LARGE", 0)
    monkeypatch.setattr(sha256, "SETTLED", -1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"twelve bytes")
    return path


@pytest.mark.parametrize("size", [0, 1, sha256.BUFFER - 1, sha256.BUFFER, 2 * sha256.BUFFER + 1])
def test_it_is_that_of_the_bytes_of_all_files_in_their_order(tmp_path, file, size):
    large = tmp_path / "large"
    large.write_bytes(os.urandom(size))
    paths = [large, file, large]
    expected = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    assert sha256_of(paths) == contents_sha256(paths) == expected


def test_a_file_whose_hash_is_kept_is_not_read(file):
    remember([FileState.of(file)], PLANTED)
    assert sha256_of([file]) == PLANTED
    assert contents_sha256([file]) == hashlib.sha256(b"twelve bytes").hexdigest()


def test_what_was_read_is_kept(file):
    found = sha256_of([file])
    assert recall([FileState.of(file)]) == found == hashlib.sha256(b"twelve bytes").hexdigest()


def test_small_files_are_read_and_not_kept(file, monkeypatch):
    monkeypatch.setattr(sha256, "LARGE", 13)
    remember([FileState.of(file)], PLANTED)
    assert sha256_of([file]) == hashlib.sha256(b"twelve bytes").hexdigest()
    assert recall([FileState.of(file)]) == PLANTED


def test_a_file_that_was_just_written_is_not_kept(file, monkeypatch):
    """A clock of files may stand still for two seconds: another writing could leave all times as they are."""
    monkeypatch.setattr(sha256, "SETTLED", 3e9)
    os.utime(file, (0, 0))  # the time of the last change of its times stays
    sha256_of([file])
    assert recall([FileState.of(file)]) is None


def test_a_file_that_changes_while_it_is_read_is_not_kept(file, monkeypatch):
    def read_late(paths):
        found = contents_sha256(paths)
        file.write_bytes(b"longer than before")
        return found

    before = FileState.of(file)
    monkeypatch.setattr(sha256, "contents_sha256", read_late)
    sha256_of([file])
    assert recall([before]) is None and recall([FileState.of(file)]) is None


def test_a_file_that_was_written_again_is_read_again(file):
    sha256_of([file])
    file.write_bytes(b"other bytes!")
    os.utime(file, (0, 0))
    assert sha256_of([file]) == hashlib.sha256(b"other bytes!").hexdigest()
