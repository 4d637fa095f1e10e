"""Hypervolume at equal KL against an integral over budgets, slice by slice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.equal_kl import equal_kl_hypervolumes, with_neighbours_joined


def union_of_boxes(rows, reference):
    """The volume of a union of boxes in any number of dimensions, by inclusion and exclusion."""
    total = 0.0
    for size in range(1, len(rows) + 1):
        for chosen in itertools.combinations(rows, size):
            sides = np.min(chosen, axis=0) - reference
            total -= (-1) ** size * np.prod(np.maximum(sides, 0.0))
    return total


def mean_over_budgets(rows, budget, reference):
    """The hypervolume of the rows whose KL is within k, integrated over k from 0 to the budget; constant in between."""
    costs = [max(0.0, kl) for *_, kl in rows]
    steps = sorted({0.0, budget, *(kl for kl in costs if kl < budget)})
    total = 0.0
    for low, high in itertools.pairwise(steps):
        offered = [row[:-1] for row, kl in zip(rows, costs, strict=True) if kl <= low]
        total += (high - low) * union_of_boxes(offered, reference)
    return total / budget


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_budgets(objectives, seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(4, 7, objectives + 1))
    values[..., -1] = generator.gamma(1.0, size=(4, 7)) - 0.3  # an estimated KL can lie below 0
    reference = generator.normal(size=objectives) - 1.0
    for budget in (0.5, 2.0, 9.0):
        expected = [mean_over_budgets(rows.tolist(), budget, reference) for rows in values]
        np.testing.assert_allclose(equal_kl_hypervolumes(values, budget, reference), expected, rtol=1e-10)


def test_neighbours_are_joined_in_eight_steps_in_the_order_of_their_weights():
    values = np.random.default_rng(0).normal(size=(4, 3, 3))
    weights = [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.7, 0.3)]
    joined = with_neighbours_joined(values, weights)
    expected = []
    for a, b in ((1, 0), (0, 3), (3, 2)):
        for step in range(8):
            expected.append((1 - step / 8) * values[a] + step / 8 * values[b])
    expected.append(values[2])
    np.testing.assert_allclose(joined, np.stack(expected), rtol=1e-14)


def test_three_weights_on_no_line_stay_as_they_are():
    values = np.random.default_rng(0).normal(size=(3, 3, 3))
    np.testing.assert_array_equal(with_neighbours_joined(values, [(1.0, 0.0), (0.2, 0.3), (0.7, 0.7)]), values)


@pytest.mark.parametrize("weights", [[(0.0, 0.5), (0.0, 0.0), (0.0, 1.0)], [(0.5,), (0.0,), (1.0,)]])
def test_the_steps_of_one_policy_are_joined(weights):
    joined = with_neighbours_joined([[5.0, 0.5], [0.0, 0.0], [6.0, 1.0]], weights)
    expected = [*np.linspace([0.0, 0.0], [5.0, 0.5], 9)[:-1], *np.linspace([5.0, 0.5], [6.0, 1.0], 9)]
    np.testing.assert_allclose(joined, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "weights",
    [
        [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)],  # three policies
        [(1.0,), (0.5, 0.5)],
        [(1.0, 0.0), (1.0, 0.0)],  # two scalings of one mixture
    ],
)
def test_points_without_two_neighbours_stay_as_they_are(weights):
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_array_equal(with_neighbours_joined(values, weights), values)


@pytest.fixture
def measured(make_points):
    """Points with KL, the soup's smaller than that of LiNeS."""
    generator = np.random.default_rng(1)
    points = make_points()
    for point in points:
        length = {"sft": 0.0, "rewarded_soup": 1.0, "lines": 2.5}[point["group"]]
        point["kl"] = length * generator.gamma(2.0, size=40)
    return points


def test_a_comparison_at_equal_kl_is_worked_out_from_prompts(measured):
    front = build_front(rewards=["a", "b"], split="test", seed=7, points=measured, resamples=30)
    (comparison,) = front["comparisons"]
    columns = np.stack([np.column_stack([point["scores"], point["kl"]]) for point in measured])
    means = columns.mean(axis=1)
    budget = means[1:6, 2].max()
    assert budget < means[6:, 2].max()  # the smaller of the two
    assert comparison["kl_budget"] == pytest.approx(budget, rel=1e-14)

    def by_hand(prompts):
        means, found = columns[:, prompts].mean(axis=1), {}
        for group, rows in (("lines", range(6, 11)), ("rewarded_soup", range(1, 6))):
            joined = [means[rows[-1]]]  # the fixture's weights ascend
            for a, b in itertools.pairwise(rows):
                joined += [(1 - step / 8) * means[a] + step / 8 * means[b] for step in range(8)]
            found[group] = sliced([*joined, [*means[0, :2], 0.0]], budget, front["reference_point"])
        return found["lines"], found["rewarded_soup"]

    a, b = by_hand(np.arange(40))
    assert comparison["equal_kl_hypervolumes"] == pytest.approx([a, b], rel=1e-12)
    generator = np.random.Generator(np.random.PCG64(7))
    samples = [np.subtract(*by_hand(generator.integers(40, size=40))) for _ in range(30)]
    low, high = np.quantile(samples, [0.025, 0.975])
    p_value = min(1.0, 2 * (1 + min(np.sum(np.less_equal(samples, 0)), np.sum(np.greater_equal(samples, 0)))) / 31)
    assert comparison["equal_kl_difference"] == pytest.approx(
        {
            **{"value": a - b, "low": low, "high": high, "probability_positive": np.mean(np.greater(samples, 0))},
            **{"p_value": p_value, "adjusted_p_value": p_value},
        },
        rel=1e-10,
    )


def sliced(rows, budget, reference):
    """The mean over budgets of the area of two objectives, by rectangles under each staircase."""
    steps = sorted({0.0, budget, *(row[2] for row in rows if row[2] < budget)})
    total = 0.0
    for low, high in itertools.pairwise(steps):
        area, floor = 0.0, reference[1]
        for x, y, kl in sorted(map(tuple, rows), reverse=True):
            if kl <= low and x > reference[0] and y > floor:
                area += (x - reference[0]) * (y - floor)
                floor = y
        total += (high - low) * area
    return total / budget


def test_without_the_kl_of_a_point_of_either_group_there_is_nothing_to_compare(measured):
    for i in (1, 7):
        points = [{**point, "kl": None} if point["id"] == i else point for point in measured]
        front = build_front(rewards=["a", "b"], split="test", seed=7, points=points, resamples=10)
        (comparison,) = front["comparisons"]
        assert [comparison[key] for key in ("equal_kl_difference", "kl_budget", "equal_kl_hypervolumes")] == [None] * 3
    # That of the SFT model is known.
    points = [{**measured[0], "kl": None}, *measured[1:]]
    fronts = [build_front(rewards=["a", "b"], split="test", seed=7, points=p, resamples=10) for p in (points, measured)]
    assert fronts[0]["comparisons"] == fronts[1]["comparisons"]


def test_policies_that_did_not_move_have_no_budget(measured):
    for point in measured:
        point["kl"] = np.zeros(40)
    front = build_front(rewards=["a", "b"], split="test", seed=7, points=measured, resamples=10)
    assert front["comparisons"][0]["equal_kl_difference"] is None
