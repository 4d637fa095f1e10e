"""Rows that a stage leaves out are counted and told; where none is left, that is a sentence."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from tests.test_limits import NEEDS_ONE


def load(path, kind, **options):
    return data.load(path, kind, "test", test_size="all", **options)


def test_empty_completions_are_left_out_and_counted(write, caplog):
    path = write("rows.jsonl", [{"prompt": str(n), "completion": " a" * n} for n in range(3)])
    assert load(path, "demonstrations")["prompt"] == ["1", "2"]
    assert f"{path}, split test: 1 of 3 completions are empty: left out" in caplog.messages
    path = write("none.jsonl", [{"prompt": "a", "completion": " "}])
    with pytest.raises(ValueError, match=r"none.jsonl, split test: all 1 completions are empty, so no row is left"):
        load(path, "demonstrations")


def test_messages_without_a_reply_are_no_demonstration(write, caplog):
    asked = {"role": "user", "content": "a"}
    rows = [{"messages": [asked]}, {"messages": [asked, {"role": "assistant", "content": "b"}]}]
    assert len(load(write("rows.jsonl", rows), "demonstrations")) == 1
    assert "1 of 2 completions are empty: left out" in caplog.text


def test_prompts_that_are_all_too_long_are_a_sentence(write, make_tokenizer):
    path = write("rows.jsonl", [{"prompt": "abcdef"}])
    with pytest.raises(ValueError, match="all 1 prompts are longer than 3 tokens, so no row is left"):
        load(path, "prompts", tokenizer=make_tokenizer(chat=False), max_prompt_length=3)


def test_a_prompt_without_tokens_is_refused_with_its_row(write, make_tokenizer):
    path = write("rows.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(ValueError, match=rf"has a prompt without tokens \(row 2\){NEEDS_ONE}"):
        load(path, "prompts", tokenizer=make_tokenizer(chat=False, adds_bos=False))
    assert len(load(path, "prompts", tokenizer=make_tokenizer(chat=False))) == 2  # the BOS token is one
