"""Regions of attainment against a count of the resamples that attain a pair of scores."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto import attained_regions, attainment


@pytest.fixture
def means():
    """200 resamples of four points, on very different scales."""
    return np.random.default_rng(0).normal([[0, 3], [1, 2.5], [2, 2], [3, 0]], 0.4, size=(200, 4, 2)) * [1.0, 50.0]


@pytest.fixture
def coarse(monkeypatch):
    """A grid that these few corners need, too."""
    monkeypatch.setattr(attainment, "STEPS", 32)


def share(means, pair):
    """How many fronts have a point at least as high as the pair in both rewards."""
    return sum(any(x >= pair[0] and y >= pair[1] for x, y in front) for front in means.tolist()) / len(means)


def inside(corners, pair):
    return any(x >= pair[0] and y >= pair[1] for x, y in corners)


def test_a_region_is_what_its_share_of_the_resamples_attains(means, coarse):
    regions = attained_regions(means)
    step = np.ptp(means.reshape(-1, 2), axis=0) / 32
    generator = np.random.default_rng(1)
    low, high = means.reshape(-1, 2).min(axis=0), means.reshape(-1, 2).max(axis=0)
    pairs = generator.uniform(low, high, size=(1500, 2)).tolist()
    assert list(regions) == ["0.025", "0.5", "0.975"]
    for level, corners in regions.items():
        found = [inside(corners, pair) for pair in pairs]
        assert 100 < sum(found) < 1400
        for pair, is_inside in zip(pairs, found, strict=True):
            if is_inside:
                assert share(means, pair) >= float(level)
            else:  # only the grid may have left it out
                assert share(means, [pair[0] + step[0], pair[1] + step[1]]) < float(level)


def test_every_corner_is_attained_and_one_step_beyond_is_not(means, coarse):
    step = np.ptp(means.reshape(-1, 2), axis=0) / 32 * 1.001
    for level, corners in attained_regions(means).items():
        assert 10 < len(corners) <= 33
        assert corners == sorted(corners) and len({y for _, y in corners}) == len({x for x, _ in corners})
        for x, y in corners:
            assert share(means, [x, y]) >= float(level)
            assert share(means, [x + step[0], y + step[1]]) < float(level)


def test_few_corners_are_exact(means):
    means = means[:40]
    for level, corners in attained_regions(means).items():
        assert 10 < len(corners) <= 256
        for x, y in corners:
            assert share(means, [x, y]) >= float(level) > share(means, [x, y + 1e-6])
            assert share(means, [x + 1e-8, y]) < float(level)


def test_resamples_that_agree_have_one_front():
    means = np.tile([[[0.0, 2.0], [1.0, 1.0], [0.5, 0.5], [1.0, 1.0]]], (50, 1, 1))
    assert attained_regions(means) == {level: [[0.0, 2.0], [1.0, 1.0]] for level in ("0.025", "0.5", "0.975")}
    flat = np.tile([[[0.0, 7.0], [1.0, 7.0]]], (50, 1, 1))
    assert attained_regions(flat) == {level: [[1.0, 7.0]] for level in ("0.025", "0.5", "0.975")}


def test_the_edges_stay_small_enough_to_draw():
    means = np.random.default_rng(0).normal(size=(2000, 11, 2)) + np.linspace([0, 9], [9, 0], 11)
    assert all(10 < len(corners) <= 257 for corners in attained_regions(means).values())


def test_other_numbers_of_rewards_have_none(means):
    assert attained_regions(means[..., :1]) is None
    assert attained_regions(np.concatenate([means, means], axis=-1)) is None
