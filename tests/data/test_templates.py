"""Texts from conversations and back, and the chat template of a tokenizer."""

from __future__ import annotations

import pytest

from rlhf_lines.data.chat import chat_text, has_chat_template
from rlhf_lines.data.templates import TEMPLATES, find, said


ASKED = [{"role": "user", "content": "What is 1+1?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}]


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("plain", ASKED, "What is 1+1?"),
        ("hh", ASKED, "\n\nHuman: What is 1+1?\n\nAssistant:"),
        ("hh", ANSWERED, "\n\nHuman: What is 1+1?\n\nAssistant: 2\n\nHuman: Sure?\n\nAssistant:"),
        ("summary", ASKED, "### Instruction: Generate a one-sentence summary of this post. ### Input: What is 1+1? "
         "### Response:"),
    ],
)  # fmt: skip
def test_a_template_writes_and_reads(name, messages, text):
    assert TEMPLATES[name].text(messages) == text
    assert TEMPLATES[name].messages(text) == messages


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Hi.", ["user Hi."]),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", ["user a\n\nb"]),
        ("Before. \n\nHuman: a\n\nAssistant: \n\nAssistant:", ["user Before.\n\na"]),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant:", ["user a", "assistant b"]),
        ("\n\nHuman:no space, Human: not a turn\n\nAssistant:", ["user no space, Human: not a turn"]),
        ("", []),
    ],
)
def test_odd_dialogues_have_turns_that_alternate(text, turns):
    assert [f"{m['role']} {m['content']}" for m in TEMPLATES["hh"].messages(text)] == turns


def test_braces_in_what_was_said_are_kept():
    said = [{"role": "user", "content": "{content} {0} {role}"}]
    assert TEMPLATES["hh"].text(said) == "\n\nHuman: {content} {0} {role}\n\nAssistant:"
    assert TEMPLATES["hh"].messages("\n\nHuman: {content} {0} {role}\n\nAssistant:") == said


def test_a_chat_model_is_asked_in_words():
    assert TEMPLATES["hh"].asked(ANSWERED) == ANSWERED
    (message,) = TEMPLATES["summary"].asked(ASKED)
    assert message == {
        "role": "user",
        "content": "Generate a one-sentence summary of this post.\n\nWhat is 1+1?",
    }


def test_what_was_said_has_no_marks():
    """Of every template, what `messages` reads; a text that only holds a mark further on is of none."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    assert said(TEMPLATES["hh"].text(turns)) == "Be brief.\n\nHi."
    assert said(TEMPLATES["hh"].text([*turns, {"role": "assistant", "content": "Well"}])) == "Be brief.\n\nHi.\n\nWell"
    assert said(TEMPLATES["summary"].text(turns[1:])) == "Hi."
    for text in ("", " Hi. ", "A post.\n\nHuman: no\n\nAssistant:", "Human: Hi."):
        assert said(text) == TEMPLATES["plain"].text([{"role": "user", "content": text}]) == text


def test_an_unknown_template_is_refused():
    with pytest.raises(ValueError, match="prompt_template 'alpaca' is unknown, expected one of plain, hh, summary"):
        find("alpaca")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("messages", [ASKED, ANSWERED])
def test_the_tokens_of_the_text_are_those_of_the_chat_template(make_tokenizer, adds_bos, messages):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer(chat_text(messages, tokenizer, bos_is_added=adds_bos))["input_ids"] == expected
    assert expected.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(expected).endswith("<assistant>")


def test_who_has_a_chat_template(make_tokenizer):
    assert has_chat_template(make_tokenizer())
    assert not has_chat_template(make_tokenizer(chat=False))
    assert not has_chat_template(None)
