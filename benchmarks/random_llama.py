"""A random model of LLaMA-2-7B's shape and two random adapters, for benchmarks where nothing can be fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


TOKENIZER_WORDS = 30_000
FILE_SIZE = "2GB"
SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def write_random_llama(folder: Path, *, rank: int, sizes: Mapping[str, int] = SIZES) -> tuple[Path, list[Path]]:
    """Write an SFT model in bfloat16, with a tokenizer, and two adapters on its attention; return their folders."""
    sft = write_base(folder / "sft", sizes)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return sft, [write_adapter(folder / f"policy_{seed}", sft, rank, targets, seed) for seed in (1, 2)]


def write_base(folder: Path, sizes: Mapping[str, int] = SIZES) -> Path:
    """Write a model in bfloat16, with a tokenizer, and return its folder; no more than one file is in memory.

    Matrices are uniform noise of the standard deviation that training starts from; norms are 1.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **sizes, bos_token_id=None, eos_token_id=1, pad_token_id=0, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    shards = split_torch_state_dict_into_shards(shapes, max_shard_size=FILE_SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for file, names in shards.filename_to_tensors.items():
        tensors = {name: _weight(shapes[name].shape, config.initializer_range, generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _tokenizer().save_pretrained(folder)
    config.save_pretrained(folder)  # last: a folder without it is unfinished
    return folder


def write_adapter(folder: Path, base: Path, rank: int, targets: Sequence[str], seed: int) -> Path:
    """Write an adapter on square modules of a base, whose residual is a few percent of a weight; return its folder."""
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoConfig

    sizes = AutoConfig.from_pretrained(base)
    width = sizes.hidden_size
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(sizes.num_hidden_layers):
        for target in targets:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            A, B = (torch.randn(shape, generator=generator) for shape in ((rank, width), (width, rank)))
            tensors |= {f"{name}.lora_A.weight": A * 0.02, f"{name}.lora_B.weight": B * 0.002}
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(base)
    settings.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _weight(shape: Sequence[int], std: float, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    noise = torch.empty(shape, dtype=torch.int8).random_(-127, 128, generator=generator)
    return noise.to(torch.bfloat16).mul_(std * 3**0.5 / 127)  # the variance of a uniform number in [-1, 1] is 1/3


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
