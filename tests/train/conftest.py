"""Tiny models on disk, rows and flags for the stages that train."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch

from reward_models import Format, write_settings
from tests import tiny
from tests.tiny import QUIET, TWO_LAYERS, word_tokenizer


os.environ.setdefault("HF_HUB_OFFLINE", "1")


HELD_OUT = {key: f"held out {key}" for key in ("text", "prompt", "completion", "chosen", "rejected")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what ``datasets`` caches out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(padding_side="left")


@pytest.fixture(scope="session")
def llama():
    """Return a maker of copies of one tiny random Llama."""
    model = tiny.llama(word_tokenizer(), **TWO_LAYERS)
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer, llama):
    """Return the folder of the tiny Llama and its tokenizer."""
    return tiny.save(llama(), tokenizer, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def short_reader(tmp_path_factory, tokenizer):
    """Return the folder of a reward model that reads 4 words and cuts the start of what is longer."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny.llama_config(tokenizer, num_labels=1, **TWO_LAYERS))
    folder = tiny.save(tiny.widened(model), tokenizer, tmp_path_factory.mktemp("models") / "short")
    write_settings(folder, Format("{prompt} {completion}", max_length=4))
    return folder


@pytest.fixture
def flags():
    """Return a maker of command-line flags from keyword arguments, quiet and on a CPU."""

    def make(**settings):
        quiet = {key: str(value).lower() for key, value in QUIET.items()}
        arguments = []
        for key, value in {**quiet, **settings}.items():
            values = value if isinstance(value, list | tuple) else [value]
            arguments += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return arguments

    return make


@pytest.fixture
def write_rows(tmp_path):
    """Return a writer of JSONL files.

    A folder of a train split gets the others, too: what it lacks would be taken out of train.
    """

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if path.name == "train.jsonl":
            for split in ("validation", "test"):
                write(path.with_name(f"{split}.jsonl"), [HELD_OUT])
        return path

    return write
