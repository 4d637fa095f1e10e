"""A tiny SFT model with a tokenizer of single characters, prompts, and policies: an adapter, and dense checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.statistics.oracle import CHARACTERS, PROMPTS


def _save_llama(folder: Path, **changes) -> Path:
    tokenizer = tiny.character_tokenizer(CHARACTERS)
    model = tiny.llama(tokenizer, **{"num_hidden_layers": 3, "max_position_embeddings": 40, **changes})
    return tiny.save(model, tokenizer, folder)


def _save_gpt2(folder: Path) -> Path:
    tokenizer = tiny.character_tokenizer(CHARACTERS)
    model = tiny.gpt2(tokenizer, std=0.25, n_embd=16, n_head=4, n_positions=40)
    return tiny.save(model, tokenizer, folder)


def _save_adapter(sft: Path, folder: Path, **options) -> Path:
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"], **options}
    return tiny.save_adapter(sft, folder, seed=1, **settings)


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A folder with models (sft, tied, gpt2, unrelated), policies (lora; dense, the same saved dense) and prompts."""
    from rlhf_lines.merge import MergeSpec, merge_policies

    root = tmp_path_factory.mktemp("statistics")
    _save_llama(root / "sft")
    _save_llama(root / "unrelated", seed=5)
    _save_llama(root / "tied", tie_word_embeddings=True)
    _save_gpt2(root / "gpt2")
    _save_adapter(root / "sft", root / "lora")
    _save_adapter(root / "unrelated", root / "stranger")
    _save_adapter(root / "gpt2", root / "lora_gpt2", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    spec = MergeSpec("linear", (1.0,))
    merge_policies(root / "sft", [root / "lora"], spec, save="dense", output_dir=root / "dense")
    rows = "".join(
        json.dumps({"prompt": prompt, "completion": completion}) + "\n"
        for completion in ("x", "y")  # every prompt twice, which counts once
        for prompt in PROMPTS
    )
    (root / "prompts").mkdir()
    for split in ("train", "validation", "test"):
        (root / "prompts" / f"{split}.jsonl").write_text(
            rows if split == "train" else '{"prompt": "else", "completion": "z"}\n'
        )
    return root


@pytest.fixture
def folder(root, tmp_path, monkeypatch) -> Path:
    """The current folder of a user who has them, without a network."""
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture(scope="session")
def save_adapter():
    """The function that saves an adapter with random factors."""
    return _save_adapter


@pytest.fixture(scope="session")
def flags():
    """A function from changed settings to the flags of a statistics stage."""

    def make(**changes) -> list[str]:
        settings = {
            "sft_model": "./sft",
            "policy": "./lora",
            "dataset_name": "./prompts",
            "output_dir": "./out",
            "max_new_tokens": 12,
            **changes,
        }
        return [str(word) for key, value in settings.items() for word in (f"--{key}", value)]

    return make
