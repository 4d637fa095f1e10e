"""Rows that are too long for a trainer are counted and told; none left is a sentence."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rlhf_lines.train.kept_rows import tell_long_rows


END = 9


def test_rows_left_out_and_cut_are_counted(caplog):
    kept = Dataset.from_list([{"input_ids": [1, 2, END]}, {"input_ids": [1, 2, 3, 4]}, {"input_ids": [1, 2, 3, END]}])
    counts = tell_long_rows(kept, 5, max_length=4, end=END, source="here")
    assert counts == {"train_rows": 3, "train_rows_left_out": 2, "train_rows_cut": 1}
    assert caplog.messages == [
        "here: 2 of 5 prompts have at least max_length 4 tokens, so no completion is left to learn: left out",
        "here: 1 of 5 rows are cut to max_length 4",
    ]


def test_without_a_limit_nothing_is_told(caplog):
    kept = Dataset.from_list([{"input_ids": [1, 2, 3]}])
    assert tell_long_rows(kept, 1, max_length=None, end=END, source="here")["train_rows_cut"] == 0
    assert caplog.messages == []


def test_none_left_is_a_sentence():
    with pytest.raises(ValueError, match="each of the 3 demonstrations of here has a prompt of at least 4 tokens"):
        tell_long_rows(Dataset.from_dict({"input_ids": []}), 3, max_length=4, end=END, source="here")
