"""Rows by task, file or folder, and one sentence where that cannot be."""

from __future__ import annotations

import json
import socket

import pytest
from datasets import Dataset

from rlhf_lines import data
from rlhf_lines.data import docstrings, tldr
from rlhf_lines.data.splits import split_of


SPLITS = ("train", "validation", "test")
ROWS = [
    {"prompt": f"prompt {n}", "completion": f" answer {n}", "chosen": f" good {n}", "rejected": f" bad {n}", "extra": n}
    for n in range(60)
]


@pytest.fixture
def write(tmp_path):
    """Return a writer of rows in the format that the name asks for."""

    def write(name, rows=ROWS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            Dataset.from_list(rows).to_parquet(path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def one_sentence(caught):
    message = str(caught.value)
    assert "\n" not in message and message
    return message


# --- files


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("demonstrations", ["prompt", "completion"]),
        ("prompts", ["prompt"]),
        ("preferences", ["prompt", "chosen", "rejected"]),
    ],
)
def test_a_file_is_split_by_its_prompts(write, name, kind, columns):
    path = write(name)
    found = []
    for split in SPLITS:
        dataset = data.load(path, kind, split)
        assert dataset.column_names == columns
        expected = [{c: row[c] for c in columns} for row in ROWS if split_of(row["prompt"]) == split]
        assert dataset.to_list() == expected and expected
        found += expected
    assert len(found) == len(ROWS)


def test_a_file_of_texts_is_split_by_its_texts(write):
    path = write("texts.jsonl", [{"text": row["prompt"]} for row in ROWS])
    for split in SPLITS:
        found = [row["text"] for row in data.load(path, "text", split)]
        assert found == [row["prompt"] for row in ROWS if split_of(row["prompt"]) == split]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_folder_keeps_its_own_splits(write, tmp_path, suffix):
    for number, split in enumerate(SPLITS):
        write(f"folder/{split}.{suffix}", ROWS[number * 20 : number * 20 + 20])
    for number, split in enumerate(SPLITS):
        found = data.load(str(tmp_path / "folder"), "prompts", split)
        assert found.to_list() == [{"prompt": row["prompt"]} for row in ROWS[number * 20 : number * 20 + 20]]


def test_max_samples_keeps_the_first_rows(write):
    path = write("rows.jsonl")
    everything = data.load(path, "prompts", "train")["prompt"]
    assert data.load(path, "prompts", "train", max_samples=7)["prompt"] == everything[:7]
    assert len(data.load(path, "prompts", "train", max_samples=10_000)) == len(everything)


def test_a_changed_file_is_read_anew(write):
    path = write("rows.jsonl")
    before = data.load(path, "prompts", "train")["prompt"]
    write("rows.jsonl", ROWS[:30])
    after = data.load(path, "prompts", "train")["prompt"]
    assert list(after) == [prompt for prompt in before if prompt in {row["prompt"] for row in ROWS[:30]}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_reading_a_local_file_asks_nobody(write, monkeypatch, name):
    asked = []

    def refuse(host, *arguments, **options):
        asked.append(host)
        raise OSError(f"no network: {host}")

    path = write(name)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    assert len(data.load(path, "prompts", "train")) > 0
    assert asked == []


def test_a_missing_column_is_named(write, tmp_path):
    path = write("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError) as caught:
        data.load(path, "preferences", "train")
    expected = f"dataset {path} lacks the columns chosen, rejected for preferences; it has prompt, completion"
    assert one_sentence(caught) == expected
    write("folder/train.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError) as caught:
        data.load(str(tmp_path / "folder"), "demonstrations", "train")
    expected = f"dataset {tmp_path}/folder/train.jsonl lacks the column completion for demonstrations; it has prompt"
    assert one_sentence(caught) == expected


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows"])
def test_an_unknown_format_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt\na\n")
    with pytest.raises(ValueError) as caught:
        data.load(str(path), "prompts", "train")
    expected = f"dataset file {path} has the format {path.suffix!r}, expected one of .jsonl, .json, .parquet"
    assert one_sentence(caught) == expected


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing", "a/b/missing.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path / name), "prompts", "train")
    assert one_sentence(caught) == f"dataset file {tmp_path / name} does not exist"


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.parquet", "./missing", "~/missing"])
def test_a_missing_relative_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"dataset file {name} does not exist"):
        data.load(name, "prompts", "train")


def test_a_folder_without_the_split_is_refused(write, tmp_path):
    write("folder/train.jsonl")
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path / "folder"), "prompts", "validation")
    expected = f"{tmp_path}/folder has no validation split: expected {tmp_path}/folder/validation.jsonl"
    assert one_sentence(caught) == f"dataset folder {expected}"


def test_an_empty_split_is_refused(write):
    path = write("rows.jsonl", [{"prompt": "textwrap.wrap:"}])  # of the train split
    assert len(data.load(path, "prompts", "train")) == 1
    with pytest.raises(ValueError) as caught:
        data.load(path, "prompts", "test")
    assert one_sentence(caught) == f"dataset {path} has no prompts in its test split"


def test_a_file_has_no_named_preferences(write):
    path = write("rows.jsonl")
    with pytest.raises(ValueError) as caught:
        data.load(path, "preferences", "train", preference="brief")
    assert one_sentence(caught) == f"preference 'brief' was given, but {path} is a plain source of pairs"


# --- tasks


def test_the_rows_of_a_task_are_those_of_its_module():
    assert data.load("docstrings", "prompts", "test").to_list() == docstrings.prompts("test")
    pairs = data.load("docstrings", "preferences", "test", preference="brief", max_samples=5)
    assert pairs.to_list() == docstrings.preferences("test", "brief")[:5]


@pytest.mark.parametrize("preference", [None, "kind"])
def test_an_unknown_preference_of_a_task_is_refused(preference):
    with pytest.raises(ValueError) as caught:
        data.load("docstrings", "preferences", "train", preference=preference)
    expected = f"preference {preference!r} is unknown to the docstrings task, which has brief and specific"
    assert one_sentence(caught) == expected


def test_a_task_without_such_rows_is_refused():
    with pytest.raises(ValueError) as caught:
        data.load("tldr", "text", "train")
    assert one_sentence(caught) == "the tldr task has no text; it has demonstrations, prompts, preferences"


def test_a_task_with_one_preference_refuses_a_name_for_it():
    with pytest.raises(ValueError) as caught:
        data.load("tldr", "preferences", "train", preference="brief")
    assert one_sentence(caught) == "preference 'brief' was given, but the tldr task has one preference: leave it out"


def test_an_empty_split_of_a_task_is_refused():
    with pytest.raises(ValueError, match="dataset docstrings has no prompts in its dev split"):
        data.load("docstrings", "prompts", "dev")


# --- what judges are shown


TLDR = "SUBREDDIT: r/cats\n\nTITLE: Late\n\nPOST: My cat came home late. TL;DR: she is\nfine\n\nTL;DR:"


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (TLDR, "My cat came home late. TL;DR: she is\nfine"),
        ("POST: a POST: b\nTL;DR:", "a POST: b"),
        ("no mark at all", "no mark at all"),
    ],
)
def test_judges_of_tldr_read_the_post_alone(prompt, shown):
    assert tldr.scored_prompt(prompt) == shown
    assert data.scored_prompts("tldr", [prompt, prompt]) == [shown, shown]


@pytest.mark.parametrize("source", ["docstrings", "rows.jsonl", "owner/name"])
def test_other_judges_read_the_prompt(source):
    prompts = [TLDR, "a"]
    shown = data.scored_prompts(source, prompts)
    assert shown == prompts and shown is not prompts
