"""Files and folders as people have them: what is broken is named with its file, row and reason, in one sentence."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from datasets import Dataset, DatasetDict

from rlhf_lines import data
from rlhf_lines.data.sources import read


GOOD = b'{"prompt": "a"}\n{"prompt": "b"}\n'


def refused(path):
    with pytest.raises(ValueError) as caught:
        read(str(path))
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"prompt": "a b\n', "line 3 of dataset file .* is cut off"),
        (GOOD + b'{"prompt": "a"\n', "line 3 of dataset file .* is cut off"),
        (GOOD + b"{'prompt': 'a'}\n", "line 3 of dataset file .* is no JSON"),
        (GOOD + b'{"prompt": "a"} {"prompt": "b"}\n', r"line 3 of dataset file .* is no JSON \(Extra data"),
        (GOOD + b'{"prompt": "a \\ud83d"}\n', r"line 3 of dataset file .* holds half of a character \(\\ud83d"),
        (
            GOOD + b'{"other": {"deep": ["\\uDC00"]}}\n',
            r"line 3 of dataset file .* holds half of a character \(\\udc00",
        ),
        (GOOD + '{"prompt": "ä"}\n'.encode("latin-1"), r"line 3 of dataset file .* is not UTF-8 \(byte 0xe4\)"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "line 1 of dataset file .* is not UTF-8"),
        (GOOD + b'{"prompt": "a", "prompt": "b"}\n', "line 3 of dataset file .*: the key 'prompt' is there twice"),
        (GOOD + b"null\n", "line 3 of dataset file .* holds null, expected an object"),
        (GOOD + b'["a"]\n', r'line 3 of dataset file .* holds \["a"\], expected an object'),
        (b'[{"prompt": "a"}, 3]', "row 2 of dataset file .* holds 3, expected an object"),
        (b'[\n{"prompt": "a"},\n{"prompt": }\n]', "line 3 of dataset file .* is no JSON"),
        (b'[{"prompt": "a"}', "line 1 of dataset file .* is cut off"),
        (b'[{"prompt": "a"}, {"prompt": "\\ud83d"}]', "row 2 of dataset file .* holds half of a character"),
        (b'{\n  "data": [\n{"prompt": "a"}\n]}\n', "holds one object over several lines, expected rows"),
        (gzip.compress(GOOD, mtime=0), "is packed with gzip: call it .*rows.jsonl.gz"),
        (b"", "is empty, expected rows"),
        (b"\n\n", "holds no rows"),
        (b"[]", "holds no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert re.search(message, refused(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-9]),
        ("rows.jsonl.gz", GOOD),
        ("rows.parquet", b"PAR1 and no more"),
    ],
)
def test_a_broken_container_cannot_be_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert "cannot be read: " in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\n\n \n"),
        GOOD.rstrip(),
        b'[{"prompt": "a"}, {"prompt": "b"}]',
        b' [\n{"prompt": "a"},\n{"prompt": "b"}\n]\n',
    ],
)
def test_what_editors_do_to_a_file_changes_nothing(tmp_path, content):
    path = tmp_path / "rows.JSONL"
    path.write_bytes(content)
    assert read(str(path)) == {"train": [{"prompt": "a"}, {"prompt": "b"}]}


def test_texts_come_as_they_are_written(tmp_path):
    """No type is guessed: a date stays a text, and columns that nobody reads may differ from row to row."""
    rows = [{"prompt": "2026-01-01", "x": 1}, {"prompt": "a\u2028b\x00 \U0001f600", "x": "one"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(str(path)) == {"train": rows}
    found = data.load(str(path), "prompts", "test", test_size="all").to_list()
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [json.loads(row["columns"]) for row in found] == [{"x": 1}, {"x": "one"}]


@pytest.mark.parametrize("spoken", [False, True])
def test_a_column_that_a_row_lacks_and_others_of_its_split_have_is_null(tmp_path, spoken):
    """A reward function may ask for it, whichever rows stand in its batch; where no row has it, that is told early."""
    a, b, c = ([{"role": "user", "content": text}] if spoken else text for text in "abc")
    train, test = [{"prompt": a, "harmful": True}, {"prompt": b, "x": 1}], [{"prompt": c}]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [row for split in ("train", "test") for row in data.load(str(tmp_path), "prompts", split).to_list()]
    assert [json.loads(row.get("columns") or "{}") for row in found] == [
        {"harmful": True, "x": None}, {"x": 1, "harmful": None}, {}
    ]  # fmt: skip


def test_what_save_to_disk_wrote_is_a_source(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert read(str(tmp_path / "one")) == {"train": rows}
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])).save_to_disk(tmp_path / "dict")
    assert read(str(tmp_path / "dict")) == {"train": rows, "test": rows[:1]}
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"ARROW")
    with pytest.raises(ValueError, match=r"dataset folder .*one cannot be read: "):
        read(str(tmp_path / "one"))


def test_a_name_that_is_nearly_right_is_suggested(tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_bytes(GOOD)
    with pytest.raises(FileNotFoundError, match=r"prompt.jsonl does not exist; did you mean '.*/prompts.jsonl'\?"):
        read(str(tmp_path / "prompt.jsonl"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"neither a task, nor a local .*; did you mean 'docstrings'\?"):
        data.load("docstring", "prompts", "train")
