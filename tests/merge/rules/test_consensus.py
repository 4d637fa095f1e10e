"""Consensus merging and TALL masks: public numbers, and the vote written down a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.merge import lines_alpha, merge_residuals, tall_masks
from tests.merge.reference import CASES, WIDTHS, assert_case, of_each_policy, task_vectors, tensors
from tests.merge.rules.oracles import (
    assert_is,
    assert_same_bits,
    flat,
    random_tensors,
    ties_oracle,
)


TALL_THRESHOLDS = [0.4, 0.2, 0.6]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_tall_masks(dtype):
    residuals = task_vectors(3, dtype)
    expected = of_each_policy(tensors("tall_masks_n3", torch.bool), 3)
    got = tall_masks(residuals, merge_residuals(residuals, "sum"), TALL_THRESHOLDS)
    for k in range(3):
        assert got[k].keys() == expected[k].keys()
        assert all(torch.equal(got[k][name], expected[k][name]) for name in expected[k])


@pytest.mark.parametrize("dtype", WIDTHS)
def test_consensus_agrees_with_the_public_code(dtype):
    residuals = task_vectors(3, dtype)
    merged = merge_residuals(residuals, "consensus", thresholds=TALL_THRESHOLDS, k=2)
    assert_case("consensus_ta_n3_k2", merged)
    alpha = CASES["consensus_ta_n3_k2"]["scalars"]["alpha"]
    assert lines_alpha(residuals, merged) == pytest.approx(alpha, rel=1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("of", ["sum", "ties"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_consensus_is_its_vote(k, of):
    residuals = random_tensors(3, torch.float64)
    lams = [0.3, 0.5, 0.8]
    vectors = np.array([[1.5], [0.6], [0.9]]) * flat(residuals)
    total = vectors.sum(axis=0)
    if of == "ties":
        total = ties_oracle(vectors, 0.2, "sum", int(0.2 * vectors.shape[1]) + 1, positive=False)
    votes = sum((np.abs(tau) > lam * np.abs(total - tau)).astype(int) for tau, lam in zip(vectors, lams, strict=True))
    got = merge_residuals(residuals, "consensus", weights=[0.5, 0.2, 0.3], thresholds=lams, k=k, of=of)
    assert_is(got, np.where(votes >= k, total, 0))


def test_consensus_of_one_is_everything_that_it_has():
    residuals = random_tensors(3)
    merged = merge_residuals(residuals, "consensus", weights=[0, 1, 0], k=1)
    assert_same_bits(merged, {name: 3 * x for name, x in residuals[1].items()})
    assert all(x.count_nonzero() == 0 for x in merge_residuals(residuals, "consensus", weights=[0, 1, 0]).values())


def test_consensus_of_two_keeps_entries_of_similar_size():
    # lam = 0.4: kept where 0.4 < |tau_1| / |tau_2| < 2.5.
    first = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0])
    second = torch.tensor([2.0, 3.0, 0.3, 2.0, -1.0])
    merged = merge_residuals([{"a": first}, {"a": second}], "consensus")["a"]
    assert merged.tolist() == [3.0, 0.0, 0.0, 1.0, 0.0]
