"""Which weights and which specs a sweep measures."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.groups import (
    Specs,
    candidates,
    dirichlet,
    factors_of,
    one_hot,
    simplex,
    upside_down,
    wise_ft_of,
    with_single_policies,
)
from rlhf_lines.sweep.scaling import beyond, next_values


# --- weights ---


@pytest.mark.parametrize(
    ("policies", "weights"), [(1, 3), (2, 2), (2, 11), (2, 8), (3, 2), (3, 11), (4, 4), (12, 4), (40, 2)]
)
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


def test_no_policy_has_no_weights():
    assert simplex(0, 3) == one_hot(0) == []


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
def test_one_scaling_gives_the_factor_that_is_as_long(layers, alpha, beta, schedule):
    (factor,) = factors_of([Scaling(alpha, beta, schedule)], layers)
    assert factor == pytest.approx(mean_factor(layers, alpha, beta, schedule), rel=1e-14, abs=1e-15)


@pytest.mark.parametrize(
    ("scalings", "factors"),
    [
        # Means 0.75, 1, 1, 1.25: as many, evenly.
        ([Scaling(a, b) for a in (0.5, 0.75) for b in (0.5, 1.0)], [0.75, 0.75 + 0.5 / 3, 0.75 + 1 / 3, 1.25]),
        ([Scaling(1.0, 0.0), Scaling(0.5, 1.0), Scaling(0.0, 2.0)], [0.5, 1.0, 1.5]),  # all alike
        ([Scaling("auto", 0.0), Scaling("auto", 1.0), Scaling(1.0, 2.0)], ["auto", 1.0, 2.0]),
        ([Scaling("auto", 1.0), Scaling(0.5, 0.0)], ["auto", 1.0]),
        ([Scaling("auto", 1.0)], [1.5]),
    ],
)
def test_scaled_has_as_many_factors_over_the_same_range(scalings, factors):
    found = factors_of(scalings, num_layers=5)
    assert [one if one == "auto" else pytest.approx(one, rel=1e-14) for one in factors] == found
    assert len(set(found)) == len(found) == len(scalings)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("layers", [2, 3, 8, 32])
def test_reversed_has_the_factors_upside_down(schedule, layers):
    scaling = Scaling(0.3, 1.7, schedule)
    own, turned = lines_scales(layers, *scaling), lines_scales(layers, *upside_down(scaling))
    # 1 - (l - 1) / (L - 1) and (L - l) / (L - 1) are one number, rounded once or twice.
    torch.testing.assert_close(turned, own.flip(0), rtol=0, atol=1e-15)
    assert turned[0] == own[-1] and turned[-1] == own[0]
    assert not torch.allclose(turned, own)
    assert upside_down(upside_down(scaling)) == scaling
    assert SCHEDULES[upside_down(scaling).schedule].falls != SCHEDULES[schedule].falls


def test_wise_ft_goes_from_the_sft_model_to_the_policy():
    """theta_SFT + a tau: as weights of the rule linear the very specs of the SFT model and of the single policy."""
    specs = wise_ft_of(1, 3, 5)
    assert [spec.weights for spec in specs] == [(0.0, a, 0.0) for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert specs[0] == MergeSpec("linear", (0.0, 0.0, 0.0)) and specs[-1] == MergeSpec("linear", (0.0, 1.0, 0.0))


# --- candidates ---

MIXED = {
    "alphas": [0.5, 1.0],
    "betas": [0.5, 1.0],
    "groups": [
        {"name": "plain", "rule": "ties"},
        {"name": "given", "rule": "ties", "alpha": 1},
        {"name": "lists", "rule": "ties", "alphas": [1, 2, 3], "options": {"density": 0.3}},
        {"name": "listed", "rule": "sum", "scalings": ["0.5 0", "auto 1 sqrt"]},
    ],
    "policy_sets": [
        {"name": "slow", "policies": ["c", "d"]},
        {"name": "frozen", "policies": ["e", "f"], "alpha": 1},
        {"name": "bone", "policies": ["g", "h"], "mixing": [[0.6, 0.4], [0.4, 0.6]], "alphas": [1.0, "auto"]},
    ],
}
NO_OTHERS = {"groups": [], "policy_sets": []}


def config_of(**changes) -> SweepConfig:
    needed = {"sft_model": "sft", "policies": ["a", "b"], "rewards": ["rule:length", "m:f"], "output_dir": "out"}
    return SweepConfig(**{**needed, **MIXED, **changes})


def test_every_group_with_a_scale_has_its_candidates():
    found = candidates(config_of(), num_layers=4)
    assert list(found) == ["lines", "scaled", "reversed", "plain", "lists", "listed", "slow", "bone"]
    assert found["scaled"] == [Scaling(a, 0.0) for a in (0.75, 1.0, 1.25, 1.5)]
    assert found["reversed"] == [Scaling(a, b, "reversed") for a in (0.5, 1.0) for b in (0.5, 1.0)]
    assert found["lists"] == [Scaling(a, 0.0) for a in (1.0, 2.0, 3.0)]
    assert found["listed"] == [Scaling(0.5, 0.0), Scaling("auto", 1.0, "sqrt")]
    assert found["plain"] == found["slow"] == found["scaled"]
    assert candidates(config_of(controls=False), 4)["slow"] == found["scaled"]
    assert found["bone"] == [Scaling(1.0, 0.0), Scaling("auto", 0.0)]
    given = candidates(config_of(scaled_alphas=[2, "auto"]), 4)
    assert given["scaled"] == given["plain"] == given["slow"] == [Scaling(2.0, 0.0), Scaling("auto", 0.0)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"controls": False},
        {"scaled_alphas": [1, 2, 3]},
        {"groups": []},
        {"scalings": ["1 1"]},
        {"scalings": ["1 1"], **NO_OTHERS},
        {"betas": [0, 1], "schedules": ["linear", "sqrt"]},
    ],
    ids=str,
)
def test_the_counts_are_those_of_the_candidates(changes):
    config = config_of(**changes)
    found = candidates(config, num_layers=4)
    assert config.candidate_counts == {name: len(scalings) for name, scalings in found.items()}
    assert config.chooses == any(len(scalings) > 1 for scalings in found.values())
    if not (changes.get("scaled_alphas") or changes.get("controls") is False):
        assert len(found["lines"]) == len(found["scaled"]) == len(found["reversed"])


def test_merges_that_lines_and_its_controls_have_in_common_count_once():
    changes = {"alphas": [0, 1], "betas": [0, 1], "schedules": ["linear", "sqrt"], **NO_OTHERS}
    config = config_of(**changes, scaled_alphas=[1, 2])
    # Six of LiNeS; of scaled 2; reversed, alpha 0 and 1 with beta 1 on either schedule.
    assert config.candidate_counts == {"lines": 6, "scaled": 2, "reversed": 6}
    assert config.merge_counts == {"lines": 6, "scaled": 1, "reversed": 4}
    specs = Specs(config, SimpleNamespace(resolved=lambda spec: spec), 4, {})
    assert specs.count_tried(3) == 3 * (6 + 1 + 4 - 1)  # alpha 0 with beta 0 is the SFT model
    made = {
        spec
        for name, scalings in specs.candidates.items()
        for scaling in scalings
        for spec in specs.tried(name, scaling, [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
    }
    assert len(made - set(specs.fixed()["sft"])) == specs.count_tried(3)


def test_a_limit_has_one_candidate_measured_too():
    alone = {"scalings": ["1 1"], **NO_OTHERS}
    assert not config_of(**alone).chooses
    assert (
        config_of(**alone, minimum={"r": 0}).chooses
        and config_of(**alone, max_kl=1.0).chooses
        and config_of(**alone, max_forgetting=1.1, control="docstrings").chooses
    )


# --- beyond an edge ---


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Scaling(1.0, 0.5), []),  # inside
        (Scaling(2.0, 0.5), [Scaling(3.0, 0.5)]),
        (Scaling(0.5, 0.5), [Scaling(0.0, 0.5)]),
        (Scaling(1.0, 2.0), [Scaling(1.0, 3.5)]),
        (Scaling(2.0, 0.0), [Scaling(3.0, 0.0), Scaling(2.0, -0.5), Scaling(3.0, -0.5)]),
        (Scaling("auto", 2.0), [Scaling("auto", 3.5)]),  # a number that is measured is at no edge
    ],
)
def test_one_step_beyond_the_edge(chosen, expected):
    """Of 0.5, 1, 2 and 0, 0.5, 2: the step is that to the neighbour."""
    tried = [Scaling(a, b) for a in (2.0, 0.5, "auto", 1.0) for b in (0.5, 0.0, 2.0)]
    assert beyond(tried, chosen) == expected


def test_a_single_value_is_no_edge():
    assert next_values([Scaling(a, 0.0) for a in (1.0, 2.0)], Scaling(2.0, 0.0)) == {"alpha": 3.0}
    assert next_values([Scaling(1.0, 0.0)], Scaling(1.0, 0.0)) == {}
    assert next_values([Scaling("auto", 0.0), Scaling(1.0, 0.0)], Scaling(1.0, 0.0)) == {}
