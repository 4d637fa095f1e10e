"""A folder appears complete or not at all, and what stands there is not lost."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_lines import __version__
from rlhf_lines.artifact import (
    RECORD,
    check_same_config,
    is_complete,
    new_folder,
    read_record,
    refuse_existing,
    versions,
    write_record,
)
from rlhf_lines.disk import NOTHING_KEPT


def entries(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_takes_its_name_when_the_block_ends(tmp_path):
    final = tmp_path / "deep" / "out"
    with new_folder(final) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("content")
        assert not final.exists() and folder.parent == final.parent
    assert entries(tmp_path) == ["deep", "deep/out", "deep/out/sub", "deep/out/sub/file"]
    assert (final / "sub" / "file").read_text() == "content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error, match="stop"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise error("stop")
    assert entries(tmp_path) == []


def test_an_existing_folder_is_refused_before_the_block_runs(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "mine").write_text("precious")
    ran = []
    with pytest.raises(FileExistsError, match=f"output_dir {final} exists: .*--overwrite"), new_folder(final):
        ran.append(True)
    assert ran == [] and entries(tmp_path) == ["out", "out/mine"]
    assert (final / "mine").read_text() == "precious"


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(FileExistsError, match="appeared meanwhile"), new_folder(final) as folder:
        (folder / "file").write_text("new")
        final.mkdir()
    assert entries(tmp_path) == ["out"]


def test_a_home_that_no_shell_has_written_out_is_refused():
    with pytest.raises(ValueError, match=r"output_dir ~/here begins with ~, .*: write the path out"):
        refuse_existing("~/here", overwrite=False)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_overwrite_keeps_the_old_folder_until_the_new_one_is_complete(tmp_path, error):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("old")
    with pytest.raises(error), new_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("half")
        raise error
    assert entries(tmp_path) == ["out", "out/old"]
    with new_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (final / "old").read_text() == "old"
    assert entries(tmp_path) == ["out", "out/new"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("old")
    rename = Path.rename

    def failing(path: Path, target):
        if path.name == ".out.partial":
            raise OSError("no space left")
        return rename(path, target)

    with pytest.raises(OSError, match="no space left"), new_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(Path, "rename", failing)
    assert entries(tmp_path) == ["out", "out/old"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_replacement_that_is_killed_loses_no_folder(tmp_path, renames):
    """Killed after the old folder has moved away, or after the new one has its name."""
    code = (
        "import os, signal, pathlib; from rlhf_lines.artifact import new_folder\n"
        "done, rename = [], pathlib.Path.rename\n"
        "def counted(self, target):\n"
        "    rename(self, target); done.append(target)\n"
        f"    if len(done) == {renames}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.rename = counted\n"
        "with new_folder('out', overwrite=True) as folder: (folder / 'new').touch()\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "out").exists() == (renames == 2)
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out"):
        pass
    kept = "old" if renames == 1 else "new"
    assert [path for path in entries(tmp_path) if ".partial" not in path] == ["out", f"out/{kept}"]
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "newer").touch()
    assert entries(tmp_path) == ["out", "out/newer"]


def test_a_killed_block_can_be_resumed(tmp_path):
    final = tmp_path / "out"
    for keep in ({"keep_partial": True}, {"leave_partial": True}):
        with pytest.raises(KeyboardInterrupt), new_folder(final, **keep) as folder:
            (folder / "rows").write_text("half")
            raise KeyboardInterrupt
        assert not final.exists() and entries(tmp_path) == [".out.partial", ".out.partial/rows"]
        with new_folder(final, keep_partial=True) as folder:
            assert (folder / "rows").read_text() == "half"
            (folder / "rows").write_text("whole")
        assert entries(tmp_path) == ["out", "out/rows"] and (final / "rows").read_text() == "whole"
        (final / "rows").unlink()
        final.rmdir()


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_left_may_depend_on_what_there_is(tmp_path, keep):
    """A block that stops before it has something to go on from leaves nothing, and its error says so."""
    options = {"keep_partial": keep, "leave_partial": lambda folder: (folder / "rows").exists()}
    with pytest.raises(KeyboardInterrupt) as caught, new_folder(tmp_path / "out", **options) as folder:
        (folder / "settings").touch()
        raise KeyboardInterrupt
    assert entries(tmp_path) == [] and caught.value.kept == NOTHING_KEPT
    with pytest.raises(KeyboardInterrupt) as caught, new_folder(tmp_path / "out", **options) as folder:
        (folder / "rows").touch()
        raise KeyboardInterrupt
    assert entries(tmp_path) == [".out.partial", ".out.partial/rows"] and not hasattr(caught.value, "kept")


def test_what_a_killed_block_left_is_not_part_of_a_new_one(tmp_path):
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out", leave_partial=True) as folder:
        (folder / "stale").write_text("stale")
        raise ValueError("stop")
    with new_folder(tmp_path / "out") as folder:
        assert entries(folder) == []
    assert entries(tmp_path) == ["out"]


def test_overwrite_replaces_neither_links_nor_files(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("precious")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    before = entries(tmp_path)
    for name in ("link", "dangling", "file"):
        with pytest.raises(FileExistsError, match="exists: choose another folder"):
            refuse_existing(tmp_path / name, overwrite=False)
        with (
            pytest.raises(FileExistsError, match="is not a folder, so --overwrite does not replace it"),
            new_folder(tmp_path / name, overwrite=True),
        ):
            pass
    assert entries(tmp_path) == before and (target / "mine").read_text() == "precious"


def test_overwrite_replaces_neither_the_current_nor_the_home_folder_nor_their_parents(tmp_path, monkeypatch):
    work, home = tmp_path / "work" / "inner", tmp_path / "homes" / "user"
    work.mkdir(parents=True)
    home.mkdir(parents=True)
    (tmp_path / "home").symlink_to(home)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # a home behind a link, as on many clusters
    for folder in (work, work.parent, Path("../inner"), Path(".."), tmp_path, home, home.parent):
        with pytest.raises(FileExistsError, match="holds the current or the home folder"):
            refuse_existing(folder, overwrite=True)
    for unnamed in (".", "/"):
        with pytest.raises(ValueError, match="has no name of its own"):
            refuse_existing(unnamed, overwrite=True)
    sibling = work.parent / "sibling"
    sibling.mkdir()
    refuse_existing(sibling, overwrite=True)
    refuse_existing(work / "new", overwrite=False)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_can_be_read_by_whom_the_folder_lets_in(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as folder:
            (folder / "sub").mkdir()
            for path in (folder / "private.safetensors", folder / "sub" / "private.safetensors"):
                path.write_text("weights")
                path.chmod(0o600)  # as safetensors writes them
    finally:
        os.umask(before)
    for path in ("private.safetensors", "sub/private.safetensors"):
        assert (tmp_path / "out" / path).stat().st_mode & 0o777 == mode
    assert (tmp_path / "out" / "sub").stat().st_mode & 0o777 == 0o777 & ~umask


def test_records_round_trip(tmp_path):
    assert not is_complete(tmp_path) and read_record(tmp_path) == {}
    config = {"output_dir": "x", "weights": [0.3, 0.7], "name": "é: 'quoted'", "nothing": None, "seed": 0}
    write_record(tmp_path, "merge", config, seed=3, loss=[0.1 + 0.2], lost={"relative_l2": 1e-9})
    assert is_complete(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert list(yaml.safe_load((tmp_path / "config.yaml").read_text())) == list(config)
    record = read_record(tmp_path)
    facts = {"seed": 3, "loss": [0.1 + 0.2], "lost": {"relative_l2": 1e-9}}
    assert record == {"format": 1, "stage": "merge", "versions": versions(), **facts}
    assert (tmp_path / RECORD).name == "rlhf_lines.json"


def test_versions_name_what_the_numbers_depend_on():
    found = versions()
    assert found["rlhf_lines"] == __version__
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors"):
        assert found[name] == importlib.metadata.version(name)


def test_a_finished_folder_of_other_settings_is_not_taken_for_the_result(tmp_path):
    write_record(tmp_path, "sft", {"learning_rate": 1e-3, "policies": ["a"], "output_dir": "x"})
    check_same_config(tmp_path, {"learning_rate": 0.001, "policies": "a", "output_dir": "y", "resume": True})
    with pytest.raises(ValueError, match=r"was made with learning_rate 0\.001, now it is 0\.01: choose another folder"):
        check_same_config(tmp_path, {"learning_rate": 0.01, "policies": ["a"]})
    with pytest.raises(ValueError, match="was made without max_steps, now it is 2"):
        check_same_config(tmp_path, {"learning_rate": 0.001, "policies": ["a"], "max_steps": 2})
    with pytest.raises(ValueError, match=r"was made with learning_rate 0\.001, now it is not given: choose another"):
        check_same_config(tmp_path, {"policies": ["a"]})


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds no settings by name"), ("a: [", r"config\.yaml cannot be read")]
)
def test_a_damaged_config_is_a_sentence(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_same_config(tmp_path, {"max_steps": 2})


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_where_no_folder_can_be_made_is_a_sentence():
    with pytest.raises(ValueError, match=r"output_dir /proc/x .*choose another one"), new_folder("/proc/x"):
        pytest.fail("there is no folder")
