"""A finished sweep of two tiny policies, with a group that no adapter holds, and tasks from local files."""

from __future__ import annotations

import shutil

import pytest

from rlhf_lines.stages import run_stage
from tests.evaluation.tasks import write_tasks
from tests.sweep.conftest import dataset, flags, policies, rewards, sft  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Where the finished sweep is, from the first test that asks for one."""
    return tmp_path_factory.mktemp("evaluated") / "run"


@pytest.fixture
def run(kept, flags, tmp_path, without_pictures, monkeypatch):  # noqa: F811
    """A copy of the finished sweep, whose figures and page are not drawn."""
    from rlhf_lines.evaluation import evaluate

    monkeypatch.setattr(evaluate, "write_report", lambda folder: None)
    if not kept.exists():
        ties = '{"name": "ties", "rule": "ties", "alpha": 1}'
        run_stage("sweep", flags(kept, alphas=0.5, betas=1.0, num_weights=3, test_prompts=3, groups=ties))
    return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The folder of the tasks; what datasets keep of them is kept for this test alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return write_tasks(tmp_path / "tasks")
