"""A tiny SFT model and LoRA policies with random factors, on disk as a user has them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.merge.rules.every_rule import DENSE, Inputs, inputs_of, write_checkpoints


def _edit_config(folder: Path, **changes) -> Path:
    """Change keys of an adapter's config in place."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _edit_weights(folder: Path, change) -> Path:
    """Replace an adapter's tensors by `change(tensors)`."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


def _logits(model) -> torch.Tensor:
    """Logits of two fixed prompts, ``[2, 6, vocab]``."""
    ids = torch.arange(12).reshape(2, 6) % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids).logits


def _peft_logits(sft: Path, adapter: Path) -> torch.Tensor:
    """Logits of the SFT model with one adapter, loaded by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return _logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), adapter).eval())


def _dense_logits(folder: Path) -> torch.Tensor:
    """Logits of a full checkpoint, computed in float32."""
    from transformers import AutoModelForCausalLM

    return _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.fixture(scope="session")
def save_adapter():
    """The function that saves an adapter with random factors, as PEFT does by default."""
    return partial(tiny.save_adapter, std=0.15, save_embedding_layers="auto")


@pytest.fixture(scope="session")
def edit_config():
    """The function that changes keys of an adapter's config in place."""
    return _edit_config


@pytest.fixture(scope="session")
def edit_weights():
    """The function that replaces an adapter's tensors in place."""
    return _edit_weights


@pytest.fixture(scope="session")
def logits():
    """The function from a model to its logits on two fixed prompts."""
    return _logits


@pytest.fixture(scope="session")
def peft_logits():
    """The function from (SFT folder, adapter folder) to logits, loaded by PEFT."""
    return _peft_logits


@pytest.fixture(scope="session")
def dense_logits():
    """The function from a checkpoint folder to logits, loaded by transformers."""
    return _dense_logits


@pytest.fixture(scope="session")
def sft(tmp_path_factory) -> Path:
    """A float32 Llama of four layers, with a file that looks like a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "sft"
    tiny.llama(vocab_size=32, max_position_embeddings=32).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.fixture(scope="session")
def helpful(sft, save_adapter) -> Path:
    """A policy of rank 4 on attention, scale 8 / 4."""
    return save_adapter(sft, sft.parent / "helpful", seed=1)


@pytest.fixture(scope="session")
def harmless(sft, save_adapter) -> Path:
    """A policy with another rank, rsLoRA, other modules, and a rank and an alpha of its own for some modules."""
    return save_adapter(
        sft,
        sft.parent / "harmless",
        seed=2,
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={r".*\.2\..*v_proj": 7},
    )


@pytest.fixture(scope="session")
def inputs(sft, save_adapter, tmp_path_factory):
    """A function from one of `every_rule.KINDS` to such inputs, two policies each."""
    root = tmp_path_factory.mktemp("every_rule")
    made: dict[str, Inputs] = {}

    def adapters() -> list[Path]:
        wide = {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]}
        return [
            save_adapter(sft, root / "narrow", seed=1, r=3),
            save_adapter(sft, root / "wide", seed=2, **wide),
        ]

    def make(kind: str) -> Inputs:
        if kind == "adapters":
            return inputs_of(sft, adapters())
        if kind in DENSE:
            return inputs_of(*write_checkpoints(sft, root, kind))
        return inputs_of(sft, [make_once("adapters").policies[1], make_once("float32").policies[0]])

    def make_once(kind: str) -> Inputs:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return make_once


@pytest.fixture
def copy_of(tmp_path):
    """A function that copies a folder under a new name, to be damaged by a test."""
    return lambda folder, name="copy": Path(shutil.copytree(folder, tmp_path / name))
