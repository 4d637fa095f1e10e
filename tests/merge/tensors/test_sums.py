"""Sums over parameters: exact where the chunks meet, and the same bits however they are read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lines.merge.tensors import sums
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from rlhf_lines.merge.tensors.spans import ELEMENTS
from rlhf_lines.merge.tensors.sums import parameter_sums


@pytest.fixture
def residuals():
    """Numbers whose sums cancel, so that every rounding on the way is seen."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"long": ELEMENTS + 999, "short": 217, "scalar": 1, "empty": 0}
    halves = [{n: torch.randn(s, generator=generator).double() ** 3 for n, s in tensors.items()} for _ in range(2)]
    return [{n: torch.cat([x, -0.999 * x.roll(1)]) for n, x in half.items()} for half in halves]


def themselves(chunk):
    return chunk.residuals


def test_sums_are_those_of_float64(residuals):
    found_sums = parameter_sums(residuals_in_memory(residuals), themselves)
    assert found_sums.pop("empty") == []
    for name, found in found_sums.items():
        for residual, got in zip(residuals, found, strict=True):
            exact, size = math.fsum(residual[name].tolist()), math.fsum(residual[name].abs().tolist())
            assert got == pytest.approx(exact, abs=1e-14 * size)


def test_how_residuals_are_read_does_not_change_a_bit(residuals, set_threads):
    held = residuals_in_memory(residuals)
    expected = parameter_sums(held, themselves)
    assert parameter_sums(replace(held, elements=1000), themselves) == expected
    assert parameter_sums(replace(held, elements=10 * ELEMENTS, workers=3), themselves) == expected
    for threads in (1, 2, 5):
        set_threads(threads)
        assert parameter_sums(held, themselves) == expected


def test_large_parts_that_cancel_leave_the_small_one():
    tau = torch.zeros(2 * ELEMENTS + 1, dtype=torch.float64)
    tau[0], tau[ELEMENTS], tau[-1] = 1e16, 1.0, -1e16
    assert parameter_sums(residuals_in_memory([{"a": tau}]), themselves) == {"a": [1.0]}


def test_the_parts_of_one_parameter_are_held_at_a_time(monkeypatch):
    """When the last parameter is read, the first one's sum is made already."""
    made = []
    monkeypatch.setattr(sums.math, "fsum", lambda parts: made.append(list(parts)) or sum(made[-1]))
    made_before = []

    def values(chunk):
        made_before.append((chunk.name, len(made)))
        return chunk.residuals

    taus = {name: torch.ones(2 * ELEMENTS) for name in ("a", "b", "c")}
    assert sums.parameter_sums(residuals_in_memory([taus]), values) == {n: [2.0 * ELEMENTS] for n in taus}
    assert dict(made_before) == {"a": 0, "b": 1, "c": 2}
