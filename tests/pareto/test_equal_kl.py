"""Hypervolume at equal KL against an integral over budgets, slice by slice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import build_front, correct
from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.corrected import DRAWN, resampled_noise
from rlhf_lines.pareto.equal_kl import (
    EqualKL,
    common_budgets,
    equal_kl_hypervolumes,
    noise_over_own_budgets,
    offers,
    with_neighbours_joined,
)


def union_of_boxes(rows, reference):
    """The volume of a union of boxes in any number of dimensions, by inclusion and exclusion."""
    total = 0.0
    for size in range(1, len(rows) + 1):
        for chosen in itertools.combinations(rows, size):
            sides = np.min(chosen, axis=0) - reference
            total -= (-1) ** size * np.prod(np.maximum(sides, 0.0))
    return total


def mean_over_budgets(rows, least, most, reference):
    """The hypervolume of the rows whose KL is within k, integrated over budgets k; constant in between."""
    costs = [max(least, kl) for *_, kl in rows]
    steps = sorted({least, most, *(kl for kl in costs if kl < most)})
    total = 0.0
    for low, high in itertools.pairwise(steps):
        offered = [row[:-1] for row, kl in zip(rows, costs, strict=True) if kl <= low]
        total += (high - low) * union_of_boxes(offered, reference)
    return total / (most - least)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_budgets(objectives, seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(4, 7, objectives + 1))
    values[..., -1] = generator.gamma(1.0, size=(4, 7)) - 0.3  # an estimated KL can lie below 0
    reference = generator.normal(size=objectives) - 1.0
    for budgets in ((0.0, 0.5), (0.0, 2.0), (0.7, 9.0), (0.3, 0.4)):
        expected = [mean_over_budgets(rows.tolist(), *budgets, reference) for rows in values]
        np.testing.assert_allclose(equal_kl_hypervolumes(values, budgets, reference), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objectives", [1, 2])
def test_as_a_measure_it_is_the_mean_over_budgets(objectives):
    generator = np.random.default_rng(objectives)
    means = generator.normal(size=(6, 7, objectives + 1))
    means[..., -1] = 0.3 - generator.gamma(1.0, size=(6, 7))  # minus the KL
    reference = generator.normal(size=objectives) - 1.0
    measure = EqualKL.between(0.2, 0.8, reference)
    rows = [[[*scores, -cost] for *scores, cost in each] for each in means.tolist()]
    expected = [mean_over_budgets(each, 0.2, 0.8, reference) for each in rows]
    np.testing.assert_allclose(measure.values(means), expected, rtol=1e-10)
    assert measure.value(means[2]) == pytest.approx(expected[2], rel=1e-10) and measure.budgets == (0.2, 0.8)


def test_a_group_at_equal_kl_against_itself_is_no_difference():
    generator = np.random.default_rng(4)
    scores = generator.normal([2.0, 2.0, -1.0], 1.0, size=(5, 60, 3))
    measure = EqualKL.between(0.5, 1.5, [0.0, 0.0])
    for other in (scores, scores[::-1]):
        found = correct(scores, measure, 3) - correct(other, measure, 3)
        assert (found.value, *found.estimate()) == (0.0, 0.0, 0.0, 0.0, 1.0)


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
    """Points with KL, the soup's smaller than that of LiNeS, and less in the middle than at the ends."""
    generator = np.random.default_rng(1)
    points = make_points()
    for point in points:
        length = {"sft": 0.0, "rewarded_soup": 1.0, "lines": 1.5}[point["group"]]
        point["kl"] = length * (1.0 + ((point["id"] - 1) % 5 - 2) ** 2 / 2) * generator.gamma(8.0, 0.25, size=40)
    return points


