"""The similarity of a completion to a source: the formula by hand, whatever the batch, and what is copied."""

from __future__ import annotations

import json
import math

import pytest
import torch

from reward_models import RewardModel, Similarity, load
from reward_models.similarity import copied_share


ASKED = [
    "how do I boil an egg? put it in hot water for seven minutes.",
    "the cat",
    "a short answer is a good answer and the cat sat on the mat and looked at the dog",
]
SAID = [" the dog looked at the egg in the hot water.", "a mat 1 2 3 4 5 6 7 8 9 0", "no"]


@pytest.fixture(scope="module")
def save_encoder(make_model, make_tokenizer, tmp_path_factory):
    """The function that saves the trunk of a tiny random model with its tokenizer, and returns the folder."""

    def save(model_type="bert", **changes):
        folder = tmp_path_factory.mktemp("encoders") / model_type
        make_model(model_type, **changes).base_model.save_pretrained(folder)
        make_tokenizer("encoder").save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def folder(save_encoder):
    return save_encoder()


@pytest.fixture(scope="module")
def similarity(folder):
    return load(f"similarity:{folder}")


def by_hand(model, tokenizer, one, other):
    """The cosine of two means of states in float64: one text after the other, one token after the other."""
    means = []
    for text in (one, other):
        ids = tokenizer(text)["input_ids"]
        states = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))[0][0]
        total = [0.0] * states.shape[1]
        for state in states.tolist():
            total = [a + b for a, b in zip(total, state, strict=True)]
        means.append([x / len(ids) for x in total])
    dot = sum(a * b for a, b in zip(*means, strict=True))
    return dot / math.prod(math.sqrt(sum(x * x for x in mean)) for mean in means)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "llama", "xlnet"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_score_is_the_cosine_by_hand_whatever_the_batch(save_encoder, model_type, batch_size):
    from transformers import AutoModel, AutoTokenizer

    folder = save_encoder(model_type)
    exact, tokenizer = AutoModel.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [by_hand(exact, tokenizer, *pair) for pair in zip(SAID, ASKED, strict=True)]
    assert max(expected) - min(expected) > 1e-3
    made = load(f"similarity:{folder}", batch_size=batch_size)
    assert made.score(ASKED, SAID) == pytest.approx(expected, abs=1e-6)
    assert made.score(ASKED[1:2], SAID[1:2]) == pytest.approx(expected[1:2], abs=1e-6)


