"""WIDEN: public numbers, and its formula one column at a time."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors
from tests.merge.rules.one_layer import (
    EMBEDDING,
    LINEAR,
    UP,
    WEIGHTS,
    Q,
    assert_equal,
    randn,
)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_widen_agrees_with_the_public_code(dtype):
    merged = merge_residuals(task_vectors(3, dtype), "widen", sft=tensors("model_base", dtype))
    assert_case("widen_n3_r1_c1", plus_base(merged))


def change(before: torch.Tensor, tau: torch.Tensor) -> tuple[Decimal, Decimal]:
    """m and d of one column by their definitions, with 60 digits: they are differences of nearly equal numbers."""
    with localcontext(prec=60):
        before = [Decimal(value) for value in before.tolist()]
        after = [value + Decimal(moved) for value, moved in zip(before, tau.tolist(), strict=True)]

        def inner(left, right):
            return sum(a * b for a, b in zip(left, right, strict=True))

        sizes = inner(before, before).sqrt(), inner(after, after).sqrt()
        return abs(sizes[0] - sizes[1]), 1 - inner(before, after) / (sizes[0] * sizes[1])


def widen_by_columns(residuals, sft, ratio: float, calibration: float):
    """The formula, one column at a time."""
    count, merged = len(residuals), {}

    def scored(values):
        scores = torch.tensor(values, dtype=torch.float64).softmax(0)
        means = [sum(row) / len(row) for row in values]
        for k, row in enumerate(values):
            for i, value in enumerate(row):
                if value > ratio * means[k] * (1 + 1e-12):  # the middle rank is the mean
                    scores[k, i] = calibration
        return scores

    def ranked(row):
        order = sorted(range(len(row)), key=lambda i: row[i])
        return [order.index(i) / len(row) for i in range(len(row))]

    for name, base in sft.items():
        taus = [residual[name] for residual in residuals]
        if base.ndim == 1:
            scores = scored([tau.abs().tolist() for tau in taus])
            merged[name] = sum(scores[k] * taus[k] for k in range(count))
            continue
        if name == EMBEDDING:
            base, taus = base.T, [tau.T for tau in taus]
        magnitudes, directions = [], []
        for tau in taus:
            columns = [change(base[:, i], tau[:, i]) for i in range(base.shape[1])]
            magnitudes.append(ranked([magnitude for magnitude, _ in columns]))
            directions.append(ranked([direction for _, direction in columns]))
        scores = (scored(magnitudes) + scored(directions)) / 2
        merged[name] = sum(scores[k] * taus[k] for k in range(count))
        if name == EMBEDDING:
            merged[name] = merged[name].T.contiguous()
    return merged


@pytest.mark.parametrize("scale", [3.0, 0.3, 1e-14])  # columns turned beyond a right angle, and hardly at all
@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (0.6, 0.5), (1.5, 2.0)])
def test_widen_is_its_formula(ratio, calibration, scale):
    residuals, sft = [randn(k, scale) for k in range(3)], randn(7)
    residuals[1][Q][:, 2] = -2 * sft[Q][:, 2]  # turned round
    merged = merge_residuals(residuals, "widen", sft=sft, ratio=ratio, calibration=calibration)
    assert_equal(merged, widen_by_columns(residuals, sft, ratio, calibration), atol=1e-13 * scale)
    weights = [0.5, 0.2, 0.3]
    scaled = [{name: 3 * w * tau for name, tau in r.items()} for w, r in zip(weights, residuals, strict=True)]
    merged = merge_residuals(residuals, "widen", weights=weights, sft=sft, ratio=ratio, calibration=calibration)
    assert_equal(merged, widen_by_columns(scaled, sft, ratio, calibration), atol=1e-13 * scale)


def test_widen_ranks_small_residuals_in_float32():
    """With residuals of 1e-5 of the weights, d is of order 1e-10: the cosine of two float32 columns is rounding."""
    residuals, sft = [randn(k, 1e-5) for k in range(3)], randn(7)
    narrow = [{name: tensor.float() for name, tensor in tau.items()} for tau in (*residuals, sft)]
    merged = merge_residuals(narrow[:3], "widen", sft=narrow[3])
    expected = widen_by_columns(
        [{name: tensor.double() for name, tensor in tau.items()} for tau in narrow[:3]],
        {name: tensor.double() for name, tensor in narrow[3].items()},
        1.0,
        1.0,
    )
    assert_equal({name: tensor.double() for name, tensor in merged.items()}, expected, rtol=1e-5, atol=1e-12)


def test_widen_counts_columns_that_vanish_or_appear_as_turned_by_a_right_angle():
    sft, residuals = randn(7), [randn(0, 1e-3), randn(1, 1e-3)]
    sft[Q][:, 0] = 0
    residuals[0][Q][:, 0] *= 1e-3  # appears: d = 1, m is small
    residuals[1][Q][:, 0] = 0  # neither before nor after: d = m = 0
    residuals[0][Q][:, 1] = -2 * sft[Q][:, 1]  # turned round: d = 2, m = 0
    residuals[0][UP][:, 1] = -sft[UP][:, 1]  # vanishes
    merged = merge_residuals(residuals, "widen", sft=sft, ratio=1.9)  # only the last of five columns is above
    assert all(tensor.isfinite().all() for tensor in merged.values())
    # Second of five in m and fourth in d, against the first in both.
    score = sum(math.exp(position / 5) / (math.exp(position / 5) + 1) for position in (1, 3)) / 2
    torch.testing.assert_close(merged[Q][:, 0], score * residuals[0][Q][:, 0], rtol=1e-12, atol=0)


def test_widen_needs_the_sft_model():
    with pytest.raises(ValueError, match=r"rule 'widen' compares the columns of .* give the SFT model's tensors"):
        merge_residuals([randn(0), randn(1)], "widen")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": -1}, "ratio is -1, expected a number at least 0"),
        ({"calibration": 1e39}, r"calibration is 1e\+39, expected a number at least 0 that float32 holds"),
        ({"calibration": "1"}, "calibration is '1', expected a number at least 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([randn(0), randn(1)], "widen", sft=randn(2), **options)


def test_widen_is_homogeneous_in_residuals_and_base_together():
    residuals, sft = [randn(k, 0.1) for k in range(3)], randn(7)
    twice = [{name: 2 * tensor for name, tensor in tensors.items()} for tensors in (*residuals, sft)]
    options = {"weights": WEIGHTS, "ratio": 1.1, "calibration": 0.8}
    merged = merge_residuals(residuals, "widen", sft=sft, **options)
    of_both = merge_residuals(twice[:3], "widen", sft=twice[3], **options)
    for name in [*LINEAR, EMBEDDING]:  # vectors are scored by their size itself
        assert torch.equal(of_both[name], 2 * merged[name])
