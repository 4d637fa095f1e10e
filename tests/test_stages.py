"""Every stage asks for its folder before any work."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from rlhf_lines.artifact import write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.lock import only_writer
from rlhf_lines.stages import run_configured
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.sweep.finished.front import trace_front
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.finished.score import score
from rlhf_lines.sweep.store import Store


@pytest.fixture
def in_use(tmp_path):
    """A folder that another run works on."""
    folder = tmp_path / "out"
    taken, done = threading.Event(), threading.Event()

    def hold():
        with only_writer(folder):
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield folder
    done.set()
    thread.join()


@pytest.mark.parametrize(
    "way", [{}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}], ids=str
)
def test_a_stage_does_not_begin_in_a_folder_that_another_run_makes(in_use, way):
    ran = []
    stage = SimpleNamespace(run=lambda *_: ran.append(True), finish=lambda *_: ran.append(True))
    with pytest.raises(FileExistsError, match=r"out is in use by another run .*: wait until that has ended"):
        run_configured(stage, (RunConfig(**way), SimpleNamespace(output_dir=str(in_use))), {})
    assert ran == []


def test_a_folder_that_was_complete_is_kept_and_said_to_be(tmp_path):
    folder, ran, uploaded = tmp_path / "out", [], []
    folder.mkdir()
    write_record(folder, "merge", {})
    stage = SimpleNamespace(run=lambda *_: ran.append(True) or folder)
    output = SimpleNamespace(output_dir=str(folder))
    assert run_configured(stage, (RunConfig(resume=True), output), {}) == (folder, True) and ran == []
    uploading = SimpleNamespace(run=stage.run, upload_kept=lambda configs, given: uploaded.append((configs[1], given)))
    assert run_configured(uploading, (RunConfig(resume=True), output), {}) == (folder, True)
    assert ran == [] and uploaded == [(output, {})]
    assert run_configured(stage, (RunConfig(), output), {}) == (folder, False) and ran == [True]


@pytest.mark.parametrize(
    "keeps",
    [
        lambda folder: write_record(folder, "ppo", {}),  # by its record, as most stages
        None,  # by a comparison of its own, as a merge
    ],
    ids=["record", "own"],
)
def test_overwrite_beside_resume_that_keeps_a_folder_is_told(tmp_path, caplog, keeps):
    (folder := tmp_path / "out").mkdir()
    stage = SimpleNamespace(run=lambda *_: folder)
    if keeps:
        keeps(folder)
    else:
        stage.is_kept = lambda run_config, output: run_config.resume
    output = SimpleNamespace(output_dir=str(folder))
    assert run_configured(stage, (RunConfig(resume=True), output), {}) == (folder, True)
    assert caplog.messages == []
    assert run_configured(stage, (RunConfig(resume=True, overwrite=True), output), {}) == (folder, True)
    assert caplog.messages == [
        f"overwrite has no effect beside resume: {folder} is complete, and no stopped run was to replace it, so it is "
        "kept; to make it again, leave --resume out"
    ]
    caplog.clear()
    assert run_configured(stage, (RunConfig(overwrite=True), output), {}) == (folder, False)
    assert caplog.messages == []


def test_overwrite_beside_resume_names_a_run_that_only_lacked_its_name(tmp_path, caplog):
    for folder, text in ((tmp_path / "out", "old"), (tmp_path / ".out.partial", "new")):
        folder.mkdir()
        write_record(folder, "ppo", {})
        (folder / "text").write_text(text)
    configs = (RunConfig(resume=True, overwrite=True), SimpleNamespace(output_dir=str(tmp_path / "out")))
    run_configured(SimpleNamespace(), configs, {})
    assert (tmp_path / "out" / "text").read_text() == "new" and caplog.messages == []


@pytest.mark.parametrize(
    "change", [trace_front, write_report, export, lambda folder: score(folder, ["rule:length"])],
    ids=["front", "report", "export", "score"],
)  # fmt: skip
def test_a_finished_sweep_that_another_run_changes_is_left_alone(in_use, change):
    in_use.mkdir()
    with Store(in_use) as store:
        store.finish()
    write_record(in_use, "sweep", {})
    before = {path: path.read_bytes() for path in in_use.iterdir()}
    with pytest.raises(FileExistsError, match="is in use by another run"):
        change(in_use)
    assert {path: path.read_bytes() for path in in_use.iterdir()} == before
