"""A tiny SFT model with a tokenizer of single characters, and LoRA policies with random factors, on disk."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.sweep import of_a_run


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz '\"<>&.\n"
PAD, EOS = 0, 1


def _tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _save_sft(folder: Path, *, seed: int = 0, **sizes) -> Path:
    """Save a float32 Llama of four blocks whose logits react to every matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **{**small, "num_key_value_heads": 2, "max_position_embeddings": 64, **sizes},
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save_policy(sft: Path, folder: Path, *, seed: int, **options) -> Path:
    """Save a LoRA adapter with random factors, written by PEFT itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(sft), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    # An adapted head would otherwise bring a copy of the base's.
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="session")
def save_sft():
    """The function that saves an SFT model."""
    return _save_sft


@pytest.fixture(scope="session")
def save_policy():
    """The function that saves a policy with random factors."""
    return _save_policy


@pytest.fixture(scope="session")
def sft(tmp_path_factory) -> Path:
    """The folder of the SFT model."""
    return _save_sft(tmp_path_factory.mktemp("models") / "sft")


@pytest.fixture(scope="session")
def policies(sft) -> list[Path]:
    """Three policies: ranks 4, 3 and 2, one with rsLoRA, one that adapts the head, which lies outside the blocks."""
    modules = ["q_proj", "v_proj", "down_proj"]
    return [
        _save_policy(sft, sft.parent / "brief", seed=1),
        _save_policy(sft, sft.parent / "kind", seed=2, r=3, lora_alpha=5, use_rslora=True, target_modules=modules),
        _save_policy(sft, sft.parent / "plain", seed=3, r=2, lora_alpha=3, target_modules=["up_proj", "lm_head"]),
    ]


@pytest.fixture(scope="session")
def four_policies(sft, policies) -> list[Path]:
    """These three, and a fourth of rank 5."""
    options = {"r": 5, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"]}
    return [*policies, _save_policy(sft, sft.parent / "fourth", seed=4, **options)]


@pytest.fixture(scope="session")
def load_multi_lora(sft, four_policies):
    """A function from the number of policies to a `MultiLoRA` on a freshly loaded SFT model."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.merge.inputs.adapter import load_adapter
    from rlhf_lines.sweep.engines.multi_lora import MultiLoRA

    def load(num_policies: int) -> MultiLoRA:
        model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
        return MultiLoRA(model, [load_adapter(policy) for policy in four_policies[:num_policies]])

    return load


@pytest.fixture(scope="session")
def multi_lora(load_multi_lora):
    """The `MultiLoRA` of the first two policies."""
    return load_multi_lora(2)


@pytest.fixture(scope="session")
def dense_model(sft, four_policies, tmp_path_factory):
    """A function from a spec to the model that `merge_policies` wrote for it, the weights added up one by one."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.merge import merge_policies

    models, root = {}, tmp_path_factory.mktemp("dense")

    def load(spec):
        if spec not in models:
            folder = root / spec.digest()
            merge_policies(sft, four_policies[: len(spec.weights)], spec, save="dense", output_dir=folder)
            models[spec] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return models[spec]

    return load


@pytest.fixture
def rewards(tmp_path_factory, monkeypatch):
    """The module of the reward functions, fresh for every test."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "tiny_rewards.py").write_text(of_a_run.REWARDS)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("tiny_rewards", None)
    yield importlib.import_module("tiny_rewards")
    sys.modules.pop("tiny_rewards", None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A JSONL file of 200 different prompts of one to five characters."""
    prompts = ["abcdefghijklmnopqrstuvwxyz"[i % 26] * (1 + i % 4) + "xyz'\n .<"[i // 26] for i in range(200)]
    assert len(set(prompts)) == 200
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@pytest.fixture
def flags(sft, policies, dataset, rewards):
    """A function from an output folder and changes to the flags of a sweep without controls."""

    def make(output_dir: Path, **changes) -> list[str]:
        settings = {
            "sft_model": sft,
            "policies": policies[:2],
            "rewards": ["tiny_rewards:short", "tiny_rewards:early"],
            "dataset_name": dataset,
            "output_dir": output_dir,
            "alphas": of_a_run.ALPHAS,
            "betas": of_a_run.BETAS,
            "controls": "false",
            "num_weights": of_a_run.WEIGHTS,
            "validation_weights": 3,
            "validation_prompts": of_a_run.VALIDATION,
            "test_prompts": of_a_run.TEST,
            "max_new_tokens": 8,
            "batch_size": 32,
            **changes,
        }
        return of_a_run.words(settings)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> dict:
    """Where a finished sweep is kept for the tests that only read it."""
    return {"folder": tmp_path_factory.mktemp("sweeps") / "sweep"}


@pytest.fixture
def sweep(finished, flags, rewards) -> Path:
    """A finished sweep, made by the first test that asks for it."""
    from rlhf_lines.stages import run_stage

    if not finished["folder"].exists():
        run_stage("sweep", flags(finished["folder"]))
        assert sum(map(len, rewards.SCORED)) == of_a_run.ROWS
        rewards.SCORED.clear()
    return finished["folder"]
