"""The configs that come with the project can be copied, and a wheel has them where they are looked for."""

from __future__ import annotations

import errno
import shutil
import tomllib
from pathlib import Path

import pytest

from rlhf_lines import shipped
from rlhf_lines.disk import DiskFault


ROOT = Path(__file__).parents[1]


def test_the_copy_is_the_same(tmp_path):
    copied = shipped.copy_configs(tmp_path / "mine")
    names = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
    assert [path.relative_to(tmp_path / "mine") for path in copied] == names and len(names) > 20
    for path, name in zip(copied, names, strict=True):
        assert path.read_bytes() == (ROOT / "configs" / name).read_bytes()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError, match=r"exists: choose another folder$"):
        shipped.copy_configs(tmp_path)


def test_a_copy_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    """Half of the configs stood under the final name, and the next call was refused."""
    copy, copied = shutil.copyfile, []

    def full(source, target, **more):
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", target)
        copied.append(copy(source, target, **more))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskFault, match=r"^no space left while writing .*/mine \(.*\); nothing was left under"):
        shipped.copy_configs(tmp_path / "mine")
    assert len(copied) == 3 and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(shipped.copy_configs(tmp_path / "mine")) > 20


def test_a_wheel_has_them_where_the_package_looks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"configs": "rlhf_lines/configs"}
    assert Path(shipped.__file__).parent == ROOT / "rlhf_lines"
