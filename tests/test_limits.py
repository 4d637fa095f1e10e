"""What a model cannot read or write is one sentence before the work, read from configs as transformers makes them."""

from __future__ import annotations

import re

import pytest
from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration, LlamaTokenizer

from rlhf_lines import limits
from rlhf_lines.limits import check_length, check_prompts, check_writes, longest_text, position_table, token_ids
from rlhf_lines.models import load_tokenizer
from tests.architectures import ARCHITECTURES
from tests.tiny import gpt2, llama, llama_config, word_tokenizer


# One sentence, whoever finds the prompt: the loading of rows names the row as well (tests/data/test_left_out.py).
NEEDS_ONE = ", and the first word of a completion needs one before it: fill it in, or leave out the row$"


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("llama", {"max_position_embeddings": 50}, 50),
        ("gpt2", {"n_positions": 50}, 50),
        ("mpt", {"max_seq_len": 50}, 50),
        ("bloom", {}, None),
        ("mamba", {}, None),
        ("opt", {"max_position_embeddings": 50}, 50),  # its table has two rows more, for what it adds to positions
        ("roberta", {"max_position_embeddings": 52, "pad_token_id": 1}, 50),  # positions begin at 2
        (
            "phi3",
            {"original_max_position_embeddings": 50, "max_position_embeddings": 99, "rope_parameters": LONGROPE},
            50,
        ),
    ],
)
def test_the_longest_text_of_an_architecture(kind, settings, limit):
    found = longest_text(AutoConfig.for_model(kind, **settings))
    assert (found and found.tokens) == limit


@pytest.mark.parametrize(("tokens", "fits"), [(10, True), (11, False)])
def test_a_prompt_and_its_completion_fit_up_to_the_last_position(tokens, fits):
    config = llama_config(max_position_embeddings=16)
    if fits:
        check_length(config, tokens, max_completion_length=6)
    else:
        sentence = "longest prompt has 11 tokens and max_completion_length is 6, but the model has 16 positions"
        with pytest.raises(ValueError, match=sentence):
            check_length(config, tokens, max_completion_length=6)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([[3], []], f"dataset words has a prompt without tokens{NEEDS_ONE}"),
        ([[3], [4, 24]], "dataset words has a prompt with the token 24, but the model knows 24 tokens"),
        ([[3] * 40, [3]], "longest prompt has 40 tokens and max_new_tokens is 30, but the model has 64 positions"),
    ],
)
def test_prompts_that_cannot_be_completed(prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_prompts(llama_config(vocab_size=24), prompts, dataset="words", max_new_tokens=30)


def test_the_tokens_of_few_texts_are_held_at_a_time(monkeypatch):
    monkeypatch.setattr(limits, "AT_ONCE", 3)
    tokenizer, texts, asked = word_tokenizer(), [" ".join("abcdefg"[:n]) for n in range(1, 8)], []

    def read(part, **options):
        asked.append(len(part))
        return tokenizer(part, **options)

    found = token_ids(read, iter(texts))
    assert [next(found), asked] == [tokenizer("a")["input_ids"], [3]]  # the others wait until they are asked for
    assert [*found] == [tokenizer(text)["input_ids"] for text in texts[1:]]
    assert asked == [3, 3, 1]


def test_tokens_of_texts_that_no_model_ends_or_knows():
    config = llama_config(vocab_size=13)
    check_writes(config, word_tokenizer())
    with pytest.raises(ValueError, match="has no end token"):
        check_writes(config, word_tokenizer(eos_token=None))
    with pytest.raises(
        ValueError, match="padding token '<more>' of the tokenizer has the id 13, but the model knows 13"
    ):
        check_writes(config, word_tokenizer(pad_token="<more>"))
    with pytest.raises(ValueError, match="end token '<more>' of the tokenizer has the id 13"):
        check_writes(config, word_tokenizer(eos_token="<more>"))


def llama_tokenizer(*, bos: bool, eos: bool):
    """A Llama's, as of a folder without tokenizer.json, where two settings say what it puts around a text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    return LlamaTokenizer(vocab=vocab, merges=[("▁", "a")], add_bos_token=bos, add_eos_token=eos)


@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_ends_every_text_is_refused_with_what_to_set(tmp_path, bos):
    llama_tokenizer(bos=bos, eos=True).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("a")["input_ids"] == [1] * bos + [5, 2]
    with pytest.raises(
        ValueError, match=rf"{tmp_path.name} puts '</s>' behind every text, so completions .*: set "
    ) as e:
        check_writes(llama_config(vocab_size=13), tokenizer)
    for setting in re.findall(r"tokenizer\.(\w+) = (True|False)", str(e.value)):
        setattr(tokenizer, setting[0], setting[1] == "True")
    tokenizer.save_pretrained(tmp_path)
    mended = load_tokenizer(tmp_path)
    check_writes(llama_config(vocab_size=13), mended)
    assert mended("a")["input_ids"] == [1] * bos + [5]


def test_a_token_before_every_text_may_be_the_end_token():
    """As OPT's: its `</s>` begins texts and ends them."""
    tokenizer = word_tokenizer(bos_token="<eos>")
    tokenizer.add_bos_token = True
    assert tokenizer("a")["input_ids"] == [1, 3]
    check_writes(llama_config(vocab_size=13), tokenizer)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_models_that_read_what_comes_later_write_nothing(kind):
    with pytest.raises(ValueError, match=f"{kind} models read the tokens that come later"):
        check_writes(AutoConfig.for_model(kind), word_tokenizer())
    check_writes(AutoConfig.for_model(kind, is_decoder=True), word_tokenizer())


def test_causal_models_that_have_is_decoder_as_false_write_all_the_same():
    """Pythia was refused: its config has the switch, off, and its attention does not look at it."""
    check_writes(AutoConfig.for_model("gpt_neox"), word_tokenizer())
    for architecture in ARCHITECTURES:
        check_writes(architecture.model().config, word_tokenizer())


def test_the_table_of_positions():
    assert position_table(gpt2(n_positions=12)) == 12
    assert position_table(llama()) is None
    tables = {a.name for a in ARCHITECTURES if position_table(a.model()) is not None}
    assert tables == {"gpt2", "openai-gpt", "gptj", "gpt_bigcode", "opt", "bart"}


def test_positions_of_patches_are_none_of_a_text():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={"vocab_size": 13, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8, **sizes},
        vision_config={"image_size": 28, "patch_size": 14, "num_hidden_layers": 1, **sizes},  # 4 patches
        mm_tokens_per_image=4,
    )
    assert position_table(Gemma3ForConditionalGeneration(config)) is None


def test_a_tokenizer_without_an_end_token_takes_that_of_the_model(tmp_path):
    tokenizer = word_tokenizer(eos_token=None, pad_token=None)
    llama(vocab_size=13, eos_token_id=1, pad_token_id=None).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.eos_token, loaded.pad_token) == ("<eos>", "<eos>")
