"""Spans of tensors: the cuts, and the order of what threads make of them."""

from __future__ import annotations

import threading

import pytest
import torch

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
