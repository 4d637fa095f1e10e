"""The hull against geometry in the plane, and against many random preferences for more rewards."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto import hull_vertices


def upper_chain(points):
    """Vertices of the upper right hull in the plane: a point goes if it does not turn right (exact for integers)."""
    chain = []
    for x, y in sorted(set(points)):
        while chain and chain[-1][1] <= y:
            chain.pop()
        while len(chain) > 1 and (chain[-1][0] - chain[-2][0]) * (y - chain[-2][1]) >= (x - chain[-2][0]) * (
            chain[-1][1] - chain[-2][1]
        ):
            chain.pop()
        chain.append((x, y))
    return chain


@pytest.mark.parametrize("seed", range(20))
def test_in_the_plane_it_is_the_upper_chain(seed):
    # Integers of a small range make points that are equal or on a line common.
    points = [tuple(point) for point in np.random.default_rng(seed).integers(0, 9, size=(25, 2)).tolist()]
    rows = hull_vertices(points)
    assert [points[row] for row in rows] == upper_chain(points)
    assert rows == [points.index(points[row]) for row in rows]  # of equal points, the first


@pytest.mark.parametrize("rewards", [3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_with_more_rewards_it_is_who_wins_somewhere(rewards, seed):
    scores = np.random.default_rng(seed).normal(size=(20, rewards)) * [1.0, 10.0, 0.1, 1.0][:rewards]
    generator = np.random.default_rng(99)
    # Small parameters put preferences near the edges, where some vertices have their small regions.
    weights = np.vstack([generator.dirichlet([size] * rewards, size=60_000) for size in (1.0, 0.3)])
    weights /= np.ptp(scores, axis=0)
    winners = set((weights @ scores.T).argmax(axis=1).tolist())
    rows = hull_vertices(scores)
    assert set(rows) == winners
    assert [scores[row, 0] for row in rows] == sorted(scores[row, 0] for row in rows)


def test_a_point_in_a_small_dent_is_left_out_and_one_on_a_small_bump_stays():
    for bump in (1e-6, -1e-6):
        rows = hull_vertices([[0.0, 0.0, 3.0], [0.0, 3.0, 0.0], [3.0, 0.0, 0.0], [1.0 + bump] * 3])
        assert rows == ([0, 1, 3, 2] if bump > 0 else [0, 1, 2])


def test_units_do_not_matter():
    scores = np.random.default_rng(0).normal(size=(15, 3))
    assert hull_vertices(scores * [1e-9, 1.0, 1e9] + [1.0, -5.0, 1e9]) == hull_vertices(scores)


def test_of_points_that_differ_by_rounding_one_stays():
    scores = np.array([[0.0, 1.0], [1.0, 0.0]] * 4)
    scores += 2.0**-53 * np.random.default_rng(0).integers(-2, 3, size=scores.shape)
    first, second = hull_vertices(scores)
    assert (first % 2, second % 2) == (0, 1)


def test_one_point_and_one_reward():
    assert hull_vertices([[1.0, 2.0]]) == [0]
    assert hull_vertices([[2.0, 2.0]] * 3) == [0]
    assert hull_vertices([[1.0], [3.0], [3.0], [2.0]]) == [1]
