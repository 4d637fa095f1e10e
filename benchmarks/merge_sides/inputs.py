"""Three random checkpoints to merge: an SFT model and two policies, written tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor


SIZES = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "1b": {  # TinyLlama's shape: 1.10 billion parameters
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}
CHECKPOINTS = ("sft", "policy_1", "policy_2")
DEVIATION = 0.02  # of a weight, as models are initialised
RESIDUAL = 0.03  # relative size of a residual in the middle of the model


def write_inputs(folder: Path, size: str, *, seed: int = 0) -> None:
    """Write `sft`, `policy_1` and `policy_2` into an empty folder, in bfloat16, one file of weights each.

    Residuals are independent of each other; their size relative to the weight grows with depth, from half of
    `RESIDUAL` in the first layer to one and a half of it in the last. Only one tensor is in memory at a time.
    """
    shapes = _shapes(SIZES[size])
    files = []
    for name in CHECKPOINTS:
        (folder / name).mkdir()
        _write_config_and_tokenizer(folder / name, SIZES[size])
        files.append((folder / name / "model.safetensors").open("wb"))
        _write_header(files[-1], shapes)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        for file, tensor in zip(files, _tensors(name, shape, SIZES[size], generator), strict=True):
            file.write(tensor.bfloat16().view(torch.int16).numpy())
    for file in files:
        file.close()


def _tensors(name: str, shape: tuple[int, ...], sizes: dict, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield one parameter of the SFT model and of the two policies, in float32."""
    norm = len(shape) == 1
    sft = torch.randn(shape, generator=generator).mul_(DEVIATION)
    if norm:
        sft += 1
    yield sft
    scale = RESIDUAL * (0.5 + _depth(name, sizes["num_hidden_layers"])) * (1.0 if norm else DEVIATION)
    for _ in CHECKPOINTS[1:]:
        yield torch.randn(shape, generator=generator).mul_(scale).add_(sft)


def _depth(name: str, num_layers: int) -> float:
    """0 for the embedding and the first layer, 1 for the last layer and what follows it."""
    if name.startswith("model.layers."):
        return int(name.split(".")[2]) / max(num_layers - 1, 1)
    return 0.0 if name.startswith("model.embed") else 1.0


def _shapes(sizes: dict) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (keys, hidden),
    }
    shapes = {"lm_head.weight": (vocab, hidden), "model.embed_tokens.weight": (vocab, hidden)}
    for i in range(sizes["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,)}


def _write_header(file: BinaryIO, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write the head of a safetensors file of bfloat16 tensors, which follow in the order of `shapes`."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)


def _write_config_and_tokenizer(folder: Path, sizes: dict) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        **sizes,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    config.save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, sizes["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
