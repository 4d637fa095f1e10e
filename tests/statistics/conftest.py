"""A tiny SFT model with a tokenizer of single characters, prompts, and policies: an adapter, and dense checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.statistics.oracle import CHARACTERS, EOS, PAD, PROMPTS


def _tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _save_llama(folder: Path, *, seed: int = 0, **changes) -> Path:
    """Save a float32 Llama of three blocks whose logits react to every matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        **changes,
    }
    torch.manual_seed(seed)
    return _save(LlamaForCausalLM(LlamaConfig(**settings)), tokenizer, folder)


def _save_gpt2(folder: Path) -> Path:
    """Save a GPT-2 of two blocks: weights of Conv1D, biases, a tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer()
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD))
    return _save(model, tokenizer, folder)


def _save(model, tokenizer, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.float().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save_adapter(sft: Path, folder: Path, **options) -> Path:
    """Save a LoRA policy with random factors, written by PEFT itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"], **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(sft), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


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
