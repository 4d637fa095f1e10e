"""Streamed order statistics against sorting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import residuals_in_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("direct", [0, 1 << 20])
def test_order_statistics_are_those_of_sorting(dtype, workers, direct, monkeypatch):
    monkeypatch.setattr(order, "DIRECT", direct)
    monkeypatch.setattr(order, "AT_ONCE", 300)
    generator = torch.Generator().manual_seed(0)
    policies = [
        {
            "a": torch.randn(40, 7, generator=generator, dtype=dtype),
            # Many equal values, zeros of both signs, and the ends of the range.
            "b": (torch.randn(300, generator=generator, dtype=dtype) * 3).round() / 8,
            "c": torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], dtype=dtype),
        }
        for _ in range(2)
    ]
    residuals = replace(residuals_in_memory(policies, elements=50), workers=workers)
    flat = [torch.cat([tensor.flatten() for tensor in policy.values()]) for policy in policies]
    ranks = [[0, 17, 300, len(flat[0]) - 1], [len(flat[0]) // 2]]
    expected = [
        [values.abs().sort().values[rank].item() for rank in wanted] for values, wanted in zip(flat, ranks, strict=True)
    ]
    assert order_statistics(residuals, ranks) == expected
    signed = order_statistics(residuals, ranks, lambda chunk: chunk.residuals)
    assert signed == [
        [values.sort().values[rank].item() for rank in wanted] for values, wanted in zip(flat, ranks, strict=True)
    ]
    (alone,) = order_statistics(residuals, [[5]] * 2, names=["b"])[:1]
    assert alone == [policies[0]["b"].abs().sort().values[5].item()]
