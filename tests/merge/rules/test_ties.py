"""TIES: public numbers, and the formula written down a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.merge import apply_lines, lines_alpha, merge_residuals
from tests.merge.reference import CASES, WIDTHS, assert_case, plus_base, task_vectors
from tests.merge.rules.oracles import (
    assert_is,
    by_parameter,
    flat,
    random_tensors,
    ties_oracle,
)


MERGEKIT_TIES = {"granularity": "tensor", "zero_sign": "positive"}


@pytest.mark.parametrize("dtype", WIDTHS)
def test_ties_agrees_with_the_public_codes(dtype):
    residuals = task_vectors(3, dtype)
    summed = merge_residuals(residuals, "ties", density=0.2, reduction="sum")
    assert_case("ties_mean_n3_k20", merge_residuals(residuals, "ties", density=0.2))
    assert_case("ties_sum_n3_k20", summed)
    assert_case("ties_sum_n3_k20_theta_lam0.7", plus_base(apply_lines(summed, 0.7, 0.0)))
    assert_case("mergekit_ties_n3_d0.2", plus_base(merge_residuals(residuals, "ties", density=0.2, **MERGEKIT_TIES)))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_ties_keeps_as_many_entries(dtype):
    kept = [merge_residuals([residual], "ties", density=0.2) for residual in task_vectors(3, dtype)]
    counts = [sum(tensor.count_nonzero().item() for tensor in merged.values()) for merged in kept]
    assert counts == CASES["ties_trim_counts"]["scalars"]["kept_per_model"]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_ties(dtype):
    residuals = task_vectors(2, dtype)
    merged = merge_residuals(residuals, "ties", density=0.2, reduction="sum")
    alpha = lines_alpha(residuals, merged)
    assert alpha == pytest.approx(CASES["lines_merged_ties_sum_n2_b0.5"]["scalars"]["alpha"], rel=1e-6)
    assert_case("lines_merged_ties_sum_n2_b0.5", apply_lines(merged, alpha, 0.5))


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_ties_is_its_formula(reduction):
    residuals = random_tensors(3, torch.float64)
    factors = np.array([[1.5], [0.6], [0.9]])
    vectors = factors * flat(residuals)
    size = vectors.shape[1]
    got = merge_residuals(residuals, "ties", weights=[0.5, 0.2, 0.3], density=0.3, reduction=reduction)
    assert_is(got, ties_oracle(vectors, 0.3, reduction, int(0.3 * size) + 1, positive=False))
    options = {"granularity": "tensor", "zero_sign": "positive"}
    got = merge_residuals(residuals, "ties", weights=[0.5, 0.2, 0.3], density=0.3, reduction=reduction, **options)

    def oracle(part: np.ndarray) -> np.ndarray:
        return ties_oracle(part, 0.3, reduction, max(int(0.3 * part.shape[1]), 1), positive=True)

    assert_is(got, by_parameter(vectors, oracle))
