"""Sizes as people write them."""

from __future__ import annotations

import pytest

from rlhf_lines.config import parse_size


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
