"""From vectors to factors: the start is the soup, a line is LiNeS, a bend stands in the middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.learn.grid import lines_grid, lines_profile
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lora.low_rank import coefficients
from rlhf_lines.merge.space import bent_lines, every_factor, make_space


LAYERS = [None, 0, 1, 2, 3, 4]


def rows(spec: MergeSpec) -> list[torch.Tensor]:
    """The coefficients of every policy, outside the layers and in each."""
    return [coefficients(spec, (1,) * len(spec.weights), layer, 5, dtype=torch.float64) for layer in LAYERS]


@pytest.mark.parametrize("name", ["profile", "coefficients", "policies"])
@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (1 / 3,) * 3])
def test_the_start_is_the_soup_at_any_weights(name, weights):
    space = make_space(name, 3, 5)
    spec = MergeSpec("layerwise", weights, options=space.profile(space.start).to_options())
    for got, expected in zip(rows(spec), rows(MergeSpec("linear", weights)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-15, atol=0)


def test_a_line_is_lines_at_any_weights():
    weights = (0.2, 0.5, 0.3)
    profile = bent_lines(3, 5).profile((0.4, 1.2, 0.0) * 3)
    spec = MergeSpec("layerwise", weights, options=profile.to_options())
    for got, expected in zip(rows(spec), rows(MergeSpec("linear", weights, 0.4, 1.2)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-15)


def test_a_bend_is_what_the_middle_has_more():
    profile = bent_lines(2, 5).profile((0.5, 1.0, 0.25, 1.0, 0.0, -1.0))
    # 0.5 + d + d (1 - d) and 1 - 4 d (1 - d) at d = 0, 1/4, 1/2, 3/4, 1, halved for two policies.
    np.testing.assert_allclose(profile.factors[0], np.array([0.5, 0.9375, 1.25, 1.4375, 1.5]) / 2, rtol=1e-15)
    np.testing.assert_allclose(profile.factors[1], np.array([1.0, 0.25, 0.0, 0.25, 1.0]) / 2, rtol=1e-15)
    assert profile.outside == (0.25, 0.5)
    assert bent_lines(1, 1).profile((0.5, 1.0, 3.0)).factors == ((0.5,),)


def test_every_factor_is_a_number_of_its_own():
    space = every_factor(2, 3)
    profile = space.profile([0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0])
    assert profile.outside == (0.0, 4.0) and profile.factors == ((1.0, 2.0, 3.0), (5.0, 6.0, 7.0))
    assert space.names[1] == "layer 1 of 1" and len(space.names) == len(space.start) == 8


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("count", [2, 9, 40, 200])
@pytest.mark.parametrize("policies", [1, 2, 3])
def test_a_grid_has_at_most_so_many_points_and_most_of_them(policies, count, with_weights):
    grid = lines_grid(policies, count, with_weights=with_weights)
    assert len(grid) == len(set(grid)) and count / 2 < len(grid) <= count
    assert all(sum(point[:policies]) == pytest.approx(1) for point in grid)
    assert any(np.allclose(point[:policies], 1 / policies) for point in grid)  # LiNeS on the soup itself
    assert min(point[-2] for point in grid) < 1 < max(point[-2] for point in grid) or count < 40


def test_a_grid_of_three_policies_has_all_kinds_of_mixtures():
    weights = {point[:3] for point in lines_grid(3, 200, with_weights=True)}
    assert {(1.0, 0.0, 0.0), (2 / 3, 1 / 3, 0.0), (1 / 3, 1 / 3, 1 / 3)} < weights and len(weights) == 10


def test_a_point_of_the_grid_is_lines_with_its_weights():
    profile = lines_profile((0.25, 0.75, 0.4, 1.2), 5)
    spec = MergeSpec("layerwise", (0.5, 0.5), options=profile.to_options())
    for got, expected in zip(rows(spec), rows(MergeSpec("linear", (0.25, 0.75), 0.4, 1.2)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-15)
