"""Residuals in chunks: the cuts, the order, and streamed order statistics against sorting."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.order_statistics import order_statistics
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from rlhf_lines.merge.tensors.spans import Span, cut, in_threads


@pytest.mark.parametrize(
    ("shape", "unit", "elements", "ends"),
    [
        ((5, 3), "element", 7, [7, 14, 15]),
        ((5, 3), "row", 7, [6, 12, 15]),
        ((5, 3), "row", 2, [3, 6, 9, 12, 15]),  # a row is never cut
        ((5, 3), "tensor", 7, [15]),
        ((10,), "row", 4, [10]),  # a vector is one row
        ((10,), "element", 4, [4, 8, 10]),
        ((), "row", 4, [1]),
        ((2, 5, 3), "row", 7, [6, 12, 18, 24, 30]),
        ((0, 3), "element", 7, []),
    ],
)
def test_cuts_by_hand(shape, unit, elements, ends):
    starts = [0, *ends[:-1]]
    assert list(cut("w", shape, unit, elements)) == [Span("w", a, b) for a, b in zip(starts, ends, strict=bool(ends))]


def test_results_come_in_order_from_threads_that_do_not_share_torch(set_threads):
    set_threads(2)
    seen = set()

    def work(span: Span) -> int:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return span.start

    spans = [Span("w", start, start + 1) for start in range(500)]
    assert list(in_threads(work, iter(spans), 3)) == list(range(500))
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_reaches_the_caller():
    def work(span: Span) -> None:
        if span.start == 70:
            raise ValueError("seventy")

    with pytest.raises(ValueError, match="seventy"):
        list(in_threads(work, [Span("w", start, start + 1) for start in range(500)], 2))


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


def test_a_whole_tensor_beyond_the_memory_bound_is_refused():
    residuals = replace(residuals_in_memory([{"w": torch.ones(8, 8)}], elements=16), max_memory=1000)
    assert len(list(residuals.spans("row"))) == 4
    with pytest.raises(ValueError, match=r"64 elements of 'w' \(8, 8\) at once, about 1,024 bytes, but max_memory is"):
        list(residuals.spans("tensor"))


@pytest.mark.parametrize("rule", ["opcm", "regmean"])
def test_what_a_rule_takes_beside_a_whole_tensor_is_counted(rule):
    generator = torch.Generator().manual_seed(0)
    policies = [{"model.layers.0.mlp.up_proj.weight": torch.randn(8, 8, generator=generator)} for _ in range(2)]
    grams = [{"model.layers.0.mlp.up_proj.weight": torch.eye(8)}] * 2 if rule == "regmean" else []
    residuals = residuals_in_memory(policies, statistics=grams, elements=16)
    # 2 (K + 1) float32 matrices of 64 elements; five float64 ones for opcm, three and three for regmean.
    needed = {"opcm": 6 * 64 * 4 + 5 * 64 * 8, "regmean": 6 * 64 * 4 + 6 * 64 * 8}[rule]
    merge_lazily(replace(residuals, max_memory=needed), rule)
    with pytest.raises(ValueError, match=f"about {needed:,} bytes, but max_memory is {needed - 1:,}"):
        merge_lazily(replace(residuals, max_memory=needed - 1), rule)
