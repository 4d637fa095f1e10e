"""The score of a pair is the model's own forward of its unpadded text, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch

from reward_models import Classifier, Format
from reward_models.forward import LAST_TOKEN_DECODERS, PADDED_ENCODERS


PROMPTS = [
    "the cat",
    "how do I boil an egg? put it in hot water",
    "a",
    "",
    "numbers 1 2 3 4 5!",
    "braces {completion} {0}",
]
COMPLETIONS = [
    " sat.",
    " a good answer<eos>",
    " b<eos><eos>",
    "x",
    " {prompt} {} and the dog looked at the mat",
    "<pad> c",
]

GENERIC_DECODERS = ("llama", "mistral", "qwen2")
OTHERS = ("bart", "openai-gpt", "t5", "xlnet")


@torch.no_grad()
def own_forward(classifier, prompt, completion):
    """Returns the logits of the model called on one text, as its documentation says to call it."""
    texts = classifier.format.render(prompt, completion, {"eos_token": "<eos>"})
    encoding = classifier.tokenizer(*texts, return_tensors="pt")
    if classifier.model.config.model_type in (*LAST_TOKEN_DECODERS, *GENERIC_DECODERS, "t5", "openai-gpt", "bart"):
        encoding.pop("token_type_ids", None)
    if classifier.model.config.model_type in ("distilbert", "modernbert"):
        encoding.pop("token_type_ids", None)
    return classifier.model(**encoding).logits[0].double()


def assert_scores_are_own_forwards(classifier, spread=1e-3):
    expected = [float(own_forward(classifier, *pair)[0]) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert max(expected) - min(expected) > spread
    for batch_size in (1, 2, len(PROMPTS)):
        classifier.batch_size = batch_size
        assert classifier.score(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("model_type", sorted(LAST_TOKEN_DECODERS) + list(GENERIC_DECODERS))
@pytest.mark.parametrize("pad_in_config", [2, 0, None], ids=["pad", "pad-is-eos", "no-pad"])
@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>", None])
def test_decoders(make_model, make_tokenizer, model_type, pad_in_config, pad_token):
    model = make_model(model_type, pad_token_id=pad_in_config)
    tokenizer = make_tokenizer("bos", pad_token=pad_token)
    assert_scores_are_own_forwards(Classifier(model, tokenizer, name="tiny"))


@pytest.mark.parametrize("model_type", sorted(PADDED_ENCODERS))
@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
@pytest.mark.parametrize("pad", [("<pad>", 2), ("<eos>", 0)], ids=["pad", "pad-is-eos"])
def test_encoders(make_model, make_tokenizer, model_type, pair, pad):
    pad_token, pad_token_id = pad
    changes = {"type_vocab_size": 2} if "roberta" in model_type or model_type == "camembert" else {}
    model = make_model(model_type, pad_token_id=pad_token_id, **changes)
    format = Format(template=("{prompt}", "{completion}")) if pair else Format()
    tokenizer = make_tokenizer("encoder", pad_token=pad_token)
    assert_scores_are_own_forwards(Classifier(model, tokenizer, format, name="tiny"))


@pytest.mark.parametrize("model_type", OTHERS)
def test_models_without_an_exact_padded_forward(make_model, make_tokenizer, model_type):
    classifier = Classifier(make_model(model_type), make_tokenizer("encoder"), name="tiny")
    assert_scores_are_own_forwards(classifier)


@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "mistral", "opt", "bert", "roberta", "modernbert", "bart", "t5"]
)
def test_the_attention_that_a_loaded_model_has(make_model, make_tokenizer, tmp_path, model_type):
    make_model(model_type).save_pretrained(tmp_path)
    make_tokenizer("encoder").save_pretrained(tmp_path)
    classifier = Classifier.from_pretrained(tmp_path)
    assert classifier.model.config._attn_implementation == "sdpa"
    assert_scores_are_own_forwards(classifier)


ALWAYS_PADDED = ("bart", "t5")  # their configs have a pad token or do not load


@pytest.mark.parametrize(
    ("model_type", "pad_token_id"),
    [(name, 2) for name in OTHERS] + [(name, None) for name in OTHERS if name not in ALWAYS_PADDED],
)
def test_texts_of_equal_length_share_a_batch_where_the_model_can(make_model, make_tokenizer, model_type, pad_token_id):
    classifier = Classifier(
        make_model(model_type, pad_token_id=pad_token_id), make_tokenizer("encoder"), name="tiny", batch_size=8
    )
    # BART's head counts EOS, and the first of these has one more than the others.
    completions = ["<eos>!", "?!", ":,"]
    assert {len(classifier.encode("a", completion)["input_ids"]) for completion in completions} == {5}
    expected = [float(own_forward(classifier, "a", completion)[0]) for completion in completions]
    assert classifier.score(["a"] * 3, completions) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "openai-gpt"])
def test_models_without_any_pad_token(make_model, make_tokenizer, model_type):
    model = make_model(model_type, **({"pad_token_id": None} if model_type == "openai-gpt" else {}))
    assert_scores_are_own_forwards(Classifier(model, make_tokenizer("encoder", pad_token=None), name="tiny"))


@pytest.mark.parametrize("pad", [("<pad>", 2), ("<eos>", 0)], ids=["pad", "pad-is-eos"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "deberta-v2", "bart"])
def test_the_padding_side_of_the_tokenizer_does_not_matter(make_model, make_tokenizer, model_type, side, pad):
    pad_token, pad_token_id = pad
    tokenizer = make_tokenizer("encoder", pad_token=pad_token)
    tokenizer.padding_side = tokenizer.truncation_side = side
    model = make_model(model_type, pad_token_id=pad_token_id)
    assert_scores_are_own_forwards(Classifier(model, tokenizer, name="tiny"))


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "bart"])
def test_neighbours_and_order_do_not_matter(make_model, make_tokenizer, model_type):
    classifier = Classifier(make_model(model_type), make_tokenizer("encoder"), name="tiny")
    scores = classifier.score(PROMPTS, COMPLETIONS)
    assert classifier.score(PROMPTS[::-1], COMPLETIONS[::-1])[::-1] == pytest.approx(scores, abs=1e-5)
    assert classifier.score(PROMPTS[1:2], COMPLETIONS[1:2]) == pytest.approx(scores[1:2], abs=1e-5)
    assert classifier.score(PROMPTS[:1] * 3, COMPLETIONS[:1] * 3) == pytest.approx(scores[:1] * 3, abs=1e-5)
    assert classifier.score([], []) == []


def test_labels_and_sign(make_model, make_tokenizer):
    model, tokenizer = make_model("bert", num_labels=3), make_tokenizer("encoder")
    outputs = own_forward(Classifier(model, tokenizer, name="tiny"), "the cat", " sat.")
    for format, expected in (
        (Format(label=2), outputs[2]),
        (Format(label=1, sign=-1), -outputs[1]),
        (Format(label=(2, 0)), outputs[2] - outputs[0]),
        (Format(label=(2, 0), sign=-1), outputs[0] - outputs[2]),
    ):
        (score,) = Classifier(model, tokenizer, format, name="tiny").score(["the cat"], [" sat."])
        assert score == pytest.approx(float(expected), abs=1e-5)
    model.config.id2label = {0: "helpful", 1: "honest", 2: "brief"}
    model.config.label2id = {"helpful": 0, "honest": 1, "brief": 2}
    for label, expected in (("honest", outputs[1]), (("brief", "helpful"), outputs[2] - outputs[0])):
        named = Classifier(model, tokenizer, Format(label=label), name="tiny")
        assert named.score(["the cat"], [" sat."]) == pytest.approx([float(expected)], abs=1e-5), label
    with pytest.raises(ValueError, match="has no output 'honset'; did you mean 'honest'"):
        Classifier(model, tokenizer, Format(label="honset"), name="tiny")
    for label in (("a", 1), "", (), True):
        with pytest.raises(ValueError, match="expected the index of an output, from 0, or its name, or two of them"):
            Format(label=label)
    with pytest.raises(ValueError, match="has 3 outputs, and its format reads label 3"):
        Classifier(model, tokenizer, Format(label=3), name="tiny")


def test_scores_are_not_rounded(make_model, make_tokenizer):
    scores = Classifier(make_model("gpt2"), make_tokenizer(), name="tiny").score(
        PROMPTS, [c + "." for c in COMPLETIONS]
    )
    assert all(score != round(score, 4) for score in scores)


def test_texts_are_not_stripped_or_replaced(make_model, make_tokenizer):
    classifier = Classifier(make_model("gpt2"), make_tokenizer(), name="tiny")
    for prompt, completion in ((" {completion} ", "{prompt}\n"), ("friends<eos>", " [PAD] "), ("", "{}{0}{bos_token}")):
        ids = classifier.encode(prompt, completion)["input_ids"]
        assert classifier.tokenizer.decode(ids) == prompt + completion


@pytest.mark.parametrize("cut", ["left", "right"])
@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
def test_a_long_prompt_loses_the_end_that_the_format_says(make_model, make_tokenizer, cut, pair):
    template = ("Q: {prompt}", "A: {completion}") if pair else "Q: {prompt} A: {completion}"
    format = Format(template=template, max_length=30, cut=cut)
    classifier = Classifier(make_model("bert"), make_tokenizer("encoder"), format, name="tiny")
    prompt = "".join(f" {i}" for i in range(100, 160))
    ids = classifier.encode(prompt, " the end")["input_ids"]
    text = classifier.tokenizer.decode(ids)
    # 30 tokens, or a few less where the last number does not fit whole.
    assert 27 <= len(ids) <= 30
    assert text.startswith("<bos>Q: ") and text.endswith("A:  the end<eos>")
    assert (" 159" in text, " 100" in text) == ((True, False) if cut == "left" else (False, True))
    assert classifier.truncated == 1
    classifier.score(["short", prompt, prompt], [" the end"] * 3)
    assert classifier.truncated == 3


def test_a_long_completion_keeps_its_beginning(make_model, make_tokenizer):
    format = Format(max_length=12, append_eos=True)
    classifier = Classifier(make_model("gpt2"), make_tokenizer(), format, name="tiny")
    ids = classifier.encode("the prompt", "".join(f" {i}" for i in range(100, 120)))["input_ids"]
    text = classifier.tokenizer.decode(ids)
    assert len(ids) <= 12 and text.startswith(" 100 101") and text.endswith("<eos>")
    assert classifier.truncated == 1


def test_a_template_that_does_not_fit_is_an_error(make_model, make_tokenizer):
    format = Format(template="a long template around the {completion}", max_length=3)
    classifier = Classifier(make_model("gpt2"), make_tokenizer(), format, name="tiny")
    with pytest.raises(ValueError, match="alone is longer than max_length=3 tokens"):
        classifier.score(["p"], ["c"])


@pytest.mark.parametrize(
    ("model_type", "limit"), [("gpt2", 128), ("llama", 128), ("roberta", 128), ("bart", 128), ("t5", None)]
)
def test_the_limit_is_what_the_position_embeddings_allow(make_model, make_tokenizer, model_type, limit):
    # RoBERTa has 131 position embeddings and counts from pad_token_id + 1 = 3.
    classifier = Classifier(make_model(model_type), make_tokenizer("encoder"), name="tiny")
    assert classifier.max_length == limit
    (score,) = classifier.score(["cat dog " * 200], ["end"])
    assert math.isfinite(score) and classifier.truncated == (limit is not None)
    for max_length, expected in ((1024, limit or 1024), (30, 30)):
        format = Format(max_length=max_length)
        limited = Classifier(classifier.model, classifier.tokenizer, format, name="tiny")
        assert limited.max_length == expected
        assert all(map(math.isfinite, limited.score(["cat dog " * 200], ["end"])))
    if limit is not None:
        assert 120 < len(classifier.encode("cat dog " * 200, "end")["input_ids"]) <= limit


def test_a_score_that_is_not_finite_names_the_prompt(make_model, make_tokenizer):
    model = make_model("gpt2")
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="'tiny' returned nan for the pair at index 0 with the prompt 'the cat'"):
        Classifier(model, make_tokenizer(), name="tiny").score(["the cat", "b"], ["c", "d"])


def test_an_empty_text_is_an_error_where_nothing_is_added(make_model, make_tokenizer):
    with pytest.raises(ValueError, match="got no tokens"):
        Classifier(make_model("gpt2"), make_tokenizer(), name="tiny").score([""], [""])


def test_inputs_and_training_mode(make_model, make_tokenizer):
    model = make_model("gpt2", resid_pdrop=0.5).train()
    classifier = Classifier(model, make_tokenizer(), name="tiny")
    prompts, completions = list(PROMPTS), list(COMPLETIONS)
    first = classifier.score(prompts, completions)
    assert classifier.score(prompts, completions) == first
    assert (prompts, completions) == (PROMPTS, COMPLETIONS)
    with pytest.raises(ValueError, match="got 1 prompts and 2 completions"):
        classifier.score(["a"], ["b", "c"])
