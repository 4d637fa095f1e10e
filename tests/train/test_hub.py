"""Training uploads once, what is complete, and its settings hold no token meanwhile."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl import SFTConfig

from rlhf_lines.merge.output.hub import upload
from rlhf_lines.stages import MODULES
from rlhf_lines.train import hub


def settings(**changes) -> SimpleNamespace:
    given = {"output_dir": "out", "push_to_hub": True, "hub_model_id": "me/policy", "hub_private_repo": True}
    return SimpleNamespace(**{**given, "hub_token": "hunter2-is-no-word", "model_init_kwargs": None, **changes})


def arguments(**changes) -> SFTConfig:
    return SFTConfig(output_dir="out", hub_model_id="me/policy", use_cpu=True, **changes)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    made = []
    monkeypatch.setattr(hub, "check_hub", lambda name: made.append(("check", name, os.environ.get("HF_TOKEN"))))
    monkeypatch.setattr(hub, "upload", lambda *given, **more: made.append(("upload", *given, more)))
    monkeypatch.setenv("HF_TOKEN", "that-of-before")
    return made


def test_the_folder_is_uploaded_when_the_block_ends(calls):
    training = settings()
    with hub.token_in_environment(training), hub.uploaded(training, {}):
        assert calls == [("check", "me/policy", "hunter2-is-no-word")] and training.hub_token is None
        assert training.push_to_hub is False, "the trainer itself uploads nothing"
        training.output_dir = ".out.partial"
    assert calls[1:] == [("upload", "out", "me/policy", {"private": True})]
    assert os.environ["HF_TOKEN"] == "that-of-before"


def test_a_run_that_fails_or_asks_for_nothing_uploads_nothing(calls):
    training = settings()
    with pytest.raises(KeyboardInterrupt), hub.token_in_environment(training), hub.uploaded(training, {}):
        raise KeyboardInterrupt
    with hub.uploaded(settings(push_to_hub=False), {"hub_strategy": "end"}):
        pass
    assert [call[0] for call in calls] == ["check"] and os.environ["HF_TOKEN"] == "that-of-before"


def test_more_than_one_upload_is_refused(calls):
    said = "hub_strategy is checkpoint, but the folder is uploaded once, when it is complete"
    with pytest.raises(ValueError, match=said), hub.uploaded(settings(), {"hub_strategy": "checkpoint"}):
        pass
    assert calls == []


def test_a_token_for_loading_is_lent_too(calls):
    training = settings(hub_token=None, model_init_kwargs={"token": "hunter2-is-no-word", "dtype": "float32"})
    with hub.token_in_environment(training):
        assert training.model_init_kwargs == {"dtype": "float32"} and os.environ["HF_TOKEN"] == "hunter2-is-no-word"


def test_a_complete_folder_is_uploaded_by_resume(calls):
    hub.upload_kept([object(), arguments(push_to_hub=False)], {})
    assert calls == []
    hub.upload_kept([object(), arguments(push_to_hub=True, hub_token="hunter2-is-no-word")], {})
    assert [call[:2] for call in calls] == [("check", "me/policy"), ("upload", "out")]
    assert calls[0][2] == "hunter2-is-no-word" and os.environ["HF_TOKEN"] == "that-of-before"


def test_no_checkpoint_is_uploaded_wherever_the_stage_keeps_them(tmp_path, monkeypatch):
    kept, stays = ("config.json", "adapter/model.safetensors"), ("checkpoint-1", "adapter/checkpoint-1", "adapter/.new")
    for name in (*kept, *(f"{folder}/trainer_state.json" for folder in stays)):
        path = tmp_path / "sft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    uploaded = []

    class Api:
        def create_repo(self, *args, **kwargs):
            return SimpleNamespace(repo_id="me/policy")

        def upload_folder(self, *, folder_path, **kwargs):
            files = (path for path in Path(folder_path).rglob("*") if path.is_file())
            uploaded.extend(str(path.relative_to(folder_path)) for path in files)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    upload(tmp_path / "sft", "me/policy")
    assert sorted(uploaded) == sorted(kept)


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_every_stage_that_trains_does(verb):
    assert importlib.import_module(MODULES[verb]).upload_kept is hub.upload_kept
