"""A folder appears complete or not at all, and what stands there is not lost."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest
import yaml

from rlhf_lines import __version__
from rlhf_lines.artifact import RECORD, is_complete, new_folder, read_record, refuse_existing, versions, write_record


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

    with new_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("new")
        monkeypatch.setattr(Path, "rename", failing)
        context = pytest.raises(OSError, match="no space left")
        context.__enter__()
    context.__exit__(None, None, None)
    assert entries(tmp_path) == ["out", "out/old"]
