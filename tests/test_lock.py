"""A folder has one writer, whatever it is called, and a writer that died is none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlhf_lines.artifact import new_folder
from rlhf_lines.lock import lock_file, only_writer


IN_USE = "is in use by another run"


def refused_in_another_thread(folder) -> str:
    """What another thread hears that asks for the folder; empty if it gets it."""
    heard = []

    def ask():
        try:
            with only_writer(folder):
                heard.append("")
        except FileExistsError as error:
            heard.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return heard[0]


def test_a_folder_has_one_writer_by_all_its_names(tmp_path, monkeypatch):
    (tmp_path / "real" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "run").symlink_to(tmp_path / "real" / "run")
    monkeypatch.chdir(tmp_path)
    with only_writer("real/run"):
        for name in ("real/run", "./real/../real/run/", tmp_path / "real/run", "link/run", "run"):
            said = refused_in_another_thread(name)
            assert said.startswith(f"{name} {IN_USE} (") and f"process {os.getpid()} on {socket.gethostname()}" in said
            with only_writer(name):  # this run has it already
                pass
        assert IN_USE in refused_in_another_thread("real/run"), "an inner block does not let go"
        assert refused_in_another_thread("real") == refused_in_another_thread("real/run2") == ""
    assert refused_in_another_thread("run") == ""
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


def test_the_second_of_two_blocks_is_refused_and_the_first_undisturbed(tmp_path):
    out = tmp_path / "deep" / "out"
    heard = []

    def second():
        for overwrite in (False, True):
            try:
                with new_folder(out, overwrite=overwrite) as folder:
                    (folder / "second").touch()
            except FileExistsError as error:
                heard.append(str(error))

    with new_folder(out) as folder:
        (folder / "first").touch()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert [IN_USE in said for said in heard] == [True, True]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "first", "out"]


def test_a_block_that_fails_leaves_no_folder_that_the_lock_made(tmp_path):
    with pytest.raises(ValueError, match="stop"), only_writer(tmp_path / "a" / "b" / "out"):
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_no_longer_though_its_child_lives(tmp_path):
    code = (
        "import os, time; from rlhf_lines.lock import only_writer\n"
        "with only_writer('out'):\n"
        "    child = os.fork()\n"
        "    if child == 0: print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with (
            pytest.raises(FileExistsError, match=f"{IN_USE} .*process {holder.pid} on "),
            only_writer(tmp_path / "out"),
        ):
            pass
        holder.kill()
        holder.wait()
        assert lock_file(tmp_path / "out").exists()
        with only_writer(tmp_path / "out"):
            assert json.loads(lock_file(tmp_path / "out").read_text())["pid"] == os.getpid()
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pid", "host", "free"),
    [("dead", None, True), ("own", None, False), ("dead", "another", False), (None, None, True)],
)
def test_where_a_file_system_has_no_locks_the_note_decides(tmp_path, monkeypatch, pid, host, free):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    if pid is not None:
        note = {"pid": {"dead": done.pid, "own": os.getpid()}[pid], "host": host or socket.gethostname()}
        lock_file(tmp_path / "out").write_text(json.dumps({**note, "since": "then", "command": "rlhf-lines ppo"}))
    said = refused_in_another_thread(tmp_path / "out")
    assert said == "" if free else "(rlhf-lines ppo, process" in said


def test_where_no_file_can_be_made_the_stage_says_so_itself():
    with only_writer("/proc/none/out"), only_writer("/"):
        ran = True
    assert ran and not Path("/proc/none").exists()


def test_the_note_has_no_values_of_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/rlhf-lines", "ppo", "--hub_token", "hf_secret"])
    with only_writer(tmp_path / "out"):
        assert json.loads(lock_file(tmp_path / "out").read_text())["command"] == "rlhf-lines ppo"
