"""Runs that were killed when they were as good as done."""

from __future__ import annotations

import os
import shutil

import pytest

from rlhf_lines import cli
from rlhf_lines.artifact import partial_folder
from rlhf_lines.stages import run_stage


@pytest.fixture
def copy(sweep, tmp_path):
    """A finished sweep of a test's own."""
    return shutil.copytree(sweep, tmp_path / "sweep")


@pytest.mark.parametrize("named", [True, False], ids=["after the folder got its name", "before"])
def test_a_sweep_that_lacks_only_its_report_gets_it(copy, flags, rewards, named):
    (copy / "report.html").unlink()
    if not named:
        copy.rename(partial_folder(copy))
    assert run_stage("sweep", [*flags(copy), "--resume"]) == copy
    assert f"rlhf-lines pick {copy} " in (copy / "report.html").read_text()
    assert rewards.SCORED == []


def test_a_sweep_that_replaces_another_goes_on(copy, flags, rewards):
    (copy / "mark").touch()
    rewards.FAIL_AT, rewards.ERROR = 2, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", [*flags(copy), "--overwrite"])
    rewards.FAIL_AT = None
    with pytest.raises(FileExistsError, match=r"a run that was to replace it stopped .*: add --overwrite to --resume"):
        run_stage("sweep", [*flags(copy), "--resume"])
    run_stage("sweep", [*flags(copy), "--resume", "--overwrite"])
    assert not (copy / "mark").exists() and not partial_folder(copy).exists()


def test_a_report_of_fewer_rewards_is_written_again(copy, rewards, capsys):
    old = (copy / "report.html").read_bytes()
    asked = ["score", str(copy), "--rewards", "tiny_rewards:constant"]
    assert cli.main(asked) == 0
    new = (copy / "report.html").read_bytes()
    assert new != old
    # As if the process had been killed between front and report.
    (copy / "report.html").write_bytes(old)
    os.utime(copy / "report.html", ns=(0, 0))
    assert cli.main(asked) == 0
    assert (copy / "report.html").read_bytes() == new
