"""Hashes that are kept in the user's cache folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_lines import known_hashes
from rlhf_lines.known_hashes import FileState, recall, remember


A, B = "a" * 64, "b" * 64
STATE = FileState("/models/sft/model.safetensors", 5, 10, 20, 30)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LINES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sha256"


def test_the_state_of_a_file_is_what_the_system_says_of_what_a_link_leads_to(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"12345")
    link.symlink_to(file)
    stat = file.stat()
    known = (str(file.resolve()), 5, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    assert FileState.of(file) == FileState.of(link) == known


def test_a_hash_is_kept_for_files_in_their_order(cache):
    other = STATE._replace(path="/models/sft/other.safetensors")
    assert recall([STATE]) is None
    remember([STATE], A)
    remember([STATE, other], B)
    assert (recall([STATE]), recall([STATE, other]), recall([other, STATE]), recall([other])) == (A, B, None, None)
    assert len(list(cache.iterdir())) == 2 and cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("field", FileState._fields)
def test_a_file_that_has_changed_or_moved_is_not_known(field):
    remember([STATE], A)
    changed = STATE._replace(**{field: "/models/moved" if field == "path" else 99})
    assert recall([changed]) is None
    remember([changed], B)
    assert recall([changed]) == B
    assert recall([STATE]) == (A if field == "path" else None)  # one hash per path


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[1]", b"null", b'{"files": []}', b'{"sha256": "%s", "files": 1}' % A.encode(), b"{" * 9999],
    ids=range(7),
)
def test_what_is_damaged_is_not_believed_and_written_again(cache, content):
    remember([STATE], A)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    assert recall([STATE]) is None
    remember([STATE], A)
    assert recall([STATE]) == A


@pytest.mark.parametrize("sha256", ["", "a" * 63, "A" * 64, f"{A}\n", 7, None])
def test_what_is_no_hash_is_not_believed(sha256):
    remember([STATE], sha256)
    assert recall([STATE]) is None


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_folder_that_cannot_be_made_is_no_fault(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_LINES_CACHE", str(tmp_path / ("file" if place == "a file" else "file/cache")))
    remember([STATE], A)
    assert recall([STATE]) is None


def test_a_user_without_a_home_is_no_fault(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("RLHF_LINES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    remember([STATE], A)
    assert recall([STATE]) is None


def test_the_folder_is_the_one_named_or_that_of_the_user(tmp_path, monkeypatch):
    places = {"RLHF_LINES_CACHE": "own", "XDG_CACHE_HOME": "xdg/rlhf_lines", "HOME": "home/.cache/rlhf_lines"}
    for name, place in places.items():
        monkeypatch.setenv(name, str(tmp_path / Path(place).parts[0]))
    for name, place in places.items():
        remember([STATE], A)
        assert len(list((tmp_path / place / "sha256").iterdir())) == 1
        monkeypatch.delenv(name)


def test_the_oldest_of_too_many_are_dropped(cache, monkeypatch):
    monkeypatch.setattr(known_hashes, "MOST", 3)
    states = [STATE._replace(path=f"/models/{i}") for i in range(5)]
    for i, state in enumerate(states):
        before = set(cache.iterdir()) if cache.is_dir() else set()
        remember([state], A)
        (new,) = set(cache.iterdir()) - before
        os.utime(new, (i, i))
    assert [recall([state]) for state in states] == [None, None, A, A, A]
    assert len(list(cache.iterdir())) == 3


def test_many_may_read_and_write_at_once(cache):
    def use(i: int) -> str | None:
        remember([STATE], A if i % 2 else B)
        return recall([STATE])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(200))) <= {A, B}
    assert len(list(cache.iterdir())) == 1
