"""Expected utility against closed forms, and against a sum over all the corners of the envelope."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rlhf_lines.pareto import expected_utility, preferences, utilities, utility


def integral_by_corners(points):
    """Integrates ``max_i`` of straight lines exactly: a trapezoid between any two neighbouring crossings."""
    at = {0.0, 1.0}
    for (x, y), (u, v) in combinations(points, 2):
        slope = (x - y) - (u - v)
        if slope and 0.0 < (v - y) / slope < 1.0:
            at.add((v - y) / slope)
    at = sorted(at)
    height = [max(w * x + (1 - w) * y for x, y in points) for w in at]
    return sum((b - a) * (f + g) / 2 for a, b, f, g in zip(at, at[1:], height, height[1:], strict=False))


@pytest.mark.parametrize("points", [1, 2, 5, 12])
def test_two_rewards_are_integrated_exactly(points):
    values = np.random.default_rng(points).normal(size=(40, points, 2))
    # Ties of every kind: equal points, parallel lines, three lines through one point.
    values[:10] = np.random.default_rng(1).integers(0, 3, size=(10, points, 2))
    expected = [integral_by_corners(resample.tolist()) for resample in values]
    np.testing.assert_allclose(expected_utility(values), expected, rtol=1e-12, atol=1e-14)


def test_points_that_differ_by_rounding_leave_no_gap():
    generator = np.random.default_rng(0)
    values = np.tile([[[0.3, 0.7], [0.6, 0.5]]], (500, 6, 1))
    values *= 1 + 2.0**-52 * generator.integers(-3, 4, size=values.shape)
    np.testing.assert_allclose(
        expected_utility(values), integral_by_corners([[0.3, 0.7], [0.6, 0.5]]), rtol=1e-14, atol=0
    )


def test_a_quarter_circle_of_points_has_the_integral_of_its_radius():
    # max_i w . u_i tends to the length of w: integral_0^1 sqrt(w^2 + (1 - w)^2) dw = 1/2 + asinh(1) / (2 sqrt 2).
    angles = np.linspace(0.0, np.pi / 2, 2001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    expected = 0.5 + np.arcsinh(1.0) / (2 * np.sqrt(2))
    assert expected_utility(circle[None]).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("rewards", [3, 4, 5])
def test_specialists_have_the_utility_of_the_largest_weight(rewards):
    # With one point per reward the best utility is max_k w_k, whose mean over the simplex is (1 + 1/2 + .. + 1/K) / K.
    expected = sum(1 / k for k in range(1, rewards + 1)) / rewards
    assert expected_utility(np.eye(rewards)[None]).tolist() == pytest.approx([expected], abs=2e-3)


@pytest.mark.parametrize("rewards", [1, 3, 4])
def test_more_rewards_are_a_mean_over_the_preferences(rewards):
    values = np.random.default_rng(0).normal(size=(3, 7, rewards))
    weights = preferences(rewards).tolist()
    for r in range(3):
        best = [max(sum(a * b for a, b in zip(w, u, strict=True)) for u in values[r].tolist()) for w in weights]
        assert expected_utility(values)[r] == pytest.approx(sum(best) / len(best), rel=1e-12)


def test_many_resamples_are_those_of_one_at_a_time(monkeypatch):
    values = np.random.default_rng(0).normal(size=(9, 4, 3))
    whole = expected_utility(values)
    monkeypatch.setattr(utility, "CHUNK", 4 * 1024 * 2)
    np.testing.assert_allclose(expected_utility(values), whole, rtol=1e-14)


@pytest.mark.parametrize("rewards", [2, 3, 4])
def test_preferences_are_uniform_on_the_simplex(rewards):
    weights = preferences(rewards)
    assert weights.shape == (1024, rewards) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    # Moments of Dirichlet(1, .., 1): mean 1/K, E[w_i w_j] = (1 + [i = j]) / (K (K + 1)), P(w_i > t) = (1 - t)^(K - 1).
    np.testing.assert_allclose(weights.mean(axis=0), 1 / rewards, atol=2e-3)
    second = (1 + np.eye(rewards)) / (rewards * (rewards + 1))
    np.testing.assert_allclose(weights.T @ weights / 1024, second, atol=2e-3)
    for t in (0.1, 0.3, 0.6):
        np.testing.assert_allclose((weights > t).mean(axis=0), (1 - t) ** (rewards - 1), atol=1e-2)


def test_the_sequence_is_that_of_halton():
    # Base 2: 1/2, 1/4, 3/4, 1/8; base 3: 1/3, 2/3, 1/9, 4/9. Sorted, then the gaps.
    expected = [[1 / 3, 1 / 6, 1 / 2], [1 / 4, 5 / 12, 1 / 3], [1 / 9, 23 / 36, 1 / 4], [1 / 8, 23 / 72, 5 / 9]]
    np.testing.assert_allclose(preferences(3, 4), expected, rtol=1e-14)


def test_utilities_do_not_see_units():
    scores = np.random.default_rng(0).normal(size=(6, 3))
    reference, ideal = scores.min(axis=0) - 0.1, scores.max(axis=0)
    units, shift = np.array([1e-6, 1.0, 1e6]), np.array([5.0, -3.0, 1e6])
    before = utilities(scores, reference, ideal)
    after = utilities(scores * units + shift, reference * units + shift, ideal * units + shift)
    np.testing.assert_allclose(after, before, rtol=1e-8)
    assert before.max() == 1.0 and before.min() > 0.0


def test_a_reward_without_range_has_no_utility():
    # A range that rounding made is none: resampled scores would otherwise become utilities of 1e15.
    assert utilities([[3.0, 9.0], [5.0, 4.0]], [1.0, 7.0], [5.0, 7.0 + 1e-15]).tolist() == [[0.5, 0.0], [1.0, 0.0]]


def test_other_shapes_are_refused():
    for shape in ((3, 2), (0, 3, 2), (2, 0, 2)):
        with pytest.raises(ValueError, match="expected \\[resamples, points, rewards\\]"):
            expected_utility(np.zeros(shape))
