"""A random model of LLaMA-2-7B's shape and two random adapters, for benchmarks where nothing can be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch


TOKENIZER_WORDS = 30_000


SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def write_random_llama(folder: Path, *, rank: int, sizes: Mapping[str, int] = SIZES) -> tuple[Path, list[Path]]:
    """Write an SFT model in bfloat16, with a tokenizer, and two adapters on its attention; return their folders.

    Weights are as before training; an adapter's residual is a few percent of a weight.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**sizes, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sft = folder / "sft"
    model.save_pretrained(sft)
    del model
    _tokenizer().save_pretrained(sft)
    policies = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(sft, dtype="bfloat16"), settings)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02 if "lora_A" in name else 0.002)
        policies.append(folder / f"policy_{seed}")
        adapted.save_pretrained(policies[-1])
    return sft, policies


def _tokenizer():
    """Byte pairs of the docstrings corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rlhf_lines import data

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_WORDS,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(data.load("docstrings", "text", "train")["text"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
