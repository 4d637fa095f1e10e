"""A tiny SFT model that vLLM's CPU kernels take (heads of 32), two LoRA policies with random factors, and settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import tiny


# Before vLLM is imported: no threads pinned to cores that others use, warnings only.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

PAD, WORDS = 0, 40
ENDS = [1, 37]  # the tokenizer's end token, and the one of the generation config


@pytest.fixture(scope="session")
def sft(tmp_path_factory) -> Path:
    """The folder of a float32 Llama of four layers, whose logits react to every matrix, with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "sft"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    tokens = {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": ENDS[1], "pad_token_id": PAD}
    tiny.llama(hidden_size=32, intermediate_size=48, **heads, **tokens).save_pretrained(folder)
    vocabulary = {"<pad>": PAD, "<eos>": ENDS[0], "<unk>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(sft):
    """Policies of ranks 4, 3 and 2 on different modules, one with rsLoRA, the last on the head, as PEFT wrote them."""
    from rlhf_lines.merge.inputs.adapter import load_adapter

    loaded = []
    for seed, options in enumerate(
        (
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
            {"r": 2, "lora_alpha": 3, "target_modules": ["up_proj", "lm_head"]},
        )
    ):
        folder = tiny.save_adapter(sft, sft.parent / str(seed), seed=seed, **options)
        loaded.append(load_adapter(folder))
    return loaded


@pytest.fixture(scope="session")
def multi_lora(sft, adapters):
    """The `MultiLoRA` of the local engine, of all three."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.sweep.engines.multi_lora import MultiLoRA

    return MultiLoRA(AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval(), adapters)


@pytest.fixture(scope="session")
def greedy(multi_lora):
    """A function from requests to what the local engine writes."""
    from rlhf_lines.sweep.engines.sampling import sample

    def complete(requests):
        return sample(
            multi_lora, requests, max_new_tokens=16, temperature=0.0, eos_token_ids=ENDS, pad_token_id=PAD, seed=0
        )

    return complete


@pytest.fixture(scope="session")
def make_config(sft, adapters):
    """A function from settings to the config of a sweep."""
    from rlhf_lines.sweep.config import SweepConfig

    def make(**settings) -> SweepConfig:
        given = {
            "sft_model": str(sft),
            "policies": [adapter.path for adapter in adapters[:2]],
            "rewards": ["rule:length", "rule:words"],
            "output_dir": "unused",
            "engine": "vllm",
            "temperature": 0.0,
            "max_new_tokens": 16,
            "vllm": {"enforce_eager": True, "max_num_seqs": 16},
        }
        return SweepConfig(**{**given, **settings})

    return make
