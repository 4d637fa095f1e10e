"""Which weights and which specs a sweep measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import SCHEDULES, lines_scales
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.groups import (
    dirichlet,
    one_hot,
    reversed_ablation,
    scaled,
    simplex,
    uniform_ablation,
    with_single_policies,
)


# --- weights ---


@pytest.mark.parametrize(("policies", "weights"), [(2, 2), (2, 11), (2, 8), (3, 2), (3, 5), (3, 11), (4, 4)])
def test_simplex(policies, weights):
    grid = simplex(policies, weights)
    # So many ways to put n - 1 steps into K boxes.
    assert len(grid) == len(set(grid)) == math.comb(weights - 1 + policies - 1, policies - 1)
    for row in grid:
        assert len(row) == policies and min(row) >= 0
        assert sum(row) == pytest.approx(1.0, abs=1e-12)
        assert all(w * (weights - 1) == pytest.approx(round(w * (weights - 1)), abs=1e-12) for w in row)
    assert grid == sorted(grid, reverse=True)
    assert grid[0] == (1.0, *[0.0] * (policies - 1)) and grid[-1] == (*[0.0] * (policies - 1), 1.0)


def test_simplex_of_three_by_hand():
    assert simplex(3, 3) == [
        (1.0, 0.0, 0.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.0, 0.5),
        (0.0, 1.0, 0.0),
        (0.0, 0.5, 0.5),
        (0.0, 0.0, 1.0),
    ]


@pytest.mark.parametrize("policies", [1, 2, 5])
def test_one_hot(policies):
    assert np.array_equal(one_hot(policies), np.eye(policies))


@pytest.mark.parametrize("policies", [2, 3, 4])
def test_dirichlet_weights_are_on_the_simplex_and_begin_with_the_single_policies(policies):
    rows = dirichlet(policies, 50, seed=3)
    assert rows[:policies] == one_hot(policies)
    drawn = np.array(rows[policies:])
    assert drawn.shape == (50, policies) and len(set(rows)) == 50 + policies
    assert drawn.min() > 0
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0, atol=1e-12)
    assert all(type(weight) is float for row in rows for weight in row)


def test_dirichlet_is_uniform_on_the_simplex():
    """Dirichlet(1, .., 1): means 1/K, variances (K - 1) / (K^2 (K + 1)), and P(w_1 > t) = (1 - t)^(K - 1)."""
    count, rows = 3, np.array(dirichlet(3, 20_000, seed=0)[3:])
    variance = (count - 1) / (count**2 * (count + 1))
    error = 5 * math.sqrt(variance / len(rows))
    np.testing.assert_allclose(rows.mean(axis=0), 1 / 3, atol=error)
    np.testing.assert_allclose(rows.var(axis=0), variance, rtol=0.05)
    for t in (0.2, 0.5, 0.8):
        np.testing.assert_allclose((rows > t).mean(axis=0), (1 - t) ** 2, atol=0.02)


def test_dirichlet_is_a_function_of_its_seed():
    assert dirichlet(3, 7, seed=5) == dirichlet(3, 7, seed=5)
    assert dirichlet(3, 7, seed=5)[3:] != dirichlet(3, 7, seed=6)[3:]
    assert dirichlet(3, 4, seed=5) == dirichlet(3, 7, seed=5)[:7]  # more weights keep the first ones


def test_single_policies_that_are_missing_come_first():
    middle = (0.3, 0.7)
    assert with_single_policies([middle]) == [(1.0, 0.0), (0.0, 1.0), middle]
    assert with_single_policies([middle, (0.0, 1.0)]) == [(1.0, 0.0), middle, (0.0, 1.0)]
    assert with_single_policies([(0.0, 1.0), (1.0, 0.0)]) == [(0.0, 1.0), (1.0, 0.0)]


# --- specs ---


def test_scaled_is_the_soup_with_lines():
    make = scaled(Scaling(0.4, 1.2, "sqrt"))
    assert make((0.1, 0.9)) == MergeSpec("linear", (0.1, 0.9), 0.4, 1.2, "sqrt")


def mean_factor(layers: int, alpha: float, beta: float, schedule: str) -> float:
    """The mean of LiNeS' factors over the layers, written out."""
    shapes = {"linear": lambda d: d, "sqrt": math.sqrt, "quadratic": lambda d: d * d}
    total = 0.0
    for layer in range(layers):
        depth = layer / (layers - 1) if layers > 1 else 0.0
        total += alpha + (beta * shapes[schedule](depth) if layers > 1 else 0.0)
    return total / layers


@pytest.mark.parametrize("layers", [1, 2, 4, 32])
@pytest.mark.parametrize(
    ("alpha", "beta", "schedule"),
    [(0.5, 1.0, "linear"), (1.3, -0.7, "sqrt"), (0.0, 2.0, "quadratic"), (0.25, 0.0, "sqrt")],
)
def test_the_uniform_ablation_has_the_mean_factor_in_every_layer(layers, alpha, beta, schedule):
    spec = MergeSpec("linear", (0.2, 0.8), alpha, beta, schedule)
    ablation = uniform_ablation(spec, layers)
    assert (ablation.rule, ablation.weights, ablation.beta) == ("linear", (0.2, 0.8), 0.0)
    assert ablation.alpha == pytest.approx(mean_factor(layers, alpha, beta, schedule), rel=1e-14, abs=1e-15)
    factors = lines_scales(layers, ablation.alpha, ablation.beta, ablation.schedule)
    assert torch.equal(factors, torch.full((layers,), ablation.alpha, dtype=torch.float64))


def test_ablations_keep_rule_and_options():
    spec = MergeSpec("ties", (0.2, 0.8), 0.5, 1.0, "sqrt", {"density": 0.3})
    for ablation in (uniform_ablation(spec, 4), reversed_ablation(spec)):
        assert (ablation.rule, ablation.weights, ablation.options) == ("ties", (0.2, 0.8), {"density": 0.3})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("layers", [2, 3, 8, 32])
def test_the_reversed_ablation_has_the_factors_upside_down(schedule, layers):
    spec = MergeSpec("linear", (0.2, 0.8), 0.3, 1.7, schedule)
    ablation = reversed_ablation(spec)
    own = lines_scales(layers, spec.alpha, spec.beta, spec.schedule)
    turned = lines_scales(layers, ablation.alpha, ablation.beta, ablation.schedule)
    # 1 - (l - 1) / (L - 1) and (L - l) / (L - 1) are one number, rounded once or twice.
    torch.testing.assert_close(turned, own.flip(0), rtol=0, atol=1e-15)
    assert turned[0] == own[-1] and turned[-1] == own[0]
    assert not torch.allclose(turned, own)
    assert reversed_ablation(ablation) == spec
    assert SCHEDULES[ablation.schedule].falls != SCHEDULES[schedule].falls
