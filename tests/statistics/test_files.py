"""The file that is written tensor by tensor, the reader of Gram matrices, and the bound on memory."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlhf_lines.statistics import read_gram, stored_transposed
from rlhf_lines.statistics.files import TensorFile
from rlhf_lines.statistics.groups import in_groups, parse_size


TENSORS = {"b": torch.randn(3, 5), "a": torch.randn(7), "empty": torch.zeros(0, 2), "ü": torch.randn(2, 2).T}


def test_safetensors_reads_what_was_written_piece_by_piece(tmp_path):
    path = tmp_path / "x.safetensors"
    with TensorFile(path, {name: tensor.shape for name, tensor in TENSORS.items()}, {"key": '{"a": "b"}'}) as file:
        for name, tensor in TENSORS.items():
            file.write(name, tensor.double())
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], tensor)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # tensors start at a multiple of 8 bytes
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == {"format": "pt", "key": '{"a": "b"}'}


@pytest.mark.parametrize("name, tensor", [("a", torch.zeros(7)), ("b", torch.zeros(5, 3)), ("c", torch.zeros(1))])
def test_only_the_next_tensor_is_taken(tmp_path, name, tensor):
    with (
        pytest.raises(RuntimeError, match="is not the next tensor"),
        TensorFile(tmp_path / "x", {"b": (3, 5), "a": (7,)}, {}) as file,
    ):
        file.write(name, tensor)


def test_a_file_that_lacks_a_tensor_is_an_error(tmp_path):
    with (
        pytest.raises(RuntimeError, match="1 tensors were never written, the first is 'a'"),
        TensorFile(tmp_path / "x", {"b": (3, 5), "a": (7,)}, {}) as file,
    ):
        file.write("b", torch.zeros(3, 5))


def test_a_gram_matrix_is_found_by_the_name_of_every_layer_that_shares_it(tmp_path):
    path, gram = tmp_path / "gram.safetensors", torch.randn(2, 2)
    save_file({"q": gram}, path, metadata={"same_input": '{"q": "q", "k": "q"}', "transposed": '["k"]'})
    with safe_open(path, framework="pt") as handle:
        for file in (path, str(path), handle):
            assert torch.equal(read_gram(file, "q"), gram) and torch.equal(read_gram(file, "k"), gram)
            assert stored_transposed(file) == {"k"}
    with pytest.raises(ValueError, match="unknown linear layer 'v'; known: k, q"):
        read_gram(path, "v")


def test_another_file_is_no_gram_file(tmp_path):
    save_file({"q": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(ValueError, match="no 'same_input' in its header, expected the gram"):
        read_gram(tmp_path / "x", "q")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), ("1.5 KB", 1500), ("2TiB", 2**41), ("77", 77), (77, 77), ("8B", 8)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 gigabytes", "-1GB", "4G", "1e9", "4iB", None])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: expected a number with a unit"):
        parse_size(text)


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
