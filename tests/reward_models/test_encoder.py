"""Conversations are read in the chat template of the reward model's tokenizer; guesses are told."""

from __future__ import annotations

import pytest
import torch

from reward_models import Classifier, Format, load, write_settings
from reward_models.encoder import guesses


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{{ eos_token }}"
)
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "and the dog?"},
]


@pytest.fixture
def make_chat(make_model, make_tokenizer):
    """Returns a maker of classifiers whose tokenizer has a chat template, and adds BOS to other texts."""

    def make(num_labels=1, **format):
        tokenizer = make_tokenizer("bos")
        tokenizer.chat_template = CHAT_TEMPLATE
        settings = {"template": "chat", **format}
        return Classifier(make_model("llama", num_labels=num_labels), tokenizer, Format(**settings), name="judge")

    return make


def test_a_conversation_is_scored_on_the_tokens_of_the_chat_template(make_chat):
    classifier = make_chat()
    prompts, completions = [TURNS, "the mat", TURNS[:2]], [" it looked", "", "sat<eos>"]
    conversations = [
        [*TURNS, {"role": "assistant", "content": "it looked"}],
        [{"role": "user", "content": "the mat"}, {"role": "assistant", "content": ""}],
        [*TURNS[:2], {"role": "assistant", "content": "sat<eos>"}],
    ]
    expected = []
    for prompt, completion, turns in zip(prompts, completions, conversations, strict=True):
        ids = classifier.tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        assert ids.count(classifier.tokenizer.bos_token_id) == 1
        assert classifier.encode(prompt, completion)["input_ids"] == ids
        with torch.no_grad():
            expected.append(float(classifier.model(torch.tensor([ids])).logits[0, 0]))
    assert classifier.score(prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert classifier.encoder.shown("a", " b") == "<bos>[user]a[assistant]b<eos>"


def test_a_system_prompt_stands_first_in_place_of_that_of_the_data(make_chat):
    plain, own = make_chat(), make_chat(system="judge kindly")
    assert own.encoder.shown("a", " b") == "<bos>[system]judge kindly[user]a[assistant]b<eos>"
    with_own = [{"role": "system", "content": "judge kindly"}, *TURNS[1:]]
    assert own.encoder.shown(TURNS, " x") == plain.encoder.shown(with_own, " x") != plain.encoder.shown(TURNS, " x")
    assert own.score([TURNS], ["x"]) == plain.score([with_own], ["x"]) != plain.score([TURNS], ["x"])


def test_a_system_prompt_is_kept_where_a_conversation_is_cut(make_chat):
    turns = [*TURNS * 3, {"role": "user", "content": "hi"}]
    whole = len(make_chat(system="be").encode(turns, " b")["input_ids"])
    shown = make_chat(system="be", max_length=whole - 3).encoder.shown(turns, " b")
    assert shown.startswith("<bos>[system]be[user]and the dog?") and shown.endswith("[user]hi[assistant]b<eos>")


@pytest.mark.parametrize("system", ["be kind", 3])
def test_a_system_prompt_needs_a_chat_template(system):
    with pytest.raises(ValueError, match=r"the system prompt is .*(write it into the template|expected a text)"):
        Format(system=system)
    with pytest.raises(ValueError, match="expected a text"):
        Format("chat", system=3)
    assert Format("chat", system="a").with_changes("{completion}") == Format("{completion}")
    assert Format().with_changes("chat", None, "a") == Format("chat", system="a")


def test_a_completion_goes_on_with_an_open_turn_of_the_assistant(make_chat):
    turns = [*TURNS, {"role": "assistant", "content": "It is"}]
    shown = make_chat().encoder.shown(turns, " a dog.\n")
    assert shown.endswith("[user]and the dog?[assistant]It is a dog.<eos>")


@pytest.mark.parametrize(("cut", "kept"), [("left", "seven minutes"), ("right", "how do I")])
def test_a_long_conversation_loses_its_oldest_turns_then_an_end_of_its_last(make_chat, cut, kept):
    short = make_chat(max_length=30, cut=cut)
    text = short.encoder.shown(TURNS, "it sat")
    assert text == "<bos>[user]and the dog?[assistant]it sat<eos>" and short.truncated == 0
    short.score([TURNS, "a"], ["it sat", "b"])
    assert short.truncated == 1
    asked = [*TURNS, {"role": "user", "content": "how do I boil an egg? put it in hot water for seven minutes"}]
    text = short.encoder.shown(asked, "it sat")
    assert text.startswith("<bos>[user]") and text.endswith("[assistant]it sat<eos>") and kept in text
    assert len(short.encode(asked, "it sat")["input_ids"]) <= 30
    with pytest.raises(ValueError, match="alone is longer than max_length=5"):
        make_chat(max_length=5).score([TURNS], ["b"])


def test_what_a_chat_template_refuses_is_a_sentence(make_chat, make_model, make_tokenizer):
    with pytest.raises(ValueError, match=r"chat template of reward model 'judge' refuses .*\(no tools here\); give it"):
        make_chat().score([[{"role": "tool", "content": "x"}]], ["y"])
    with pytest.raises(ValueError, match="the template of reward model 'judge' is chat, but its tokenizer has no chat"):
        Classifier(make_model("llama"), make_tokenizer(), Format("chat"), name="judge")
    with pytest.raises(ValueError, match="append_eos is true and the template is chat"):
        Format("chat", append_eos=True)
    with pytest.raises(
        ValueError, match="expected a text; put messages through a chat template first, or set template"
    ):
        make_chat(template="{prompt}{completion}").score([TURNS], ["y"])


@pytest.mark.parametrize(
    ("chat", "outputs", "given", "told"),
    [
        (False, 1, {}, []),
        (True, 1, {}, ["set template: chat"]),
        (False, 5, {}, ["output 0 of its 5 outputs"]),
        (True, 5, {}, ["set template: chat", "output 0 of its 5 outputs"]),
        (True, 5, {"template": "chat"}, ["output 0 of its 5 outputs"]),
        (True, 5, {"template": "chat", "label": 0}, []),
        (True, 1, {"template": "{prompt}{completion}"}, []),
    ],
)
def test_what_is_guessed_of_a_classifier_is_told(
    make_model, make_tokenizer, tmp_path, monkeypatch, chat, outputs, given, told
):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    make_model("gpt2", num_labels=outputs).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    model = load(tmp_path / "judge", **given)
    words = model.guessed or ""
    assert bool(words) == bool(told) and all(part in words for part in told) and "\n" not in words
    assert words == (guesses(model.model.config, tokenizer, name="judge", **given) or "")
    # What the folder says is no guess; what is given goes before it.
    write_settings(tmp_path / "judge", Format("{prompt} {completion}", append_eos=True, label=outputs - 1))
    assert load(tmp_path / "judge").guessed is None
    changed = load(tmp_path / "judge", template="{completion}", label=0).format
    assert changed == Format("{completion}", append_eos=True, label=0)


def test_keys_that_a_rule_or_function_does_not_read_are_refused():
    with pytest.raises(ValueError, match="'rule:length' has template 'chat', but a rule reads the texts as they are"):
        load("rule:length", template="chat")
    for source, what in (("rule:length", "rule has no weights"), ("string:capwords", "function has its weights")):
        with pytest.raises(ValueError, match=f"'{source}' has dtype 'bfloat16', but a {what}"):
            load(source, dtype="bfloat16")
    with pytest.raises(ValueError, match="'string:capwords' has label 1, but a function has one score; leave it out"):
        load("string:capwords", label=1)
