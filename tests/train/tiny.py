"""A tiny random Llama and a word tokenizer, made in a moment; nothing is downloaded."""

from __future__ import annotations

import torch


WORDS = list("abcdefghij")
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
