"""What lies beside the rows that are read is refused or told: shards that are missing, splits of other names."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from rlhf_lines import data


ROW = [{"prompt": "a"}]


@pytest.fixture
def folder(tmp_path):
    """Return a maker of a folder of files, each with one prompt, its name."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"prompt": name}))
        return str(tmp_path)

    return make


@pytest.mark.parametrize("place", ["", "data/"])
@pytest.mark.parametrize("there", [(0,), (1,), (0, 2)])
def test_a_missing_shard_is_refused(folder, place, there):
    source = folder(*(f"{place}train-{number:05}-of-00003.jsonl" for number in there))
    lacking = next(number for number in range(3) if number not in there)
    with pytest.raises(FileNotFoundError, match=f"{len(there)} of 3 shards.*number {lacking} is missing"):
        data.load(source, "prompts", "test", test_size="all")


def test_all_shards_are_read(folder):
    source = folder(*(f"train-{number:05}-of-00003.jsonl" for number in range(3)))
    assert len(data.load(source, "prompts", "test", test_size="all")) == 3


@pytest.mark.parametrize("other", ["train.json", "train-00000-of-00001.jsonl", "train/a.jsonl"])
def test_a_split_in_two_forms_is_refused(folder, other):
    with pytest.raises(ValueError, match=r"has the train split in several forms \(.*keep one of them"):
        data.load(folder("train.jsonl", other), "prompts", "test", test_size="all")


def test_splits_of_other_names_are_told(folder, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    data.load(folder("train.jsonl", "eval.jsonl"), "prompts", "test", test_size="all")
    assert "eval is not read: splits are called train, validation, test" in caplog.text
    caplog.clear()
    saved = tmp_path / "saved"
    DatasetDict(train=Dataset.from_list(ROW), test=Dataset.from_list(ROW), extra=Dataset.from_list(ROW)).save_to_disk(
        saved
    )
    data.load(str(saved), "prompts", "test")
    assert "extra is not read: splits are called" in caplog.text


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "a", "answer": "b"}, "(prompt is called question here, completion is called answer here)"),
        ({"conversations": []}, "(messages, a list of turns with role and content, is called conversations here)"),
        ({"Prompt": "a", "completion": "b"}, "(prompt is called Prompt here)"),
        ({"messages": "[]"}, "row 1 of dataset {file}: messages is a text, expected a list of messages with role"),
        ({"messages": None}, "row 1 of dataset {file} has no messages: fill it in"),
    ],
)
def test_columns_of_other_names_are_pointed_out(tmp_path, row, sentence):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError) as error:
        data.load(str(file), "demonstrations", "train")
    assert sentence.format(file=file) in str(error.value)


def test_a_folder_without_a_split_says_what_it_holds(folder):
    with pytest.raises(FileNotFoundError, match=r"it holds rows\.csv: rename what is meant, or name the file itself"):
        data.load(folder("rows.csv"), "prompts", "train")
