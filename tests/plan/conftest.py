"""A folder with the shape of a tiny Llama and no weights, and a data set beside it."""

from __future__ import annotations

import json

import pytest

from tests import tiny


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No network, and what ``datasets`` caches out of the user's home."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def llama():
    """Return the config of a tiny Llama."""
    return tiny.llama_config(vocab_size=64, num_hidden_layers=2, max_position_embeddings=256, pad_token_id=0)


@pytest.fixture
def folder(tmp_path, llama, monkeypatch):
    """The current folder of a user: ``sft/config.json`` without weights, and eight prompts."""
    llama.save_pretrained(tmp_path / "sft")
    (tmp_path / "data").mkdir()
    rows = [{"prompt": "p" * 39 + str(i), "completion": "c" * 20} for i in range(8)]
    for split in ("train", "validation", "test"):  # a split that is not there is taken out of train
        text = "".join(json.dumps({**row, "prompt": row["prompt"] + split[1]}) + "\n" for row in rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_config(folder):
    """Return a writer of the PPO config ``ppo.yaml``, with changes; None leaves a key out."""
    import yaml

    def write(name="ppo.yaml", **changes):
        content = {
            "model_name_or_path": "sft",
            "rewards": ["string:capwords"],
            "output_dir": "out",
            "dataset_name": "data",
            "use_peft": True,
            "lora_r": 4,
            "lora_target_modules": "all-linear",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
            "max_steps": 6,
            "max_completion_length": 5,
            "gradient_checkpointing": False,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
        }
        merged = {key: value for key, value in {**content, **changes}.items() if value is not None}
        path = folder / name
        path.write_text(yaml.safe_dump(merged))
        return str(path)

    return write
