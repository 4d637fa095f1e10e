"""Pairs of dialogues, and what is odd about real ones."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from rlhf_lines import data
from rlhf_lines.data import dialogues
from rlhf_lines.data.splits import split_of
from rlhf_lines.data.templates import TEMPLATES


NAME = Path("shared/data/hh-rlhf/harmless-base-test.jsonl.gz")
START = "\n\nHuman: a\n\nAssistant:"


@pytest.fixture(scope="module")
def hh_file():
    """The test split of harmless-base: beside the checkout, or where RLHF_LINES_HH_FILE says."""
    places = [folder / NAME for folder in Path(__file__).resolve().parents]
    if "RLHF_LINES_HH_FILE" in os.environ:
        places.insert(0, Path(os.environ["RLHF_LINES_HH_FILE"]))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip("harmless-base-test.jsonl.gz is not at hand: set RLHF_LINES_HH_FILE")
    return found


@pytest.fixture(scope="module")
def pairs(hh_file):
    with gzip.open(hh_file, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (START + " b", START + " c", START),
        (START + " same", START + " same", START),
        (START + " ", START + " c", START),  # an empty reply
        (START, START + " c", START),
        (START + " b\n\nHuman: c\n\nAssistant: d", START + " b\n\nHuman: c\n\nAssistant: e",
         START + " b\n\nHuman: c\n\nAssistant:"),
        (START + " b\n\nHuman: c\n\nAssistant: d", START + " e", START),  # the dialogues part early
        (START + " e", START + " b\n\nAssistant: d", START),
        (START + " b\n\nAssistant: d", START + " b\n\nAssistant: d e", START + " b\n\nAssistant:"),
        (START + " Assistant:x", START + " Assistant:y", START),  # no turn: no empty line before it
    ],
)  # fmt: skip
def test_the_prompt_is_what_the_two_have_in_common(chosen, rejected, prompt):
    row = dialogues.divide(chosen, rejected)
    assert row["prompt"] == prompt
    assert prompt + row["chosen"] == chosen and prompt + row["rejected"] == rejected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("a", "a"), ("", ""), (START + " b", "\n\nHuman: other\n\nAssistant: b"), (START + " b", START[:-1])],
)
def test_texts_without_a_common_turn_cannot_be_divided(chosen, rejected):
    assert dialogues.divide(chosen, rejected) is None


def test_pairs_without_a_prompt_are_left_out_and_counted(caplog):
    pairs = [{"chosen": START + " b", "rejected": START + " c"}, {"chosen": "b", "rejected": "c"}]
    assert dialogues.rows(pairs, "prompts", "here") == [{"prompt": START}]
    assert caplog.messages == ["here: 1 of 2 pairs share no prompt: left out"]
    with pytest.raises(ValueError, match="dataset here has no column prompt, and chosen and rejected share no"):
        dialogues.rows(pairs[1:], "prompts", "here")


def test_nobody_learns_to_speak_from_an_empty_reply():
    pairs = [{"chosen": START + " ", "rejected": START + " c"}, {"chosen": START + " b", "rejected": START + " "}]
    assert dialogues.rows(pairs, "demonstrations", "here") == [{"prompt": START, "completion": " b"}]
    assert dialogues.rows(pairs, "preferences", "here") == [
        {"prompt": START, "chosen": " ", "rejected": " c"},
        {"prompt": START, "chosen": " b", "rejected": " "},
    ]


# --- the real file


def test_all_pairs_of_the_real_file_parse(pairs):
    rows = [dialogues.divide(**pair) for pair in pairs]
    assert len(rows) == 2312 and None not in rows
    for pair, row in zip(pairs, rows, strict=True):
        assert row["prompt"] + row["chosen"] == pair["chosen"]
        assert row["prompt"] + row["rejected"] == pair["rejected"]
        assert row["prompt"].startswith("\n\nHuman:") and row["prompt"].endswith("\n\nAssistant:")
    # What is odd about it: four chosen replies are empty, and five pairs have a reply that goes on with turns of its
    # own. Read as the text after its last mark, such a reply would lose its start, and the pair its common prompt.
    assert sum(not row["chosen"].strip() for row in rows) == 4
    assert sum(not row["rejected"].strip() for row in rows) == 0
    assert sum("\n\nAssistant:" in row["chosen"] + row["rejected"] for row in rows) == 5
    differ = [pair["chosen"].rpartition("\n\nAssistant:")[0] != pair["rejected"].rpartition("\n\nAssistant:")[0]
              for pair in pairs]  # fmt: skip
    assert sum(differ) == 5
    assert len({row["prompt"] for row in rows}) == 2310


def test_the_turns_of_the_real_file_alternate(pairs):
    template = TEMPLATES["hh"]
    prompts = [dialogues.divide(**pair)["prompt"] for pair in pairs]
    for prompt in prompts:
        messages = template.messages(prompt)
        assert [m["role"] for m in messages] == (["user", "assistant"] * len(messages))[: len(messages)]
        assert messages[-1]["role"] == "user"
    # All but four are written back to the character; these have a turn with spaces at its end, or none at its start.
    assert sum(template.text(template.messages(prompt)) == prompt for prompt in prompts) == 2308


def test_the_real_file_is_read_alike_as_a_file_and_as_the_task(hh_file, pairs):
    texts = {(pair["chosen"], pair["rejected"]) for pair in pairs}
    total = 0
    for split in ("train", "validation", "test"):
        rows = data.load(str(hh_file), "preferences", split).to_list()
        assert data.load("hh_rlhf", "preferences", split, dataset_path=str(hh_file)).to_list() == rows
        assert {(row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) for row in rows} <= texts
        assert {split_of(row["prompt"]) for row in rows} == {split}
        total += len(rows)
    assert total == 2312
