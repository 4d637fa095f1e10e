"""The configs that come with the project: of the demo, of 7B models, and of accelerate."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_lines.artifact import new_folder, refuse_existing


def shipped_configs() -> Path:
    """Their folder: in the package where it was installed from a wheel, else in the checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs"


def copy_configs(folder: str | Path) -> list[Path]:
    """Copy them into a new folder, to be changed and run, and return the copies.

    Raises:
        FileExistsError: the folder exists.
        ValueError: it cannot be made.
        DiskFault: the disk is full or fails.
    """
    refuse_existing(folder, overwrite=None)
    with new_folder(folder) as partial:
        shutil.copytree(shipped_configs(), partial, dirs_exist_ok=True)
    return sorted(Path(folder).rglob("*.yaml"))
