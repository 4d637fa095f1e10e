"""The step of Frank-Wolfe against the authors' choice of models, and on a quadratic whose minimum is known."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file

from rlhf_lines.learn.frank_wolfe import frank_wolfe, linear_minimiser, onto_simplices
from tests.learn.reference import CASES, FOLDER
from tests.merge.reference import tensors


def test_the_choice_is_that_of_fusionbench():
    case = CASES["fw_selection_n3"]["scalars"]
    gradients = load_file(FOLDER / "fw_gradients.safetensors")
    names = list(case["layer_choice"])
    models = [tensors(f"model_ft{k}") for k in range(3)]

    def cosine(gradient, weights) -> float:
        gradient = gradient.double()
        return ((gradient * weights).sum() / (gradient.norm() * weights.norm())).item()

    scores = np.array([[cosine(gradients[name], model[name]) for name in names] for model in models])
    np.testing.assert_allclose(scores.sum(axis=1), list(case["task_scores"].values()), rtol=1e-8)
    whole = linear_minimiser(scores.sum(axis=1, keepdims=True))
    assert f"ft{whole[:, 0].argmax()}" == case["task_choice"] and whole.sum() == 1
    by_tensor = linear_minimiser(scores)
    chosen = {name: f"ft{k}" for name, k in zip(names, by_tensor.argmax(axis=0), strict=True)}
    assert chosen == case["layer_choice"]
    assert {f"ft{k}": int(count) for k, count in enumerate(by_tensor.sum(axis=1))} == case["layer_choice_counts"]
    assert (scores * by_tensor).sum() == pytest.approx(case["layer_score_sum"], rel=1e-8)


def test_steps_stay_among_the_policies_and_approach_the_minimum():
    target = np.array([[0.6, 1.5], [1.4, 0.5]])  # in units of 1/K: columns sum to K = 2

    def slope(vector, step):
        miss = vector - target.ravel()
        return float((miss**2).sum()), 2 * miss

    found, losses = frank_wolfe(slope, [1.0] * 4, steps=400, num_policies=2)
    np.testing.assert_allclose(np.reshape(found, (2, 2)), target, atol=0.02)
    np.testing.assert_allclose(np.reshape(found, (2, 2)).sum(axis=0), 2.0, rtol=1e-12)
    assert losses[0] == pytest.approx(2 * 0.4**2 + 2 * 0.5**2) and len(losses) == 400


def test_softly_a_few_steps_reach_the_minimum_among_the_chosen():
    target = np.array([[0.6, 1.5, 2.6], [1.4, 0.5, -0.6]])  # the nearest that is allowed is [2, 0] in the third column

    def slope(vector, step):
        miss = vector - target.ravel()
        return float((miss**2).sum()), 2 * miss

    options = {"num_policies": 2, "steps": 3}
    found, losses = frank_wolfe(slope, [1.0] * 6, **options, soft_steps=300, learning_rate=0.05)
    np.testing.assert_allclose(np.reshape(found, (2, 3)), [[0.6, 1.5, 2.0], [1.4, 0.5, 0.0]], atol=2e-3)
    hard, _ = frank_wolfe(slope, [1.0] * 6, **options)
    assert np.abs(np.subtract(found, hard)).max() > 0.1 and len(losses) == 3
    first, _ = frank_wolfe(slope, [1.0] * 6, num_policies=2, steps=1, soft_steps=300, learning_rate=0.05)
    np.testing.assert_allclose(np.reshape(first, (2, 3)), [[0, 2, 2], [2, 0, 0]], atol=1e-12)  # one is chosen so far


def test_the_projection_is_the_nearest_point():
    """Against a search over a fine grid, with every set of policies that may be chosen."""
    generator = np.random.default_rng(1)
    steps = np.linspace(0, 3, 61)
    grid = np.array([(a, b, 3 - a - b) for a in steps for b in steps if a + b <= 3 + 1e-9])
    for among in ([True] * 3, [True, False, True], [False, True, False]):
        allowed = grid[(grid[:, ~np.array(among)] < 1e-9).all(axis=1)]
        for _ in range(20):
            point = generator.normal(1, 1.5, size=3)
            found = onto_simplices(point, np.array(among)[:, None])
            nearest = np.linalg.norm(allowed - point, axis=1).min()
            assert found.sum() == pytest.approx(3) and (found >= 0).all() and not found[~np.array(among)].any()
            assert np.linalg.norm(found - point) <= nearest + 1e-9


def test_the_first_step_goes_all_the_way():
    found, _ = frank_wolfe(lambda x, step: (0.0, np.array([0.1, 5.0, 0.2, 4.0])), [1.0] * 4, steps=1, num_policies=2)
    assert found == [2.0, 0.0, 0.0, 2.0]
