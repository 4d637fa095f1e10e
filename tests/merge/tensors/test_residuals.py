"""The memory that residuals are read in: what is beyond its bound is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_lines.merge.rules import RULES, merge_lazily
from rlhf_lines.merge.tensors.residuals import residuals_in_memory


def test_a_whole_tensor_beyond_the_memory_bound_is_refused():
    residuals = replace(residuals_in_memory([{"w": torch.ones(8, 8)}], elements=16), max_memory=1000)
    assert len(list(residuals.spans("row"))) == 4
    with pytest.raises(ValueError, match=r"64 elements of 'w' \(8, 8\) at once, about 1,024 bytes, but max_memory is"):
        list(residuals.spans("tensor"))


@pytest.mark.parametrize(("rule", "float64"), [("opcm", 5), ("doge", 6), ("regmean", 3 + 3)])
def test_what_a_rule_takes_beside_a_whole_tensor_is_counted(rule, float64):
    generator = torch.Generator().manual_seed(0)
    policies = [{"model.layers.0.mlp.up_proj.weight": torch.randn(8, 8, generator=generator)} for _ in range(2)]
    grams = [{"model.layers.0.mlp.up_proj.weight": torch.eye(8)}] * 2 if RULES[rule].statistics else []
    residuals = residuals_in_memory(policies, statistics=grams, elements=16)
    needed = 6 * 64 * 4 + float64 * 64 * 8  # 2 (K + 1) float32 matrices of 64 elements, and those of float64
    merge_lazily(replace(residuals, max_memory=needed), rule)
    with pytest.raises(ValueError, match=f"about {needed:,} bytes, but max_memory is {needed - 1:,}"):
        merge_lazily(replace(residuals, max_memory=needed - 1), rule)
