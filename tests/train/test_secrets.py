"""No stage that trains writes or says a secret that it was given, while it works or after."""

from __future__ import annotations

import os

import pytest

from rlhf_lines import cli, redaction
from rlhf_lines.artifact import read_record
from rlhf_lines.train import ppo, reward, sft


SECRET = "hunter2-is-no-word"
ROWS = {
    "sft": [{"prompt": "a b", "completion": " c d"}] * 4,
    "reward": [{"prompt": "a b", "chosen": " c d", "rejected": " e"}] * 4,
    "ppo": [{"prompt": f"a {x}"} for x in "bcdefgh"],
}
SETTINGS = {
    "sft": {"use_peft": True, "lora_target_modules": "all-linear"},
    "reward": {"max_length": 16},
    "ppo": {
        **{"use_peft": True, "lora_target_modules": "all-linear", "max_completion_length": 4, "num_iterations": 1},
        "rewards": ["rule:length"],
    },
}


@pytest.fixture(autouse=True)
def an_offline_hub(monkeypatch):
    monkeypatch.setattr(redaction, "_told", set())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for module in (sft, reward, ppo):  # what is removed at the end has been on the disk
        monkeypatch.setattr(module, "remove_working_files", lambda folder: None)


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_stage_keeps_its_secrets(verb, flags, base, write_rows, tmp_path, capfd, caplog):
    data = write_rows("data/train.jsonl", ROWS[verb]).parent
    out = tmp_path / "out" / verb
    given = {"model_name_or_path": base, "dataset_name": data, "output_dir": out, "logging_steps": 1, "max_steps": 2}
    given |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1, "hub_token": SECRET}
    arguments = [verb, *flags(**{**given, **SETTINGS[verb]}), "--model_init_kwargs", f'{{"token": "{SECRET}"}}']
    assert cli.main(arguments) == 0, capfd.readouterr().err
    written = [path for path in out.rglob("*") if path.is_file()]
    assert read_record(out) and any(path.parent.name.startswith("checkpoint-") for path in written)
    assert [str(path) for path in written if SECRET.encode() in path.read_bytes()] == []
    assert cli.main([*arguments, "--learning_rate", SECRET]) == 2  # a mistake whose sentence repeats the value
    assert cli.main([*arguments, f"--hub_tokn={SECRET}"]) == 2
    assert cli.main([*arguments, "--resume"]) == 0, "the same run, with the token again"
    without = [word for word in arguments if word not in ("--hub_token", SECRET)]
    assert cli.main([*without[:-2], "--resume"]) == 2 and "model_init_kwargs" in capfd.readouterr().err
    assert cli.main([*without[:-1], "{}", "--resume"]) == 0, "or without it"
    said = "".join(capfd.readouterr())
    assert SECRET not in said + caplog.text and "HF_TOKEN" not in os.environ