def test_what_says_the_same_has_the_score_one(similarity):
    assert similarity.score(["the cat", "the cat"], ["the cat", "the dog"])[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("pair", [("the cat", ""), ("the cat", "\n"), ("the cat", " ?!"), ("", "the cat"), ("", "")])
@pytest.mark.parametrize("echo", [0, 2])
def test_without_words_there_is_no_similarity(folder, pair, echo):
    made = load(f"similarity:{folder}", options={"echo": echo})
    assert made.score(*([text] for text in pair)) == [0.0]
    beside = made.score([pair[0], *ASKED], [pair[1], *SAID])
    assert beside[0] == 0.0 and beside[1:] == pytest.approx(made.score(ASKED, SAID), abs=1e-6)


def test_the_source_is_the_last_turn_of_the_user_or_a_column(similarity, folder):
    turns = [
        {"role": "system", "content": "numbers 1 2 3"},
        {"role": "user", "content": "a short answer"},
        {"role": "assistant", "content": "more!"},
        {"role": "user", "content": " the dog \n"},
    ]
    assert similarity.reads_turns
    assert similarity.score([turns], ["a cat"]) == similarity.score(["the dog"], ["a cat"])
    of_column = load(f"similarity:{folder}", options={"source": "article"})
    columns = {"article": ["the mat", "an egg"], "other": [1, 2]}
    expected = similarity.score(["the mat", "an egg"], ["a cat", "a dog"])
    assert of_column.score([turns, "the dog"], ["a cat", "a dog"], columns) == pytest.approx(expected, abs=1e-6)


def test_a_column_that_is_missing_or_holds_no_text_is_refused(folder):
    made = load(f"similarity:{folder}", options={"source": "article"})
    with pytest.raises(ValueError, match="'article', which the data lacks; did you mean 'articles'"):
        made.score(["a"], ["b"], {"articles": ["c"]})
    with pytest.raises(ValueError, match="it has no further columns"):
        made.score(["a"], ["b"])
    with pytest.raises(ValueError, match="'article', which holds None for the prompt 'd'; expected a text"):
        made.score(["a", "d"], ["b", "b"], {"article": ["c", None]})


@pytest.mark.parametrize(
    ("completion", "prompt", "ngram", "share"),
    [
        ("the cat sat on the mat", "The CAT sat, on a mat!", 2, 3 / 5),  # the-cat cat-sat sat-on
        ("the cat sat on the mat", "The CAT sat, on a mat!", 3, 2 / 4),
        ("the cat", "see the cat", 3, 1.0),  # fewer words than three: one piece
        ("cat the", "see the cat", 3, 0.0),
        ("a a a a", "a a", 2, 1.0),
        ("b c", [{"role": "user", "content": "a b"}, {"role": "user", "content": "c d"}], 2, 0.0),  # not across turns
        ("", "a", 3, 0.0),
        ("a", "", 1, 0.0),
    ],
)
def test_the_share_that_is_copied(completion, prompt, ngram, share):
    assert copied_share(completion, prompt, ngram) == pytest.approx(share, abs=1e-15)


def test_an_echo_costs_what_it_copies(folder, similarity):
    prompts, completions = ["the cat sat on the mat"] * 3, ["the cat sat on the mat", "the cat sat there", "a dog"]
    plain = similarity.score(prompts, completions)
    scores = load(f"similarity:{folder}", options={"echo": 0.5, "ngram": 2}).score(prompts, completions)
    assert scores == pytest.approx([plain[0] - 0.5, plain[1] - 0.5 * 2 / 3, plain[2]], abs=1e-12)


def test_a_long_text_loses_its_end_and_is_counted(save_encoder):
    folder = save_encoder("bert", max_position_embeddings=16)
    made, words = load(f"similarity:{folder}"), "a b c d e f g h i j k l m n o p q r s t"
    assert made.max_length == 16
    ids = made.tokenizer(words)["input_ids"]
    kept = made.tokenizer.decode(ids[1:15])  # with <bos> and <eos> that are 16
    assert made.score([kept], [words]) == pytest.approx([1.0], abs=1e-6) and made.truncated == 1
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    assert load(f"similarity:{folder}").max_length == 8


def test_a_name_dtype_and_number_of_texts(folder):
    made = load(f"similarity:{folder}", name="faithful", dtype="bfloat16", batch_size=2)
    assert isinstance(made, RewardModel) and made.name == "faithful" and made.batch_size == 2
    assert made.model.dtype == torch.bfloat16
    assert load(f"similarity:{folder}").name == "similarity"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sorce": "a"}, "has no option 'sorce'; did you mean 'source'"),
        ({"source": ""}, "the option source of similarity is ''; expected the name of a column"),
        ({"source": 3}, "the option source"),
        ({"echo": -1}, "the option echo of similarity is -1; expected a number from 0"),
        ({"echo": math.nan}, "the option echo"),
        ({"ngram": 0}, "the option ngram of similarity is 0; expected words, from 1"),
        ({"ngram": True}, "the option ngram"),
    ],
)
def test_wrong_options_are_refused_before_weights_are_read(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(f"similarity:{tmp_path}", options=options)


def test_what_is_no_sentence_encoder_is_refused(folder, save_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing was fetched
    for source, sentence in (("", "names no encoder"), ("models/none", "does not exist; fetch one with")):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            load(f"similarity:{source}")
    for given in ({"template": "chat"}, {"label": 1}):
        with pytest.raises(ValueError, match="reads completion and source alone; leave it out"):
            load(f"similarity:{folder}", **given)
    with pytest.raises(ValueError, match="is an encoder-decoder; expected a sentence encoder"):
        load(f"similarity:{save_encoder('bart')}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter"):
        load(f"similarity:{tmp_path}")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, r"pools by \['cls_token'\]"),
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, "pools by cls"),
        ({"modules.json": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, "the module Dense"),
    ],
)
def test_embeddings_that_are_no_means_are_refused(save_encoder, files, sentence):
    folder = save_encoder()
    (folder / "1_Pooling").mkdir()
    pooling = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    for name, content in {"modules.json": [pooling], **files}.items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        load(f"similarity:{folder}")


def test_an_encoder_that_lacks_weights_is_refused(save_encoder):
    from safetensors.torch import load_file, save_file

    folder = save_encoder()
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load(f"similarity:{folder}")  # whose means do not go through the pooler
    name = next(name for name in weights if "layer.1.attention" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for .*embeddings would be random"):
        load(f"similarity:{folder}")


def test_a_list_for_one_pair_is_refused(similarity):
    assert isinstance(similarity, Similarity) and similarity.score([], []) == []
    with pytest.raises(ValueError, match="got 2 prompts and 1 completions"):
        similarity.score(["a", "b"], ["c"])
