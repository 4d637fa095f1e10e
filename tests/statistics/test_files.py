"""The reader of Gram matrices, and groups that keep to a bound on memory."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlhf_lines.statistics import read_gram, stored_transposed
from rlhf_lines.statistics.inputs import in_groups


def test_a_gram_matrix_is_found_by_the_name_of_every_map_that_shares_it(tmp_path):
    path, gram = tmp_path / "gram.safetensors", torch.randn(2, 2)
    save_file({"q": gram}, path, metadata={"same_input": '{"q": "q", "k": "q"}', "transposed": '["k"]'})
    with safe_open(path, framework="pt") as handle:
        for file in (path, str(path), handle):
            assert torch.equal(read_gram(file, "q"), gram) and torch.equal(read_gram(file, "k"), gram)
            assert stored_transposed(file) == {"k"}
    with pytest.raises(ValueError, match="unknown linear map 'v'; known: k, q"):
        read_gram(path, "v")


def test_another_file_is_no_gram_file(tmp_path):
    save_file({"q": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(ValueError, match="no 'same_input' in its header, expected the gram"):
        read_gram(tmp_path / "x", "q")


@pytest.mark.parametrize(
    ("limit", "groups"),
    [(4, ["ab", "c", "d"]), (5, ["ab", "cd"]), (9, ["abc", "d"]), (10, ["abcd"]), (99, ["abcd"])],
)
def test_groups_keep_the_order_and_the_limit(limit, groups):
    assert in_groups({"a": 1, "b": 3, "c": 4, "d": 1 if limit < 9 else 2}, limit) == [list(group) for group in groups]


def test_what_does_not_fit_alone_is_refused():
    with pytest.raises(ValueError, match="max_memory is 3 bytes, but what is summed up for 'c' takes 4: give more"):
        in_groups({"a": 1, "b": 3, "c": 4}, 3)
    assert in_groups({}, 3) == []
