"""The configs that come with the project can be copied, and a wheel has them where they are looked for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rlhf_lines import shipped


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


def test_a_wheel_has_them_where_the_package_looks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"configs": "rlhf_lines/configs"}
    assert Path(shipped.__file__).parent == ROOT / "rlhf_lines"
