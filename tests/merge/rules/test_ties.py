"""TIES: public numbers, and the formula written down a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.merge import apply_lines, lines_alpha, lines_scales, merge_residuals
from tests.merge.reference import CASES, NUM_LAYERS, WIDTHS, assert_case, plus_base, task_vectors
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


@pytest.mark.parametrize("dtype", WIDTHS)
def test_with_factors_by_layer_it_is_the_authors_sum_and_their_lines_on_it(dtype):
    ones = {"factors": [[1.0] * NUM_LAYERS] * 3, "outside": [1.0] * 3}
    assert_case("ties_sum_n3_k20", merge_residuals(task_vectors(3, dtype), "ties_layerwise", **ones))
    alpha = CASES["lines_merged_ties_sum_n2_b0.5"]["scalars"]["alpha"]
    scales = [lines_scales(NUM_LAYERS, alpha, 0.5).tolist()] * 2
    merged = merge_residuals(task_vectors(2, dtype), "ties_layerwise", factors=scales, outside=[alpha] * 2)
    assert_case("lines_merged_ties_sum_n2_b0.5", merged)


def test_factors_by_layer_multiply_what_is_elected_without_them():
    """Against numpy: the election is of the residuals as they are, weights and factors come after it."""
    generator = torch.Generator().manual_seed(5)
    names = ["model.layers.0.a.weight", "model.layers.1.a.weight", "model.norm.weight"]
    taus = [{name: torch.randn(4, 5, generator=generator, dtype=torch.float64) for name in names} for _ in range(2)]
    flat = np.stack([np.concatenate([tau[name].numpy().ravel() for name in names]) for tau in taus])
    kept = int(0.3 * flat.shape[1]) + 1
    smallest = np.sort(np.abs(flat), axis=1)[:, -kept][:, None]
    trimmed = np.where(np.abs(flat) >= smallest, flat, 0.0)
    sign = np.sign(trimmed.sum(axis=0))
    sign[sign == 0] = np.sign(sign.sum())
    elected = np.where(trimmed * sign > 0, trimmed, 0.0).reshape(2, 3, 4, 5)
    options = {"factors": [[0.5, -1.0], [2.0, 0.25]], "outside": [3.0, 0.0]}
    merged = merge_residuals(taus, "ties_layerwise", weights=(0.2, 0.8), density=0.3, **options)
    for place, (name, c) in enumerate(zip(names, ((0.5, 2.0), (-1.0, 0.25), (3.0, 0.0)), strict=True)):
        expected = 0.4 * c[0] * elected[0, place] + 1.6 * c[1] * elected[1, place]
        np.testing.assert_allclose(merged[name], expected, rtol=1e-14, atol=1e-15)


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
