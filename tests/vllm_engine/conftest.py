"""A tiny SFT model that vLLM's CPU kernels take (heads of 32), two LoRA policies with random factors, and settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


# Before vLLM is imported: a small cache, no threads pinned to cores that others use, warnings only.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

PAD, WORDS = 0, 40
ENDS = [1, 37]  # the tokenizer's end token, and the one of the generation config


@pytest.fixture(scope="session")
def sft(tmp_path_factory) -> Path:
    """The folder of a float32 Llama of four blocks, whose logits react to every matrix, with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "sft"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=ENDS[1],
            pad_token_id=PAD,
        )
    ).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.save_pretrained(folder)
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
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from rlhf_lines.merge.inputs.adapter import load_adapter

    loaded = []
    for seed, options in enumerate(
        (
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
            {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
            {"r": 2, "lora_alpha": 3, "target_modules": ["up_proj", "lm_head"]},
        )
    ):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(sft), LoraConfig(task_type="CAUSAL_LM", **options))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.save_pretrained(sft.parent / str(seed), save_embedding_layers=False)
        loaded.append(load_adapter(sft.parent / str(seed)))
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
