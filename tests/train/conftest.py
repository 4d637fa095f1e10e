"""Tiny random models and a word tokenizer made here; nothing is downloaded."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = "a b c d e f g h i j".split()
# On a CPU, in float32, silently.
QUIET = {
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


def make_tokenizer(**changes):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<eos>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **changes})


def make_llama(*, std=0.25, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": len(WORDS) + 3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(**{**sizes, **tokens, "max_position_embeddings": 64, **changes})
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        # Larger than the usual initialisation, so that the numbers depend on every matrix.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, std)
    return model


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(padding_side="left")


@pytest.fixture(scope="session")
def llama():
    """Return a maker of copies of one tiny random Llama."""
    model = make_llama()
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer, llama):
    """Return the folder of the tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "base"
    llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def flags():
    """Return a maker of command-line flags from keyword arguments, quiet and on a CPU."""

    def make(**settings):
        quiet = {key: str(value).lower() for key, value in {**QUIET, "save_strategy": "no"}.items()}
        arguments = []
        for key, value in {**quiet, **settings}.items():
            values = value if isinstance(value, list | tuple) else [value]
            arguments += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return arguments

    return make


@pytest.fixture
def write_rows(tmp_path):
    """Return a writer of JSONL files."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
