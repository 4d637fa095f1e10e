"""One row as the policy and each reward model reads it: the tokens that they are really given, written out."""

from __future__ import annotations

import logging

import pytest

from reward_models import Classifier, Format, FormatRule, FunctionReward, LengthRule, LexicalRule
from rlhf_lines.example import Sample, as_text, policy_reading, readings, stand_in, try_rewards, written
from rlhf_lines.scoring import Asked, score, shown
from tests.tiny import llama_config, word_tokenizer


CHAT = "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} <eos>{% endfor %}"
TURNS = [{"role": "user", "content": "b c"}]
ASKED = Asked("a b", TURNS, {"answer": "d"})


@pytest.fixture(scope="module")
def judge():
    """Returns a maker of classifiers with a chat template of words that the tokenizer knows."""
    from transformers import LlamaForSequenceClassification

    def make(template):
        tokenizer = word_tokenizer()
        tokenizer.chat_template = CHAT.replace("m['role'][0]", "'i' if m['role'] == 'user' else 'j'")
        model = LlamaForSequenceClassification(llama_config(tokenizer, num_hidden_layers=1, num_labels=1))
        return Classifier(model, tokenizer, Format(template, append_eos=template != "chat"), name=template[:4])

    return make


def test_what_is_shown_is_what_is_scored(judge):
    chat, text = judge("chat"), judge("{prompt} j{completion}")
    given = []
    function = FunctionReward(lambda prompts, completions, answer: given.append((prompts, answer)) or [1.0], name="f")
    models = [chat, text, function, FunctionReward(lambda **kw: [0.0], name="m", template="chat"), LengthRule()]
    found = readings(word_tokenizer(), "i a b", ASKED, models, Sample(" d\n", [6]))
    assert [tuple(reading) for reading in found] == [
        ("policy", "'i a b'"),
        ("reward chat", "'i b c <eos> j d <eos>'"),
        ("reward {pro", "'a b j d <eos>'"),
        ("reward f", r"prompt 'a b', completion ' d\n'"),
        ("reward m", "prompts [[{'role': 'user', 'content': 'b c'}]], "
                     "completions [[{'role': 'assistant', 'content': 'd'}]]"),
        ("reward length", r"prompt 'a b', completion ' d\n'"),
    ]  # fmt: skip
    assert given == [], "showing calls nothing"
    ids = chat.tokenizer("i b c <eos> j d <eos>")["input_ids"]
    assert chat.encode(*shown(chat, ASKED, " d\n"))["input_ids"] == ids
    assert score(function, [ASKED], [" d"], [[6]]) == [1.0] and given == [(["a b"], ["d"])]
    assert as_text(found, stands_in=True).splitlines()[1] == "  policy         'i a b'"


def test_a_turn_of_a_chat_model_reads_as_the_texts_that_classifiers_are_trained_on(judge):
    """It begins without the blank that stands behind an opener in a text, which only classifiers read as a text."""
    asked = Asked("a b", TURNS, blank=" ")
    chat, text, rule = judge("chat"), judge("{prompt}{completion}"), LengthRule()
    function = FunctionReward(lambda prompts, completions: [0.0], name="f")
    assert shown(text, asked, "d") == shown(text, asked, " d") == shown(text.encoder, asked, "d") == ("a b", " d")
    assert [shown(model, asked, "d")[1] for model in (chat, rule, function)] == ["d", "d", "d"]
    assert shown(text, asked, "") == ("a b", "")
    assert readings(word_tokenizer(), "i a b", asked, [text], Sample("d", [6]))[1].text == "'a b d <eos>'"
    assert score(text, [asked], ["d"], [[6]]) == text.score(["a b"], [" d"]) != text.score(["a b"], ["d"])


def test_a_row_of_another_source_is_shown_as_it_is():
    assert Asked.of({"prompt": "a"}) == Asked("a", None, {})
    row = {"prompt": "i a", "scored_prompt": "", "conversation": TURNS, "columns": '{"answer": 4}'}
    assert Asked.of(row) == Asked("", TURNS, {"answer": 4})
    assert Asked.of({**row, "blank": " "}).blank == " "


def test_rules_read_what_was_said(judge):
    """A dialogue's marks are no words of its prompt: not for a rule, whose reference the prompt is."""
    dialogue = Asked("\n\nHuman: a b\n\nAssistant: c\n\nHuman: d\n\nAssistant:", TURNS)
    lexical, echo = LexicalRule(measure="recall"), "Human a assistant"
    assert shown(lexical, dialogue, echo) == ("a b\n\nc\n\nd", echo)
    assert score(lexical, [dialogue], [echo], [[3]]) == [1 / 4]
    assert shown(FunctionReward(lambda prompts, completions: [0.0], name="f"), dialogue, "a") == (dialogue.text, "a")
    assert shown(judge("{prompt}{completion}"), dialogue, " a") == (dialogue.text, " a")
    for rule in (LengthRule(), FormatRule("a"), LexicalRule()):
        assert shown(rule, Asked(" a Human: b\n"), "a") == (" a Human: b\n", "a"), "what is no dialogue is as it is"


def test_the_first_words_of_the_user_stand_for_a_completion():
    """Neither what a chat template adds nor a turn of the system; where they are asked in other words, the text."""
    tokenizer = word_tokenizer()
    words = tokenizer("c d")["input_ids"]
    system = [{"role": "system", "content": "a b"}, {"role": "user", "content": "c d"}]
    text = "\n\nSystem: a b\n\nHuman: c d\n\nAssistant:"
    for asked in (Asked(text, system), Asked("c d", system[1:]), Asked("c d", [{"role": "user", "content": "e c d"}])):
        assert stand_in(tokenizer, "i a b j c d j", asked) == Sample(" c d", words), asked
    assert stand_in(tokenizer, "a <eos> b", Asked("", [])) == Sample(" a b", tokenizer("a b")["input_ids"])


def test_functions_are_tried_with_words_of_the_prompt(caplog):
    tokenizer, calls = word_tokenizer(), []

    def fine(prompts, completions, completion_ids, answer):
        calls.append((prompts, completions, completion_ids, answer))
        return [0.0]

    def fails(completions, **kwargs):
        return [1 / 0]

    models = [FunctionReward(fine), FunctionReward(fails), FunctionReward(fine)]
    caplog.set_level(logging.INFO, logger="rlhf_lines")
    with pytest.raises(ValueError, match=r"'fails' raised ZeroDivisionError: .* the completion ' a b'"):
        try_rewards(tokenizer, "a b", ASKED, models)
    assert calls == [(["a b"], [" a b"], [tokenizer("a b")["input_ids"]], ["d"])]
    assert "reward fails  prompt 'a b', completion ' a b'" in caplog.text


def test_of_a_long_text_both_ends_are_shown():
    assert written("x" * 1000) == repr("x" * 1000)
    text = written("a" + "x" * 9000 + "z")
    assert len(text) < 2100 and text.startswith("'axx") and text.endswith("xxz'") and "(7,004 characters)" in text
    assert policy_reading(word_tokenizer(), [3, 1]).text == "'a <eos>'"
