"""Streamed order statistics against sorting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.order_statistics import held_values, order_statistics
from rlhf_lines.merge.tensors.residuals import Chunk, residuals_in_memory


def noise(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def differences(size: int) -> Tensor:
    """What bfloat16 policies differ by from their SFT model: few distinct values, many of them zero."""
    sft = 0.02 * noise(size)
    return (sft + 0.0006 * noise(size, 1)).bfloat16().float() - sft.bfloat16().float()


VALUES = {
    "noise": noise(5000),
    "differences of bfloat16": differences(5000),
    "one value": torch.full((5000,), 0.5),
    "two values": (noise(5000) > 1).float(),
    "one value is most of them": torch.where(noise(5000) > 2, noise(5000), 0.25),
    "rising": torch.arange(5000.0),
    "infinities": torch.cat([noise(4000), torch.full((500,), torch.inf), torch.full((500,), -torch.inf)]),
    # Every row alike: a sample of one column would see one value.
    "columns": torch.arange(8.0).repeat(625),
}


MOST_PASSES = 50  # of a search that ends


def searched(values: Tensor, ranks: list[int], *, elements: int, workers: int = 1) -> tuple[list[float], int]:
    """What is found at the ranks, and in how many passes."""
    read = 0

    def themselves(chunk: Chunk) -> list[Tensor]:
        nonlocal read
        read += len(chunk.residuals[0])
        assert read <= MOST_PASSES * len(values), "it does not end"
        return chunk.residuals

    residuals = replace(residuals_in_memory([{"w": values}], elements=elements), workers=workers)
    (found,) = order_statistics(residuals, [ranks], themselves)
    return found, read // len(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("direct", [0, 1 << 20])
def test_order_statistics_are_those_of_sorting(dtype, workers, direct, monkeypatch):
    monkeypatch.setattr(order, "DIRECT", direct)
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


@pytest.mark.parametrize("errors", [0.01, 5], ids=["the sample misleads", "as it is"])
@pytest.mark.parametrize("elements", [64, 5000])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_rank_is_found_whatever_the_values(values, elements, errors, monkeypatch):
    monkeypatch.setattr(order, "DIRECT", 100)
    monkeypatch.setattr(order, "ERRORS", errors)
    monkeypatch.setattr(order, "MOST", 400)  # too few for what lies between two values of a sample
    ranks = [0, 1, 7, 1234, 2500, 4321, 4998, 4999]
    found, _ = searched(values, ranks, elements=elements)
    assert found == [values.sort().values[rank].item() for rank in ranks]


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.8, 0.9999])
@pytest.mark.parametrize("values", [noise(3_000_000), differences(3_000_000)], ids=["noise", "differences"])
def test_two_passes_are_enough(values, share):
    rank = int(share * len(values))
    assert len(values) > order.DIRECT
    assert searched(values, [rank], elements=1 << 18, workers=2) == ([values.sort().values[rank].item()], 2)


def test_a_sample_meets_all_columns(monkeypatch):
    """Sixteen columns of other sizes: every 16th value would be one column, and mislead."""
    monkeypatch.setattr(order, "DIRECT", 1000)
    values = torch.arange(16.0).repeat(6250) + 1e-3 * noise(100_000)
    assert -(-len(values) // held_values(len(values))) == 16
    rank = len(values) // 2
    assert searched(values, [rank], elements=1 << 16) == ([values.sort().values[rank].item()], 2)


@pytest.mark.parametrize("size", [100, 5000])
def test_zero_has_no_sign(size, monkeypatch):
    monkeypatch.setattr(order, "DIRECT", 1000)
    (found,), _ = searched(torch.full((size,), -0.0), [size // 2], elements=64)
    assert math.copysign(1, found) == 1


@pytest.mark.parametrize("share", [1 / 5000, 0.3, 1])
@pytest.mark.parametrize("direct", [1000, 1 << 20])
def test_nan_is_the_largest(direct, share, monkeypatch):
    """A caller refuses such residuals with a sentence, once it has gone over all of them."""
    monkeypatch.setattr(order, "DIRECT", direct)
    values = noise(5000)
    values[: int(5000 * share)] = torch.nan
    (first, last), _ = searched(values, [0, 4999], elements=64)
    assert math.isnan(last)
    assert first == values.sort().values[0].item() or (share == 1 and math.isnan(first))


def test_parameters_that_are_trained_are_searched_too():
    values = torch.nn.Parameter(noise(100))
    residuals = residuals_in_memory([{"w": values}])
    assert order_statistics(residuals, [[50]]) == [[values.detach().abs().sort().values[50].item()]]


def test_what_is_held_grows_slower_than_the_model():
    assert [held_values(size) for size in (1, order.DIRECT)] == [1, order.DIRECT]
    held = held_values(10**9)
    assert (held - 1) ** 3 < (5 * 10**9) ** 2 <= held**3
    assert held_values(10**12) == order.MOST
