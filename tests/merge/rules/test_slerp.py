"""SLERP: public numbers, its geometry, and where it is linear."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors
from tests.merge.rules.oracles import (
    assert_is,
    by_parameter,
    flat,
    random_tensors,
    sft_tensors,
)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_slerp_agrees_with_the_public_codes(dtype):
    residuals = task_vectors(2, dtype)
    assert_case("slerp_residual_per_tensor_n2_t0.3", merge_residuals(residuals, "slerp", weights=[0.7, 0.3]))
    whole = merge_residuals(residuals, "slerp", weights=[0.7, 0.3], sft=tensors("model_base", dtype), of="weights")
    assert_case("slerp_per_tensor_n2_t0.3", plus_base(whole))
    assert_case("mergekit_slerp_n2_t0.3", plus_base(whole))


def slerp_oracle(t: float):
    def oracle(ab: np.ndarray) -> np.ndarray:
        a, b = ab
        norms = np.linalg.norm(ab, axis=1)
        if not norms.all():
            return (1 - t) * a + t * b
        # The unit vector at the angle t omega from a towards b, in the plane of an orthonormal pair ...
        unit_a, unit_b = a / norms[0], b / norms[1]
        across = unit_b - (unit_b @ unit_a) * unit_a
        if np.linalg.norm(across) < 1e-7:
            return (1 - t) * a + t * b
        across /= np.linalg.norm(across)
        omega = math.atan2(unit_b @ across, unit_b @ unit_a)
        # ... and its coordinates along the two given directions, which are those of the lengths too.
        plane = np.array([[1, math.cos(omega)], [0, math.sin(omega)]])
        p, q = np.linalg.solve(plane, [math.cos(t * omega), math.sin(t * omega)])
        return p * a + q * b

    return oracle


@pytest.mark.parametrize("weights", [None, [0.7, 0.3], [0.5, 1.5]])
def test_slerp_is_its_formula(weights):
    residuals = random_tensors(2, torch.float64)
    vectors = flat(residuals)
    w = weights or [0.5, 0.5]
    oracle = slerp_oracle(w[1] / sum(w))
    assert_is(merge_residuals(residuals, "slerp", weights=weights), sum(w) * by_parameter(vectors, oracle))
    merged = merge_residuals(residuals, "slerp", weights=weights, granularity="global")
    assert_is(merged, sum(w) * oracle(vectors))
    sft = sft_tensors(torch.float64)
    base = flat([sft])[0]
    whole = merge_residuals(residuals, "slerp", weights=weights, sft=sft, of="weights")
    assert_is(whole, sum(w) * (by_parameter(base + vectors, oracle) - base))


def test_slerp_keeps_length_and_divides_the_angle():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.nn.functional.normalize(torch.randn(50, generator=generator).double(), dim=0) for _ in range(2))
    angle = math.acos(float(a @ b))
    merged = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.75, 0.25])["a"]
    assert merged.norm().item() == pytest.approx(1, rel=1e-12)
    assert math.acos(float(a @ merged)) == pytest.approx(angle / 4, rel=1e-10)


def test_slerp_of_almost_parallel_or_opposite_vectors_is_linear():
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for sign in (1, -1):
        b = sign * torch.tensor([1.0, 0.01], dtype=torch.float64)  # cos 0.99995
        near = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.7, 0.3])["a"]
        assert torch.allclose(near, 0.7 * a + 0.3 * b, rtol=1e-15, atol=0)
        arc = merge_residuals([{"a": a}, {"a": b}], "slerp", weights=[0.7, 0.3], dot_threshold=0.99999)["a"]
        assert not torch.allclose(arc, near, rtol=1e-9)
