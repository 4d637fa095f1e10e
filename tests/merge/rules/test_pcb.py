"""PCB: public numbers, and its formula with Python's floats and sorts."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lines.merge import apply_lines, merge_residuals
from tests.merge.reference import CASES, WIDTHS, assert_case, task_vectors
from tests.merge.rules.one_layer import (
    HEAD,
    SHAPES,
    WEIGHTS,
    assert_equal,
    flat,
    randn,
)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_pcb_agrees_with_the_public_codes(dtype):
    residuals = task_vectors(3, dtype)
    assert_case("pcb_n3_r0.1", merge_residuals(residuals, "pcb"))
    assert_case("pcb_nlp_n3_r0.1", merge_residuals(residuals, "pcb", clamp=0.01))
    vision = merge_residuals(residuals, "pcb", ratio=0.05, clamp=0.01, balance="clamped")
    (factor,) = set(CASES["pcb_vision_n3_r0.05"]["params"]["lams"])
    assert_case("pcb_vision_n3_r0.05", apply_lines(vision, factor, 0.0))


def pcb_by_sorting(taus: list[list[float]], ratio: float, clamp: float, clamped: bool) -> list[float]:
    """The formula of one flat vector per policy, with Python's floats and sorts."""
    count, size = len(taus), len(taus[0])

    def sized(tau):
        ordered = sorted(map(abs, tau))
        low, high = ordered[int(size * clamp)], ordered[int(size * (1 - clamp) - 1)]
        clipped = [min(max(abs(value), low), high) for value in tau]
        return clipped, [(value - low) / (high - low) for value in clipped]

    sizes = [sized(tau) for tau in taus]
    summed = [
        sum(math.copysign(sizes[k][1][i], taus[k][i]) if clamped else taus[k][i] for k in range(count))
        for i in range(size)
    ]
    top, bottom = [0.0] * size, [0.0] * size
    for tau, (clipped, relative) in zip(taus, sizes, strict=True):
        balance = [math.exp(count * relative[i] ** 2) * math.tanh(tau[i] * summed[i]) for i in range(size)]
        least, most = sorted(balance)[int(size * (1 - ratio))], max(balance)
        for i in range(size):
            score = (max(balance[i], least) - least) / (most - least)
            top[i] += score * math.copysign(clipped[i], tau[i])
            bottom[i] += score
    return [a / max(b, 1e-12) for a, b in zip(top, bottom, strict=True)]


@pytest.mark.parametrize("balance", ["raw", "clamped"])
@pytest.mark.parametrize(("ratio", "clamp"), [(0.1, 1e-4), (0.25, 0.05), (1.0, 0.0)])
def test_pcb_is_its_formula(ratio, clamp, balance):
    residuals = [randn(k, 0.7) for k in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    taus = [
        [4 * weight * value for value in flat(tau).tolist()] for weight, tau in zip(weights, residuals, strict=True)
    ]
    merged = merge_residuals(residuals, "pcb", weights=weights, ratio=ratio, clamp=clamp, balance=balance)
    expected = pcb_by_sorting(taus, ratio, clamp, balance == "clamped")
    torch.testing.assert_close(flat(merged), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-13)


def test_many_policies_do_not_overflow():
    """In float32 exp(K) does from 89 policies on; Python's floats hold it."""
    residuals = [randn(k, 0.1) for k in range(100)]
    merged = merge_residuals([{name: t.float() for name, t in tau.items()} for tau in residuals], "pcb", ratio=0.25)
    expected = pcb_by_sorting([flat(tau).float().tolist() for tau in residuals], 0.25, 1e-4, False)
    torch.testing.assert_close(flat(merged).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_pcb_leaves_out_what_is_below_the_ratio():
    merged = flat(merge_residuals([randn(k) for k in range(2)], "pcb", ratio=0.1))
    size = len(merged)
    kept = size - int(size * 0.9) - 1  # of each policy: the entry at the quantile itself has S = 0
    assert kept <= merged.count_nonzero() <= 2 * kept
    assert not flat(merge_residuals([randn(k) for k in range(2)], "pcb", ratio=0.0)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5, expected a number between 0 and 1"),
        ({"clamp": 0.6}, "clamp is 0.6, expected a number between 0 and 0.5"),
        ({"balance": "row"}, "unknown balance 'row'; known: clamped, raw"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([randn(0), randn(1)], "pcb", sft=randn(2), **options)


@pytest.mark.parametrize("balance", ["raw", "clamped"])
def test_pcb_is_homogeneous_where_tanh_is_linear(balance):
    # tanh(x) is x up to x^2/3, and x is below 1e-5 here.
    options = {"weights": WEIGHTS, "ratio": 0.3, "clamp": 0.02, "balance": balance}
    merged = []
    for scale in (1e-6, 1e-8):
        residuals = [randn(k, scale, {**SHAPES, "model.experts": (2, 4, 6), "model.scale": ()}) for k in range(3)]
        del residuals[1][HEAD]  # a policy that leaves a parameter alone
        merged.append(merge_residuals(residuals, "pcb", **options))
    small, smaller = merged
    assert_equal(small, {name: 100 * tensor for name, tensor in smaller.items()}, rtol=1e-9, atol=1e-18)
