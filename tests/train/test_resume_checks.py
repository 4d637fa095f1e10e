"""A run goes on only from a whole checkpoint of the same settings, inputs and batches: folders without models."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from rlhf_lines.artifact import remove_working_files, write_config
from rlhf_lines.config import RunConfig
from rlhf_lines.train.checkpoints import newest_checkpoint, training_folder
from rlhf_lines.train.manifest import what_is_missing, write_manifest


FILES = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "value/a.bin",
)
GIVEN = {"learning_rate": 0.1, "seed": 3, "per_device_train_batch_size": 4}
INPUTS = {"model sft": {"weights": "1", "tokenizer.json": "2"}, "train split of p.jsonl": {"rows": "3"}}


@pytest.fixture
def arguments(tmp_path):
    """What a stage hands to `training_folder`, all of it the same as before but for the changes."""

    def make(*, resume=True, overwrite=False, given=(), inputs=INPUTS, any_processes=False, **changes):
        settings = {
            **{"output_dir": str(tmp_path / "out"), "resume_from_checkpoint": None, "save_only_model": False},
            **{"per_device_train_batch_size": 4, "world_size": 1, "report_to": [], "eval_on_start": True},
            **{"hub_token": None, "model_init_kwargs": None, "push_to_hub": False, **changes},
        }
        run = RunConfig(resume=resume, overwrite=overwrite)
        return (SimpleNamespace(**settings), run, {**GIVEN, **dict(given)}, inputs), {"any_processes": any_processes}

    return make


class Stopped(BaseException):
    """As a signal that ends the run."""


@pytest.fixture
def partial(arguments, tmp_path):
    """The hidden folder of a run that stopped after two checkpoints."""
    positional, named = arguments(resume=False)
    with pytest.raises(Stopped), training_folder(*positional, **named) as folder:
        for step in (2, 10):
            for name in FILES:
                path = folder / f"checkpoint-{step}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{name} at {step}")
            write_manifest(folder / f"checkpoint-{step}")
        raise Stopped
    return tmp_path / ".out.partial"


def go_on(arguments, **changes):
    """The checkpoint that the run goes on from."""
    positional, named = arguments(**changes)
    with pytest.raises(Stopped), training_folder(*positional, **named):
        raise Stopped
    return positional[0].resume_from_checkpoint


def refusal(arguments, partial, **changes) -> str:
    """Why the run does not go on; what is on disk stays as it is."""
    before = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    positional, named = arguments(**changes)
    with pytest.raises(ValueError) as caught, training_folder(*positional, **named):
        pytest.fail("it went on")
    assert {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_newest_whole_checkpoint_is_taken(arguments, partial):
    assert newest_checkpoint(partial).name == "checkpoint-10", "by number, not by letters"
    assert go_on(arguments) == str(partial / "checkpoint-10")
    assert go_on(arguments, per_device_train_batch_size=4, resume_from_checkpoint=str(partial / "checkpoint-2")) == str(
        partial / "checkpoint-2"
    )
    positional, named = arguments()
    with pytest.raises(Stopped), training_folder(*positional, **named):
        raise Stopped
    assert positional[0].eval_on_start is False, "the evaluation before the first update has been"


DAMAGES = {
    **{f"{name} is gone": (lambda folder, name=name: (folder / name).unlink(), f"lacks {name}") for name in FILES},
    "truncated": (lambda folder: os.truncate(folder / "optimizer.pt", 3), "3 bytes of optimizer.pt, written were 18"),
    "emptied": (lambda folder: (folder / "trainer_state.json").write_text(""), "0 bytes of trainer_state.json"),
    "garbled": (lambda folder: (folder / "scheduler.pt").write_text("x" * 18), "holds another scheduler.pt"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "has no manifest.json"),
    "a torn manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "has a damaged manifest.json"),
    "a foreign manifest": (lambda folder: (folder / "manifest.json").write_text("[1]"), "has a damaged manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_told(arguments, partial, caplog, damage):
    harm, words = DAMAGES[damage]
    harm(partial / "checkpoint-10")
    assert words in refusal(arguments, partial, resume_from_checkpoint=str(partial / "checkpoint-10"))
    assert go_on(arguments) == str(partial / "checkpoint-2")
    assert "going on from checkpoint-2, because checkpoint-10 " in caplog.text and words in caplog.text
    harm(partial / "checkpoint-2")
    message = refusal(arguments, partial)
    assert message.count(words.split(",")[0]) == 2 or "checkpoint-2 " in message
    assert "left no whole checkpoint" in message and message.endswith("or start again with --overwrite")


def test_a_folder_that_no_run_wrote_is_passed_over(arguments, partial, caplog):
    (partial / "checkpoint-99").mkdir()
    (partial / "checkpoint-best").mkdir()
    assert go_on(arguments) == str(partial / "checkpoint-10") and "checkpoint-99 has no manifest.json" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"given": {"learning_rate": 0.2}}, "was made with learning_rate 0.1, now it is 0.2"),
        ({"given": {"seed": 4}}, "was made with seed 3, now it is 4"),
        ({"inputs": {**INPUTS, "model sft": {"weights": "9", "tokenizer.json": "2"}}}, "model sft has changed since"),
        ({"inputs": {**INPUTS, "model sft": {"weights": "1", "tokenizer.json": "9"}}}, "(tokenizer.json): restore it"),
        ({"inputs": {**INPUTS, "train split of p.jsonl": {"rows": "9"}}}, "train split of p.jsonl has changed since"),
        ({"world_size": 2}, "begun with 4 sequences at once on all processes together, now it is 8"),
        ({"world_size": 2, "per_device_train_batch_size": 2}, "was begun by 1 processes, now there are 2"),
        ({"save_only_model": True}, "save_only_model is true, expected false"),
    ],
    ids=str,
)
def test_what_has_changed_is_named(arguments, partial, changes, words):
    assert words in refusal(arguments, partial, **changes)
    chosen = str(partial / "checkpoint-2")
    assert words in refusal(arguments, partial, **changes, resume=False, resume_from_checkpoint=chosen)


def test_noise_by_position_goes_on_with_any_number_of_processes(arguments, partial):
    begun = json.loads((partial / "begun.json").read_text())
    del begun["processes"]
    (partial / "begun.json").write_text(json.dumps(begun))
    assert go_on(arguments, any_processes=True, world_size=2, per_device_train_batch_size=2)


@pytest.mark.parametrize("file", ["config.yaml", "begun.json"])
def test_a_run_that_lost_its_record_does_not_go_on(arguments, partial, file):
    (partial / file).unlink()
    assert f"whose {file} is gone from" in refusal(arguments, partial)
    (partial / "begun.json").write_text("{")
    write_config(partial, GIVEN)
    assert "begun.json' is not JSON" in refusal(arguments, partial)


def test_a_checkpoint_of_another_folder_is_refused(arguments, partial, tmp_path):
    """A finished run's has no optimizer; another run's has that of another run."""
    finished = shutil.copytree(partial, tmp_path / "finished")
    message = refusal(arguments, partial, resume_from_checkpoint=str(finished / "checkpoint-10"))
    assert "is not one of the stopped run of output_dir" in message and "start a new run from that model" in message
    remove_working_files(finished)
    assert sorted(path.name for path in (finished / "checkpoint-10").rglob("*") if path.is_file()) == [
        *("a.bin", "adapter_model.safetensors", "trainer_state.json")
    ]
    assert what_is_missing(finished / "checkpoint-10").startswith("has no manifest.json")
    shutil.rmtree(partial)
    positional, named = arguments(resume_from_checkpoint=str(finished / "checkpoint-10"))
    with pytest.raises(ValueError, match="is not one of the stopped run"), training_folder(*positional, **named):
        pass
    assert not partial.exists()
