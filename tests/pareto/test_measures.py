"""Dominance and hypervolume against their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rlhf_lines.pareto import hypervolume, nondominated, reference_point


def nondominated_by_definition(scores):
    def dominates(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [i for i, b in enumerate(scores) if not any(dominates(a, b) for a in scores)]


def hypervolume_by_inclusion_exclusion(scores, reference):
    """Sums the volumes of intersections of boxes with alternating signs: exact, 2^n terms."""
    total = 0.0
    for size in range(1, len(scores) + 1):
        for subset in combinations(scores, size):
            sides = [
                max(0.0, min(column) - low) for column, low in zip(zip(*subset, strict=True), reference, strict=True)
            ]
            total += (-1) ** (size + 1) * float(np.prod(sides))
    return total


@pytest.mark.parametrize("rewards", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_nondominated_is_the_definition(rewards, seed):
    # Integers from a small range make ties and duplicates common.
    scores = np.random.default_rng(seed).integers(0, 4, size=(30, rewards)).astype(float)
    expected = nondominated_by_definition(scores.tolist())
    assert len(expected) < 30
    assert nondominated(scores) == expected


def test_duplicates_of_a_nondominated_point_all_stay():
    assert nondominated([[2, 0], [0, 2], [2, 0], [1, 0]]) == [0, 1, 2]


@pytest.mark.parametrize("rewards", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_inclusion_exclusion(rewards, seed):
    # Some points lie below the reference point 0 in a coordinate and add nothing.
    scores = np.random.default_rng(seed).normal(0.5, 1.0, size=(8, rewards))
    expected = hypervolume_by_inclusion_exclusion(scores.tolist(), [0.0] * rewards)
    assert expected > 0
    assert hypervolume(scores, [0.0] * rewards) == pytest.approx(expected, rel=1e-12)


def test_hypervolume_of_the_points_in_the_documentation_of_moocore():
    # moocore documents 38.0 for these points when they are minimised with reference (10, 10); mirrored at the origin
    # that is a maximisation. Maximised with reference (0, 0) they give 39.0.
    points = np.array([[5, 5], [4, 6], [2, 7], [7, 4]], dtype=float)
    assert hypervolume(-points, [-10, -10]) == 38.0
    assert hypervolume(points, [0, 0]) == 39.0


def test_dominated_points_do_not_change_the_hypervolume():
    scores = np.random.default_rng(0).uniform(0.5, 1.0, size=(10, 3))
    dominated = scores * 0.7
    assert hypervolume(np.vstack([scores, dominated]), [0, 0, 0]) == pytest.approx(
        hypervolume(scores, [0, 0, 0]), rel=1e-14
    )


def test_reference_point_is_a_tenth_of_the_range_below_the_lowest():
    # Lowest 0 and -4, ranges 2 and 10: 0 - 0.2 and -4 - 1.
    assert reference_point([[0.0, 6.0], [2.0, -4.0], [1.0, 0.0]]) == pytest.approx([-0.2, -5.0])
