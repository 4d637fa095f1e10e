"""A completion is what its tokens say behind its prompt, whatever the tokenizer drops of a text that stands alone."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lines.completions import StopTexts, completion_texts, stop_problems
from tests.tiny import word_tokenizer


LETTERS = "abcdefghijAH:!\n"


def fast(model, pre_tokenizer, decoder):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<eos>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def like_llama2():
    """Word pieces that hold their blank, bytes for what has no piece, and a decoder that drops the first blank."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    pieces = ["<pad>", "<eos>", "<unk>", *bytes_, "▁", *LETTERS, *(f"▁{letter}" for letter in LETTERS)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", letter) for letter in LETTERS]
    blanks = decoders.Replace("▁", " ")
    return fast(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True),
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False),
        decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )


def like_t5():
    """Word pieces of a unigram model, every word with its blank, which the decoder drops from the first."""
    pieces = [("<pad>", 0.0), ("<eos>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    pieces += [(f"▁{letter}", -2.5) for letter in LETTERS]
    return fast(models.Unigram(pieces, 0, False), pre_tokenizers.Metaspace(), decoders.Metaspace())


def like_gpt2():
    """Bytes, of which none is dropped."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    return fast(models.BPE(vocab, []), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


@pytest.mark.parametrize("make", [like_llama2, like_t5, like_gpt2, word_tokenizer])
@pytest.mark.parametrize("text", ["a b c d", "b a b <eos>", "a b\n\nH: c d"])
def test_prompt_and_completion_are_the_text_wherever_it_is_parted(make, text):
    if make is word_tokenizer:
        text = text.replace("\n\nH:", " j")
    tokenizer = make()
    ids = tokenizer(text)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.strip() == text.removesuffix(" <eos>")
    prompts, completions = zip(*((ids[:i], ids[i:]) for i in range(1, len(ids))), strict=True)
    for prompt, added in zip(prompts, completion_texts(tokenizer, prompts, completions), strict=True):
        assert tokenizer.decode(prompt, skip_special_tokens=True) + added == whole


def test_the_blank_between_prompt_and_completion_is_kept():
    tokenizer = like_llama2()
    prompt, vocab = tokenizer("H: a:")["input_ids"], tokenizer.get_vocab()
    b, glued = vocab["▁b"], vocab["b"]
    assert tokenizer.decode([b, b]) == "b b", "alone, the first blank is lost"
    texts = completion_texts(tokenizer, [prompt] * 3, [[b, b, vocab["<eos>"]], [glued, b], [vocab["<eos>"]]])
    assert texts == [" b b", "b b", ""]
    # Behind nothing, the first piece of a text stands for the text without a blank.
    assert completion_texts(tokenizer, [[], [vocab["<eos>"]]], [[b], [b]]) == ["b", "b"]


def test_text_of_a_tokenizer_that_drops_nothing_is_that_of_its_tokens_alone():
    tokenizer = like_gpt2()
    prompt = tokenizer("äH:")["input_ids"]
    euro = tokenizer("€")["input_ids"]
    completions = [tokenizer(" b ")["input_ids"], euro[:2], [*euro[1:], *euro], [], [tokenizer.eos_token_id, *euro]]
    alone = tokenizer.batch_decode(completions, skip_special_tokens=True)
    assert completion_texts(tokenizer, [prompt] * len(completions), completions) == alone
    assert alone[1] == "\ufffd", "cut inside a character"


def test_bytes_at_the_border():
    """A character that is cut does not spoil one of the prompt, and one that is completed is not lost."""
    tokenizer, thumb = like_llama2(), "👍"
    prompt = tokenizer(f"a {thumb}")["input_ids"]
    first, blank_b = tokenizer.get_vocab()["<0xF0>"], tokenizer.get_vocab()["▁b"]
    assert tokenizer.decode([*prompt, first]).count("\ufffd") == 5, "together, its bytes are broken as well"
    texts = completion_texts(tokenizer, [prompt] * 3, [[first], [first, blank_b], prompt[-4:]])
    assert texts == ["\ufffd", "\ufffd b", thumb]
    assert completion_texts(tokenizer, [prompt[:-1]], [[prompt[-1], blank_b]]) == [f"{thumb} b"]


# --- texts that end a completion ---


@pytest.mark.parametrize("make", [like_llama2, like_t5, like_gpt2])
@pytest.mark.parametrize(
    ("completion", "stops", "before"),
    [
        (" b c\n\nH: d", ["\n\nH:"], " b c"),
        (" b c d b", ["d b", "c"], " b "),
        (" b c", [" b"], ""),
        (" b c", ["x", "cc"], " b c"),
    ],
)
def test_a_completion_is_written_up_to_a_stop_text_and_read_up_to_before_it(make, completion, stops, before):
    """The tokens are the fewest whose text holds one: with one less it holds none."""
    if make is like_t5 and "\n" in completion:  # of which this tokenizer makes a blank
        completion, stops = completion.replace("\n\nH:", " j"), [" j"]
    tokenizer = make()
    prompt = tokenizer("a:")["input_ids"]
    ids = tokenizer("a:" + completion)["input_ids"][len(prompt) :]
    texts = [completion_texts(tokenizer, [prompt], [ids[:n]])[0] for n in range(len(ids) + 1)]
    holding = [n for n, text in enumerate(texts) if any(stop in text for stop in stops)]
    stop = StopTexts(tokenizer, stops)
    assert stop.kept(prompt, ids) == (holding[0] if holding else len(ids))
    assert stop.cut(texts[stop.kept(prompt, ids)]) == stop.cut(texts[-1]) == before
    for n in range(1, stop.kept(prompt, ids) + 1):  # it is not asked of what has ended
        assert stop.ended([prompt, prompt], [ids[:n], ids[:0]]) == [n in holding, False]


def test_a_stop_text_in_bytes_is_seen_when_it_is_whole():
    tokenizer, thumb = like_llama2(), "👍"
    prompt, ids = tokenizer("a")["input_ids"], tokenizer(f"a b{thumb} c")["input_ids"]
    ids = ids[len(prompt) :]
    stop = StopTexts(tokenizer, [thumb])
    assert [stop.ended([prompt], [ids[:n]])[0] for n in range(1, 6)] == [False, False, False, False, True]
    assert stop.kept(prompt, ids) == 5 and stop.cut(f" b{thumb} c") == " b"


@pytest.mark.parametrize("make", [like_llama2, like_t5, like_gpt2])
def test_the_prompt_is_decoded_once_and_the_completion_a_few_times(make, monkeypatch):
    tokenizer = make()
    prompt, ids = tokenizer("a:")["input_ids"], tokenizer(" b c d" * 30 + " j" + " b c d" * 30)["input_ids"]
    stop, decoded, decode = StopTexts(tokenizer, ["j"]), [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: decoded.append(ids) or decode(ids, **options))
    count = stop.kept(prompt, ids)
    assert decoded.count(prompt) == 1 and len(decoded) < 2 + 2 * len(ids).bit_length()
    assert "j" in decode([*prompt, *ids[:count]]) and "j" not in decode([*prompt, *ids[: count - 1]])


def test_a_special_token_is_no_stop_text():
    tokenizer = like_llama2()
    end = tokenizer.eos_token
    assert list(stop_problems(tokenizer, ["\n\nH:", "a b"])) == []
    unnamed = like_gpt2()
    unnamed.add_tokens([AddedToken("<|eot_id|>", special=True)], special_tokens=True)
    assert [*stop_problems(unnamed, ["<|eot_id|>"])] and not [*stop_problems(unnamed, ["<|eot"])]
    (problem,) = stop_problems(tokenizer, ["a", f"b{end}"])
    assert f"stop holds 'b{end}', but '{end}' is a special token, which has no text in a completion" in problem


def test_no_stop_text_ends_nothing():
    stop = StopTexts(like_gpt2(), [])
    assert not stop and stop.cut("a b") == "a b" and stop.kept([4], [5, 6]) == 2
