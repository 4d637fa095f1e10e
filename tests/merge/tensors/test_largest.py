"""The largest number of a config is that of torch."""

from __future__ import annotations

import torch

from rlhf_lines.merge.tensors.largest import LARGEST


def test_it_is_the_largest_of_float32():
    assert torch.finfo(torch.float32).max == LARGEST
