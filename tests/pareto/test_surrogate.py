"""The quadratic of the weights against MAP's own fit and numpy's; the predicted front by brute force."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_lines.pareto.surrogate import (
    design,
    fit_quadratic,
    fit_surrogate,
    grid_steps,
    monomials,
    num_coefficients,
    predict,
    predicted_front,
    simplex_grid,
    surrogate_report,
)


REFERENCE = Path(__file__).parent.parent / "reference" / "pareto"


def random_weights(num_policies, count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(num_policies), size=count)


def test_the_fit_of_free_coefficients_is_that_of_map():
    # Its sigmoid link is for accuracies; rewards are unbounded and take the identity.
    case = json.loads((REFERENCE / "origin.json").read_text())["cases"]["map_quadratic_fit"]
    tensors = load_file(REFERENCE / case["file"])
    coefficients = fit_quadratic(tensors["X"], tensors["y_identity"])
    np.testing.assert_allclose(coefficients, tensors["params_identity"], **case["tol"])
    assert case["params"]["parameter_order"] == "[x1^2,x2^2,x3^2, x1x2,x1x3,x2x3, x1,x2,x3, 1]"


def test_two_policies_are_a_parabola():
    weights = random_weights(2, 9)
    scores = np.random.default_rng(1).normal(size=(9, 3)) * [1.0, 100.0, 1e-3]
    fit = fit_surrogate(weights, scores)
    for k in range(3):
        parabola = np.polyfit(weights[:, 0], scores[:, k], 2)
        np.testing.assert_allclose(fit.coefficients[:, k], parabola, rtol=1e-9)
        explained = np.corrcoef(np.polyval(parabola, weights[:, 0]), scores[:, k])[0, 1] ** 2
        assert 0.01 < explained < 0.99
        assert fit.r2[k] == pytest.approx(explained, rel=1e-9)


@pytest.mark.parametrize("num_policies", [2, 3, 4, 5])
def test_any_quadratic_of_all_weights_is_recovered_from_the_least_number_of_points(num_policies):
    generator = np.random.default_rng(num_policies)
    matrix, vector = generator.normal(size=(num_policies, num_policies)), generator.normal(size=num_policies)

    def truth(weights):
        return np.array([[w @ matrix @ w + vector @ w + 0.3] for w in weights])

    weights = np.array(design(num_policies, num_coefficients(num_policies)))
    fit = fit_surrogate(weights, truth(weights))
    assert len(fit.coefficients) == len(monomials(num_policies)) == num_policies * (num_policies + 1) // 2
    assert fit.r2 == pytest.approx([1.0])
    others = random_weights(num_policies, 30)
    np.testing.assert_allclose(predict(fit, others), truth(others), rtol=1e-10, atol=1e-12)


def test_monomials_name_the_terms():
    fit = fit_surrogate(random_weights(3, 20), np.random.default_rng(1).normal(size=(20, 1)))
    w = {"w1": 0.2, "w2": 0.5}
    terms = []
    for name in monomials(3):
        factors = [factor for factor in name.split() if factor != "1"]
        terms.append(math.prod(w[f[:2]] ** (2 if f.endswith("^2") else 1) for f in factors))
    assert predict(fit, [[0.2, 0.5, 0.3]])[0, 0] == pytest.approx(np.dot(terms, fit.coefficients[:, 0]), rel=1e-12)


def test_few_special_or_foreign_weights_are_refused():
    weights = np.array(design(3, 6))
    scores = np.ones((6, 2))
    with pytest.raises(ValueError, match="got 5 evaluated points for a quadratic with 6 coefficients"):
        fit_surrogate(weights[:5], scores[:5])
    line = np.column_stack([np.linspace(0, 1, 11), np.linspace(1, 0, 11), np.zeros(11)])
    with pytest.raises(ValueError, match="11 evaluated points determine only 3 of the 6 coefficients"):
        fit_surrogate(line, np.ones((11, 2)))
    with pytest.raises(ValueError, match=r"weights \[0.5, 0.6, 0.0\] \(row 1\) are outside the simplex"):
        fit_surrogate([weights[0], [0.5, 0.6, 0.0], *weights[2:]], scores)
    with pytest.raises(ValueError, match=r"expected finite numbers \[6, rewards\]"):
        fit_surrogate(weights, scores * np.nan)
    with pytest.raises(ValueError, match=r"scores have shape \(5, 2\)"):
        fit_surrogate(weights, scores[:5])
    with pytest.raises(ValueError, match="at least two policies"):
        fit_surrogate([[1.0]], [[1.0]])
    fit = fit_surrogate(weights, scores)
    for outside in ([1.2, -0.2, 0.0], [math.nan, 0.5, 0.5], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="outside the simplex"):
            predict(fit, [outside])
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected \[points, 3\]"):
        predict(fit, [[0.5, 0.5]])
    with pytest.raises(ValueError, match="count of 0 predicted weights"):
        predicted_front(fit, 0, weights)


@pytest.mark.parametrize("num_policies", [2, 3, 4, 5, 6, 8])
def test_the_grid_is_every_multiple_of_its_step_once(num_policies):
    grid, steps = simplex_grid(num_policies), grid_steps(num_policies)
    assert len(grid) == math.comb(steps + num_policies - 1, num_policies - 1) == len(np.unique(grid, axis=0))
    assert 1000 < len(grid) <= 12500
    assert (grid >= 0).all()
    np.testing.assert_allclose(grid.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(grid * steps, np.round(grid * steps), atol=1e-9)
    assert grid[0].tolist() == [1.0] + [0.0] * (num_policies - 1)


@pytest.mark.parametrize(("num_policies", "count"), [(2, 12), (3, 20), (4, 25), (5, 30)])
def test_a_design_starts_with_the_policies_and_spreads(num_policies, count):
    weights = np.array(design(num_policies, count))
    least = num_coefficients(num_policies)
    np.testing.assert_array_equal(weights[:num_policies], np.eye(num_policies))
    assert all(sorted(w)[-2:] == [0.5, 0.5] for w in weights[num_policies:least].tolist())
    assert [1 / num_policies] * num_policies in weights[: least + 1].tolist()
    assert len(np.unique(weights.round(9), axis=0)) == count
    assert design(num_policies, least) == weights[:least].tolist()
    # Each further weight is farthest from those before it, by brute force over a coarser set of weights.
    coarse = random_weights(num_policies, 2000)
    for n in range(least + 1, count):
        gaps = np.linalg.norm(coarse[:, None] - weights[None, :n], axis=2).min(axis=1)
        own = np.linalg.norm(weights[:n] - weights[n], axis=1).min()
        assert own > gaps.max() - 1.5 / grid_steps(num_policies)


def test_a_design_that_is_too_small_or_has_one_policy_is_refused():
    with pytest.raises(ValueError, match="count of 5 weights for 3 policies; expected 6"):
        design(3, 5)
    with pytest.raises(ValueError, match="got 1 policy"):
        design(1, 3)


@pytest.mark.parametrize("num_policies", [2, 3])
def test_predicted_weights_are_nondominated_new_and_spread(num_policies):
    sampled = np.array(design(num_policies, num_coefficients(num_policies)))
    # The best weights of both rewards are inside, so that what lies outside of them is dominated.
    ends = np.array({2: [[0.83, 0.17], [0.12, 0.88]], 3: [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]}[num_policies])
    sampled = np.vstack([sampled, 0.6 * ends[0] + 0.4 * ends[1], 0.7 * ends[0] + 0.3 * ends[1]])
    scores = np.column_stack([-((sampled - end) ** 2).sum(axis=1) for end in ends]) * [1.0, 50.0]
    fit = fit_surrogate(sampled, scores)
    found = np.array(predicted_front(fit, 6, sampled))
    assert found.shape == (6, num_policies)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)

    grid = simplex_grid(num_policies)
    predictions = predict(fit, grid)
    best = predictions[
        [not ((p <= predictions).all(axis=1) & (p < predictions).any(axis=1)).any() for p in predictions]
    ]
    assert len(best) < 0.8 * len(grid)
    for weight in found:
        (p,) = predictions[np.abs(grid - weight).max(axis=1) < 1e-9]
        assert not ((p <= predictions).all(axis=1) & (p < predictions).any(axis=1)).any()
        assert np.abs(sampled - weight).max(axis=1).min() > 0.5 / grid_steps(num_policies)
    # No place of the predicted front is farther from what is known than the last chosen place was.
    unit = np.ptp(best, axis=0)
    known = np.vstack([predict(fit, sampled), predict(fit, found)]) / unit
    last = np.linalg.norm(known[:-1] - known[-1], axis=1).min()
    gaps = np.linalg.norm(best[:, None] / unit - known[None], axis=2).min(axis=1)
    assert 0 < gaps.max() <= last + 1e-9
    assert predicted_front(fit, 6, sampled) == found.tolist()
    assert predicted_front(fit, 2, sampled) == found[:2].tolist()


def test_the_ends_of_the_predicted_front_come_first_unless_they_were_sampled():
    # Both rewards are best inside: at w1 = 0.6 and 0.3, which were not sampled; outside of these all is dominated.
    def scores(weights):
        return np.column_stack([-((weights[:, 0] - 0.6) ** 2), -50 * (weights[:, 0] - 0.3) ** 2])

    sampled = np.array(design(2, 3))
    found = predicted_front(fit_surrogate(sampled, scores(sampled)), 1000, sampled)
    assert found[:2] == [[0.6, 0.4], [0.3, 0.7]]
    # All thousandths from 0.3 to 0.6 but 0.5, which was sampled.
    assert sorted(round(1000 * w1) for w1, _ in found) == [*range(300, 500), *range(501, 601)]
    # Less than half a step from 0.6 and 0.4.
    sampled = np.array([*sampled, [0.6004, 0.3996], [0.4003, 0.5997]])
    found = predicted_front(fit_surrogate(sampled, scores(sampled)), 1000, sampled)
    assert found[0] == [0.3, 0.7]
    assert len(found) == 298 and [0.6, 0.4] not in found and [0.4, 0.6] not in found


def test_a_front_of_one_sampled_policy_predicts_nothing_new():
    sampled = np.array(design(2, 3))
    scores = np.column_stack([sampled[:, 0], 2 * sampled[:, 0]])
    assert predicted_front(fit_surrogate(sampled, scores), 5, sampled) == []


def test_a_reward_on_which_all_agree_neither_divides_by_zero_nor_explains_anything():
    sampled = np.array(design(2, 5))
    scores = np.column_stack([sampled[:, 0], np.full(5, 0.1)])
    fit = fit_surrogate(sampled, scores)
    assert np.isfinite(fit.coefficients).all() and math.isnan(fit.r2[1])
    report = surrogate_report(fit, ["a", "b"], sampled=[0], weights={}, measured={})
    assert report["r2"] == {"a": pytest.approx(1.0), "b": None} and report["predicted"] == []


def test_the_report_holds_what_was_fitted_predicted_and_measured():
    sampled = np.array(design(2, 5))
    scores = np.column_stack([sampled[:, 0] ** 2, 3 - sampled[:, 0]])
    fit = fit_surrogate(sampled, scores)
    report = surrogate_report(
        fit, ["a", "b"], sampled=[4, 5, 6, 7, 8], weights={9: [0.2, 0.8]}, measured={9: np.array([0.1, 2.5])}
    )
    report = json.loads(json.dumps(report, allow_nan=False))
    assert set(report) == {"sampled", "predicted", "monomials", "coefficients", "r2"}
    assert report["sampled"] == [4, 5, 6, 7, 8]
    assert report["monomials"] == ["w1^2", "w1", "1"]
    assert report["coefficients"]["a"] == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    assert report["coefficients"]["b"] == pytest.approx([0.0, -1.0, 3.0], abs=1e-12)
    (point,) = report["predicted"]
    assert point["id"] == 9 and point["measured"] == {"a": 0.1, "b": 2.5}
    assert point["predicted"] == {"a": pytest.approx(0.04), "b": pytest.approx(2.8)}


def test_two_axes_of_the_grid_are_those_of_a_loop():
    steps = grid_steps(3)
    expected = {(i, j, steps - i - j) for i, j in product(range(steps + 1), repeat=2) if i + j <= steps}
    assert {tuple(map(round, row)) for row in (simplex_grid(3) * steps).tolist()} == expected
