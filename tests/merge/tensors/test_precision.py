"""The merged weight is the same in memory of its own and in memory that is used again."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge.tensors.precision import DTYPES, add_residual
from rlhf_lines.merge.tensors.spans import Scratch


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_scratch_changes_no_bit(dtype, wide):
    generator = torch.Generator().manual_seed(0)
    scratch, before = Scratch(), None
    for size in (100, 60):
        sft, residual = (torch.randn(size, generator=generator, dtype=wide) for _ in range(2))
        copies = sft.clone(), residual.clone()
        found = add_residual(sft, residual, dtype, scratch)
        assert found.dtype == dtype and torch.equal(found, (sft + residual).to(dtype))
        assert torch.equal(found, add_residual(sft, residual, dtype))
        assert torch.equal(sft, copies[0]) and torch.equal(residual, copies[1])
        assert before is None or found.data_ptr() == before
        before = found.data_ptr()
