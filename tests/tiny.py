"""The one maker of tiny models, their tokenizers and adapters; random, in a moment, and nothing is downloaded."""

from __future__ import annotations

import string
from pathlib import Path

import torch


PAD, EOS, UNK = 0, 1, 2
WORDS = list("abcdefghij")
TWO_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}  # with as many heads of keys and values
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CHAT_MODEL = "SmolLM2-135M-Instruct"  # the name under which `chat_model` takes the place of a real one
_CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
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


def word_tokenizer(**changes):
    """A tokenizer of `WORDS` between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<eos>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **changes})


def character_tokenizer(characters: str):
    """A tokenizer of single characters: the first of them is token 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def widened(model, std: float = 0.25):
    """The model, in float32, with matrices larger than the usual initialisation: logits react to each of them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, std)
    return model.float().eval()


def llama_config(tokenizer=None, **changes):
    """The shape of a Llama of four layers, for a tokenizer where one is given."""
    from transformers import LlamaConfig

    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if tokenizer is not None:
        settings |= {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    return LlamaConfig(**{**settings, **changes})


def llama(tokenizer=None, *, seed: int = 0, std: float | None = 0.25, **changes):
    """A Llama of the shape of `llama_config`; where `std` is None, with the usual initialisation."""
    from transformers import LlamaForCausalLM

    return _made(LlamaForCausalLM, llama_config(tokenizer, **changes), seed, std)


def gpt2(tokenizer=None, *, seed: int = 0, std: float | None = None, **changes):
    """A GPT-2 of two layers: weights of Conv1D, biases, a tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": 16, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    if tokenizer is not None:
        settings |= {"vocab_size": len(tokenizer), "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return _made(GPT2LMHeadModel, GPT2Config(**{**settings, **changes}), seed, std)


def _made(architecture, config, seed: int, std: float | None):
    torch.manual_seed(seed)
    model = architecture(config)
    return model.eval() if std is None else widened(model, std)


def save(model, tokenizer, folder: Path) -> Path:
    """Write a model and its tokenizer into one folder, and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_model(folder: Path, **changes) -> Path:
    """Write a chat model that reads English, letter by letter, and answers at random; changes are of its shape."""
    tokenizer = character_tokenizer(string.ascii_letters + string.digits + " .,:;?!'\n")
    tokenizer.chat_template = _CHAT
    return save(llama(tokenizer, **{"std": None, "max_position_embeddings": 256, **changes}), tokenizer, folder)


def save_adapter(sft, folder: Path, *, seed: int, std: float = 0.2, save_embedding_layers=False, **options) -> Path:
    """Write a LoRA policy with random factors: of rank 4 on attention, of scale 2, if options do not say otherwise.

    `sft` is the folder of a model, or the model.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **options}
    base = AutoModelForCausalLM.from_pretrained(sft) if isinstance(sft, str | Path) else sft
    model = get_peft_model(base, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    # By default PEFT saves a copy of the base's head beside factors on it.
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    (folder / "README.md").unlink(missing_ok=True)
    return folder
