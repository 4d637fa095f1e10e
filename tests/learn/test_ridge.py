"""Ridge regression: its coefficients, and what it predicts for rows that are left out, by fits without them."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.learn.ridge import PENALTIES, fit_ridge


def drawn(signal: float) -> tuple[np.ndarray, np.ndarray]:
    """Twelve rows of 20 features, one of them constant, and 3 targets that follow them so much."""
    numbers = np.random.default_rng(1)
    features = numbers.normal(size=(12, 20)) * np.exp(numbers.normal(size=20)) + 3.0
    features[:, 7] = -2.0
    targets = signal * features[:, :3] @ numbers.normal(size=(3, 3)) + numbers.normal(size=(12, 3)) + 5.0
    return features, targets


def by_normal_equations(features, targets, rows, penalty) -> tuple[np.ndarray, np.ndarray]:
    """Bias and coefficients of a fit to some rows, features scaled as all rows have it."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    used = std > 0
    Z = (features[:, used] - mean[used]) / std[used]
    unit = np.mean(np.square(Z).sum(axis=1))
    design = np.column_stack([np.ones(len(rows)), Z[rows]])
    ridge = np.diag([0.0] + [penalty * unit] * Z.shape[1])
    solved = np.linalg.solve(design.T @ design + ridge, design.T @ targets[rows])
    coefficients = np.zeros((features.shape[1], targets.shape[1]))
    coefficients[used] = solved[1:] / std[used][:, None]
    return solved[0] - mean @ coefficients, coefficients


@pytest.mark.parametrize("signal", [3.0, 0.3])
def test_left_out_rows_are_predicted_by_fits_to_the_others(signal):
    features, targets = drawn(signal)
    fit = fit_ridge(features, targets)
    rows, errors, predicted = np.arange(12), {}, {}
    for penalty in PENALTIES[:-1]:
        fits = [by_normal_equations(features, targets, rows[rows != i], penalty) for i in rows]
        predicted[penalty] = np.stack([bias + features[i] @ of for i, (bias, of) in enumerate(fits)])
        errors[penalty] = np.square(predicted[penalty] - targets).sum()
    assert fit.penalty == min(errors, key=errors.get)
    np.testing.assert_allclose(fit.left_out, predicted[fit.penalty], rtol=1e-9)
    bias, coefficients = by_normal_equations(features, targets, rows, fit.penalty)
    np.testing.assert_allclose(fit.coefficients, coefficients, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fit.bias, bias, rtol=1e-9)


def test_targets_that_follow_nothing_get_their_mean():
    features, targets = drawn(0.0)
    fit = fit_ridge(features, np.where(np.arange(12)[:, None] % 2, 1.0, -1.0) * np.ones(3))
    others = np.where(np.arange(12) % 2, -1.0, 1.0) / 11
    assert fit.penalty == np.inf and not fit.coefficients.any()
    np.testing.assert_allclose(fit.left_out, others[:, None] * np.ones(3), atol=1e-12)
    same = fit_ridge(np.ones((4, 2)), targets[:4])
    np.testing.assert_allclose(same.bias, targets[:4].mean(axis=0))
    assert not same.coefficients.any()