def test_a_comparison_at_equal_kl_is_worked_out_from_prompts(measured):
    front = build_front(rewards=["a", "b"], split="test", seed=7, points=measured, resamples=30)
    (comparison,) = front["comparisons"]
    columns = np.stack([np.column_stack([point["scores"], point["kl"]]) for point in measured])
    means = columns.mean(axis=1)
    least, most = means[6:, 2].min(), means[1:6, 2].max()
    assert means[1:6, 2].min() < least < most < means[6:, 2].max()
    assert comparison["kl_budgets"] == pytest.approx([least, most], rel=1e-14)

    def by_hand():
        found = {}
        for group, rows in (("lines", range(6, 11)), ("rewarded_soup", range(1, 6))):
            joined = [means[rows[-1]]]  # the fixture's weights ascend
            for a, b in itertools.pairwise(rows):
                joined += [(1 - step / 8) * means[a] + step / 8 * means[b] for step in range(8)]
            found[group] = sliced([*joined, [*means[0, :2], 0.0]], least, most, front["reference_point"])
        return found["lines"], found["rewarded_soup"]

    a, b = by_hand()
    found, t = {}, stats.t.ppf(0.975, 39)
    for group, rows in (("lines", range(6, 11)), ("rewarded_soup", range(1, 6))):
        own = columns[rows] * [1.0, 1.0, -1.0]
        joined = [
            (1 - step / 8) * one + step / 8 * other for one, other in itertools.pairwise(own) for step in range(8)
        ]
        sft = columns[0] * [1.0, 1.0, 0.0]
        found[group] = np.stack([*joined, own[-1], sft])
    spent = [[columns[row, :, 2] for row in rows] for rows in (range(6, 11), range(1, 6))]
    noise = noise_over_own_budgets([*found.values()], spent, [bootstrap_counts(40, DRAWN, 7)] * 2)
    measure = EqualKL.between(least, most, front["reference_point"])
    found = {group: correct(found[group], measure, noise=drawn) for group, drawn in zip(found, noise, strict=True)}
    assert [one.value for one in found.values()] == pytest.approx([a, b], rel=1e-12)
    one, other = found["lines"], found["rewarded_soup"]
    assert comparison["equal_kl_hypervolumes"] == pytest.approx([one.corrected, other.corrected], rel=1e-10)
    corrected, error = one.corrected - other.corrected, (one - other).standard_error
    p_value = 2 * stats.t.sf(abs(corrected) / error, 39)
    difference = {**comparison["equal_kl_difference"]}
    assert difference.pop("probability_positive") == ((one - other).resampled + corrected > 0).mean()
    assert difference == pytest.approx(
        {
            **{"value": a - b, "corrected": corrected, "low": corrected - t * error, "high": corrected + t * error},
            **{"p_value": p_value, "adjusted_p_value": p_value},
        },
        rel=1e-8,
    )


def test_a_resample_is_measured_over_its_own_budgets(measured):
    """The measured budgets of values with noise give what the resample's own budgets give of what was drawn."""
    scores, kl = (np.array([point[key] for point in measured]) for key in ("scores", "kl"))
    reference, counts = (-1.0, -1.0), bootstrap_counts(40, 50, 3)
    groups = [[*range(6, 11)], [*range(1, 6)]]
    spent = [[*kl[rows]] for rows in groups]
    weights = [[measured[row]["spec"]["weights"] for row in rows] for rows in groups]
    offered = [offers(scores[rows], kl[rows], of, scores[:1]) for rows, of in zip(groups, weights, strict=True)]
    found, budgets = noise_over_own_budgets(offered, spent, [counts] * 2), common_budgets(*spent)
    for r in range(50):
        drawn = [values.mean(axis=1) + resampled_noise(values, counts[[r]])[0] for values in offered]
        costs = [kl[rows].mean(axis=1) + resampled_noise(kl[rows][..., None], counts[[r]])[0, :, 0] for rows in groups]
        own = max(map(min, costs)), min(map(max, costs))
        assert 0.2 * (budgets[1] - budgets[0]) < own[1] - own[0]
        for values, noise, resampled in zip(offered, found, drawn, strict=True):
            expected = EqualKL.between(*own, reference).value(resampled)
            value = EqualKL.between(*budgets, reference).value(values.mean(axis=1) + noise[r])
            assert value == pytest.approx(expected, rel=1e-9)


def test_of_one_prompt_there_is_a_value_and_no_interval(measured):
    one = [{**point, "scores": point["scores"][:1], "kl": point["kl"][:1]} for point in measured]
    found = build_front(rewards=["a", "b"], split="test", seed=7, points=one)["comparisons"][0]["equal_kl_difference"]
    assert found is None or (found["low"], found["high"], found["p_value"]) == (None, None, None)


def sliced(rows, least, most, reference):
    """The mean over budgets of the area of two objectives, by rectangles under each staircase."""
    steps = sorted({least, most, *(row[2] for row in rows if least < row[2] < most)})
    total = 0.0
    for low, high in itertools.pairwise(steps):
        area, floor = 0.0, reference[1]
        for x, y, kl in sorted(map(tuple, rows), reverse=True):
            if kl <= low and x > reference[0] and y > floor:
                area += (x - reference[0]) * (y - floor)
                floor = y
        total += (high - low) * area
    return total / (most - least)


def test_without_the_kl_of_a_point_of_either_group_there_is_nothing_to_compare(measured):
    for i in (1, 7):
        points = [{**point, "kl": None} if point["id"] == i else point for point in measured]
        front = build_front(rewards=["a", "b"], split="test", seed=7, points=points, resamples=10)
        (comparison,) = front["comparisons"]
        assert [comparison[key] for key in ("equal_kl_difference", "kl_budgets", "equal_kl_hypervolumes")] == [None] * 3
    # That of the SFT model is known.
    points = [{**measured[0], "kl": None}, *measured[1:]]
    fronts = [build_front(rewards=["a", "b"], split="test", seed=7, points=p, resamples=10) for p in (points, measured)]
    assert fronts[0]["comparisons"] == fronts[1]["comparisons"]


def test_policies_that_did_not_move_have_no_budget(measured):
    for point in measured:
        point["kl"] = np.zeros(40)
    front = build_front(rewards=["a", "b"], split="test", seed=7, points=measured, resamples=10)
    assert front["comparisons"][0]["equal_kl_difference"] is None
