"""Comparisons: Holm's adjustment against its step-down procedure, verdicts by case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.comparisons import MEASURES, adjusted_for, conclusions, difference, verdict
from rlhf_lines.pareto.corrected import Corrected
from rlhf_lines.pareto.headline import best_of_others, front_headline
from rlhf_lines.pareto.intervals import holm


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_its_step_down_procedure_rejects(seed):
    generator = np.random.default_rng(seed)
    p_values = (generator.random(7) ** 4).tolist()
    p_values[3] = p_values[5]
    adjusted = holm(p_values)
    for level in (0.001, 0.01, 0.05, 0.2, 0.9):
        rejected, left = set(), sorted(range(7), key=lambda i: p_values[i])
        while left and p_values[left[0]] < level / len(left):
            rejected.add(left.pop(0))
        assert {i for i in range(7) if adjusted[i] < level} == rejected
    assert holm([]) == [] and holm([0.3]) == [0.3] and max(holm([0.9, 0.8])) == 1.0


def test_a_verdict_is_that_of_all_measures_or_mixed():
    for found in itertools.product((-1, 0, 1), repeat=3):
        expected = {(1, 1, 1): "better", (-1, -1, -1): "worse", (0, 0, 0): "undecided"}.get(found, "mixed")
        assert verdict(dict(zip(MEASURES, found, strict=True))) == expected


@pytest.mark.parametrize("missing", MEASURES)
def test_nothing_is_better_or_worse_without_all_measures(missing):
    for found in itertools.product((-1, 0, 1), repeat=2):
        expected = {(1, 1): "higher", (-1, -1): "lower", (0, 0): "undecided"}.get(found, "mixed")
        assert verdict(dict(zip((m for m in MEASURES if m != missing), found, strict=True))) == expected


def test_conclusions_are_of_adjusted_p_values_and_leave_out_what_is_not_there():
    def found(value, adjusted):
        return {"corrected": value, "adjusted_p_value": adjusted, "p_value": 0.0}

    entry = {
        "hypervolume_difference": found(-2.0, 0.049),
        "expected_utility_difference": found(2.0, 0.06),
        "equal_kl_difference": None,
    }
    assert conclusions(entry, 0.95) == {"hypervolume": -1, "expected_utility": 0}
    assert conclusions(entry, 0.9) == {"hypervolume": -1, "expected_utility": 1}


def test_a_difference_is_paired_and_around_the_corrected_one():
    generator = np.random.default_rng(0)
    shared = generator.normal(size=160)
    a = Corrected(3.0, 2.5, shared + 0.1 * generator.normal(size=160), 60)
    b = Corrected(2.0, 1.8, shared, 60)
    paired = a.resampled - b.resampled
    error = paired.std(ddof=1)
    reach, p_value = stats.t.ppf(0.95, 59) * error, 2 * stats.t.sf(0.7 / error, 59)
    found = difference(a, b, 0.9)
    assert found == pytest.approx(
        {
            **{"value": 1.0, "corrected": 0.7, "low": 0.7 - reach, "high": 0.7 + reach, "probability_positive": 1.0},
            **{"p_value": p_value, "adjusted_p_value": p_value},
        },
        rel=1e-9,
        abs=1e-15,
    )
    turned = difference(b, a, 0.9)
    assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]), rel=1e-12)
    assert turned["corrected"] == -found["corrected"] and turned["p_value"] == found["p_value"]
    # The share is of the resamples around what was found, which noise of 0.1 leaves in doubt.
    near = Corrected(2.0, 1.75, a.resampled, 60)
    around = paired - paired.mean() - 0.05
    share = difference(near, b, 0.9)["probability_positive"]
    assert 0.1 < share == (around > 0).mean() < 0.5


def test_the_difference_of_a_group_to_itself_is_none():
    one = Corrected(3.0, 2.5, np.random.default_rng(0).normal(size=160), 60)
    assert difference(one, one, 0.95) == {
        **{"value": 0.0, "corrected": 0.0, "low": 0.0, "high": 0.0, "probability_positive": 0.5},
        **{"p_value": 1.0, "adjusted_p_value": 1.0},
    }


def with_others(make_points, *others):
    """The points of the fixture, and groups that are like LiNeS with less or more score."""
    points = make_points()
    for group, shift in others:
        for point in make_points()[6:]:
            noise = np.random.default_rng(len(points)).normal(scale=0.3, size=(40, 2))
            points.append({**point, "id": len(points), "group": group, "scores": point["scores"] - shift + noise})
    return points


def test_p_values_are_adjusted_over_a_family_of_a_measure(make_points):
    points = with_others(make_points, ("near", 0.02), ("scaled", 0.03), ("far", 0.4))
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=400)
    assert len(front["comparisons"]) == 10
    counts = {"hypervolume": (2, 8), "expected_utility": (2, 8), "equal_kl": (1, 5)}  # the soup has no KL
    ours = [("lines", "rewarded_soup"), ("lines", "scaled")]
    for (measure, numbers), is_ours in itertools.product(counts.items(), (True, False)):
        of_family = [entry for entry in front["comparisons"] if ((entry["a"], entry["b"]) in ours) == is_ours]
        found = [each for entry in of_family if (each := entry[f"{measure}_difference"]) is not None]
        assert len(found) == numbers[not is_ours]
        assert [each["adjusted_p_value"] for each in found] == holm([each["p_value"] for each in found])
        assert len(found) < 3 or any(each["adjusted_p_value"] > each["p_value"] for each in found)
        # Adjusting leaves the interval alone, which has 0 outside exactly where the p-value is below 5 %.
        assert all((each["p_value"] < 0.05) == (not each["low"] <= 0 <= each["high"]) for each in found)
    for entry in front["comparisons"]:
        signs = [
            int(np.sign(each["corrected"])) * (each["adjusted_p_value"] < 0.05)
            for measure in ("hypervolume", "expected_utility", "equal_kl")
            if (each := entry[f"{measure}_difference"]) is not None
        ]
        whole = ("better", "worse") if len(signs) == 3 else ("higher", "lower")
        same = {1: whole[0], -1: whole[1], 0: "undecided"}[signs[0]]
        assert entry["verdict"] == (same if len(set(signs)) == 1 else "mixed")
        assert (entry["no_equal_kl"] is None) == (len(signs) == 3) == (entry["kl_budgets"] is not None)
    assert {entry["verdict"] for entry in front["comparisons"]} >= {"higher", "undecided"}
    words = "2 comparisons of LiNeS with the soup and its controls, and separately for the 8 others"
    assert adjusted_for(front["comparisons"]) == words


def test_groups_that_are_added_change_nothing_that_is_said_of_lines(make_points):
    """The p-values of LiNeS against one factor are such that adjusting for more would turn the verdict."""
    few = with_others(make_points, ("scaled", 0.05), ("reversed", 0.0))
    many = with_others(make_points, ("scaled", 0.05), ("reversed", 0.0), *((f"other {i}", 0.0) for i in range(3)))
    before, after = (
        build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=100) for points in (few, many)
    )
    of_lines = {entry["b"]: entry for entry in after["comparisons"] if entry["a"] == "lines"}
    assert (len(before["comparisons"]), len(after["comparisons"])) == (6, 21)
    for entry in before["comparisons"]:
        if entry["a"] == "lines":
            assert of_lines[entry["b"]] == entry
    assert front_headline(after) == f"{front_headline(before)} {best_of_others(after)}"
    of_all = holm([entry["expected_utility_difference"]["p_value"] for entry in after["comparisons"]])
    index = [(entry["a"], entry["b"]) for entry in after["comparisons"]].index(("lines", "scaled"))
    assert of_lines["scaled"]["expected_utility_difference"]["adjusted_p_value"] < 0.05 < of_all[index]
