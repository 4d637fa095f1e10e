"""The untrained models that the demo starts from, in place of the downloads of a real run.

Three architectures with three tokenizers, because that is what users have: a Llama-like policy, a GPT-2-like and a
BERT-like reward model. Their tokenizers are trained on the corpus; their weights are random, from a fixed seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.data import docstrings


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = "outputs/demo"  # where the demo's configs write
SEED = 0
# Shapes. Vocabularies are at most so large; the corpus fills them.
LLAMA = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
GPT2 = {"vocab_size": 1024, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "num_labels": 1}
BERT = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
    "num_labels": 1,
}
# Folder to shape, for who needs it before the folder is made.
UNTRAINED = {
    f"{ROOT}/untrained/llama": {"model_type": "llama", **LLAMA},
    f"{ROOT}/untrained/gpt2": {"model_type": "gpt2", **GPT2},
    f"{ROOT}/untrained/bert": {"model_type": "bert", **BERT},
}


def write_untrained_models(output_dir: str | Path) -> Path:
    """Write `llama/`, `gpt2/` and `bert/` under `output_dir` and return it."""
    import torch

    texts = [row["text"] for row in docstrings.text("train")]
    with new_folder(output_dir) as folder:
        for name, make in (("llama", _llama), ("gpt2", _gpt2), ("bert", _bert)):
            torch.manual_seed(SEED)
            model, tokenizer = make(texts)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        write_record(folder, "untrained", {}, seed=SEED)
    return Path(output_dir)


def _llama(texts: list[str]):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_pair_tokenizer(texts, vocab_size=LLAMA["vocab_size"])
    config = LlamaConfig(
        **{**LLAMA, "vocab_size": len(tokenizer)},
        initializer_range=0.08,  # about 1 / sqrt(hidden_size): a narrow model learns slowly from the usual 0.02
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def _gpt2(texts: list[str]):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    tokenizer = _byte_pair_tokenizer(texts, vocab_size=GPT2["vocab_size"])
    config = GPT2Config(
        **{**GPT2, "vocab_size": len(tokenizer)},
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2ForSequenceClassification(config), tokenizer


def _bert(texts: list[str]):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _word_piece_tokenizer(texts, vocab_size=BERT["vocab_size"])
    config = BertConfig(**{**BERT, "vocab_size": len(tokenizer)}, pad_token_id=tokenizer.pad_token_id)
    return BertForSequenceClassification(config), tokenizer


def _byte_pair_tokenizer(texts: list[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def _word_piece_tokenizer(texts: list[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # The library's WordPiece trainer breaks ties by hash order, so two runs give two vocabularies. Whole frequent words
    # and single characters are all that this reward model needs.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    characters = sorted({character for word in words for character in word})
    pieces = dict.fromkeys([*special, *characters, *(f"##{character}" for character in characters)])
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces.update(dict.fromkeys(frequent[: vocab_size - len(pieces)]))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}

    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), 1000):
        yield texts[start : start + 1000]
