"""The task for a language model: real docstrings without their summaries, and the summaries."""

from __future__ import annotations

import json

import pytest

from rlhf_lines import data
from rlhf_lines.data import docstring_sentences as task
from rlhf_lines.data import docstrings


SPLITS = ("train", "validation", "test")


def test_an_entry_is_read_without_its_summary_which_is_the_demonstration():
    (entry,) = [e for e in docstrings.corpus() if e.name == "textwrap.wrap"]
    said = task.prompt(entry)
    assert said.startswith(f"{task.INSTRUCTION}\n\ntextwrap.wrap: Reformat the single paragraph in 'text' so it fits")
    assert said.endswith(" ...") and len(task.body(entry)) <= task.LONGEST_BODY
    split = next(split for split in SPLITS if entry in docstrings.entries(split, task.SHARE))
    (row,) = [row for row in task.demonstrations(split) if row["prompt"] == said]
    assert row["completion"] == " Wrap a single paragraph of text, returning a list of wrapped lines."


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_and_demonstrations_are_of_one_split_and_tell_of_public_names(split):
    prompts, shown = task.prompts(split), task.demonstrations(split)
    assert [row["prompt"] for row in prompts] == [row["prompt"] for row in shown] and len(prompts) > 450
    names = {entry.name for entry in docstrings.entries(split, task.SHARE)}
    for row, demonstration in zip(prompts, shown, strict=True):
        name, _, body = row["prompt"].removeprefix(f"{task.INSTRUCTION}\n\n").partition(": ")
        assert name in names and not any(part.startswith("_") for part in name.split("."))
        assert 60 <= len(body) <= 140 and "\n" not in body
        assert json.loads(row["columns"]) == {"docstring": f"{demonstration['completion'][1:]} {body}"}


def test_a_prompt_is_in_one_split_and_what_docstrings_holds_out_is_not_trained_on():
    held_out = {split: {row["prompt"] for row in task.prompts(split)} for split in SPLITS}
    assert sum(map(len, held_out.values())) == len(set().union(*held_out.values()))
    there = {task.prompt(entry) for split in ("validation", "test") for entry in docstrings.entries(split)}
    assert there & held_out["test"] and not there & held_out["train"]


def test_the_task_is_loaded_by_its_name():
    rows = data.load("docstring_sentences", "prompts", "test")
    assert rows[0]["conversation"] == [{"role": "user", "content": rows[0]["prompt"]}]
    assert set(json.loads(rows[0]["columns"])) == {"docstring"}
    with pytest.raises(ValueError, match="has no preferences; it has demonstrations, prompts"):
        data.load("docstring_sentences", "preferences", "test")
