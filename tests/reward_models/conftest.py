"""Tiny random classifiers of many architectures, with tokenizers trained here."""

from __future__ import annotations

import pytest
import torch


SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "a short answer is a good answer",
    "how do I boil an egg? put it in hot water for seven minutes.",
    "braces {prompt} and {completion} are just characters {0} {} here",
    "numbers 1 2 3 4 5 6 7 8 9 0, commas; colons: and more!",
]


def train_tokenizer(pad_token, eos_token, bos_token, template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<bos>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if template is not None:
        single, pair = template
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, eos_token=eos_token, bos_token=bos_token, sep_token="<eos>"
    )


@pytest.fixture(scope="session")
def make_tokenizer():
    """Returns a maker of tokenizers; the template "encoder" makes <bos> A <eos> and <bos> A <eos> B <eos>."""
    templates = {
        None: None,
        "bos": ("<bos> $A", "<bos> $A $B"),
        "encoder": ("<bos> $A <eos>", "<bos>:0 $A:0 <eos>:0 $B:1 <eos>:1"),
    }

    def make(template=None, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"):
        return train_tokenizer(pad_token, eos_token, bos_token, templates[template])

    return make


@pytest.fixture(scope="session")
def make_model():
    """Returns a maker of tiny random classifiers by transformers' model type."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    long = {"max_position_embeddings": 128}
    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "rotary_dim": 4},
        "gpt_neo": {
            **{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24},
            **{"attention_types": [[["global", "local"], 1]], "window_size": 4, **long},
        },
        "gpt_neox": {**small, **long},
        "opt": {
            **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24},
            **{"word_embed_proj_dim": 8, **long},
        },
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
        "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
        "llama": {**small, **long, "num_key_value_heads": 1},
        "qwen2": {**small, **long, "num_key_value_heads": 1},
        "mistral": {**small, **long, "num_key_value_heads": 1, "sliding_window": 5},
        "bert": {**small, **long},
        "roberta": {**small, "max_position_embeddings": 131},
        "xlm-roberta": {**small, "max_position_embeddings": 131},
        "camembert": {**small, "max_position_embeddings": 131},
        "albert": {**small, **long, "embedding_size": 8},
        "electra": {**small, **long, "embedding_size": 8},
        "deberta": {**small, **long, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "deberta-v2": {
            **{**small, **long, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
            **{"position_biased_input": False, "position_buckets": 8, "share_att_key": True},
        },
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **long},
        "modernbert": {**small, **long, "local_attention": 4, "classifier_pooling": "mean"},
        "bart": {
            **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
            **{"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, **long},
            "decoder_start_token_id": 0,
        },
        "t5": {
            **{"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 24, "d_kv": 8},
            "decoder_start_token_id": 2,
        },
        "xlnet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24},
        "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    }

    def make(model_type, num_labels=1, **changes):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        torch.manual_seed(0)
        tokens = {"vocab_size": 330, "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 2, "num_labels": num_labels}
        config = AutoConfig.for_model(model_type, **{**tokens, **sizes[model_type], **changes})
        # Eager attention exists for all of them, and one code path less differs between machines.
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            # The usual initialisation is so small that a wrong position would hardly change the score.
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    return make
