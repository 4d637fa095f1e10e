"""What a search proposes: children within reach of good parents, chosen by a fit once there is enough to fit."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto import hypervolume
from rlhf_lines.sweep.proposals import POOL, REACH, best_subset, propose, quadratic_fit


REFERENCE = [0.0, 0.0]


def draws(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def test_children_lie_on_the_line_through_two_parents_that_no_other_dominates():
    vectors = np.array([[0.0, 0.0, 0.0], [4.0, 8.0, -4.0], [100.0, -100.0, 7.0]])
    means = [[1.0, 3.0], [3.0, 1.0], [0.5, 0.5]]  # the third is dominated
    children = propose(vectors, means, REFERENCE, 200, step=0.0, draws=draws())
    along = children[:, 0] / 4.0
    np.testing.assert_allclose(children, along[:, None] * vectors[1], rtol=0, atol=1e-12)
    assert -REACH <= along.min() < -0.1 and 1.1 < along.max() <= 1 + REACH
    assert along.mean() == pytest.approx(0.5, abs=0.1) and along.std() == pytest.approx(1.5 / 12**0.5, abs=0.06)


def test_a_single_parent_is_varied_by_the_step():
    children = propose([[1.0, 2.0]], [[1.0, 1.0]], REFERENCE, 4000, step=0.3, draws=draws())
    np.testing.assert_allclose(children.mean(axis=0), [1.0, 2.0], atol=0.02)
    np.testing.assert_allclose(children.std(axis=0), 0.3, atol=0.02)


def test_a_quadratic_is_found_again():
    generator = np.random.default_rng(3)
    vectors, at = generator.normal(size=(200, 3)), generator.normal(size=(50, 3))

    def means(x):
        return np.stack([1 + x @ [1, -2, 0.5] - x[:, 0] * x[:, 1], 5 - (x**2).sum(axis=1)], axis=1)

    np.testing.assert_allclose(quadratic_fit(vectors, means(vectors), at), means(at), atol=0.1)


def test_a_number_or_a_score_that_does_not_vary_is_no_division_by_zero():
    vectors = np.column_stack([np.linspace(0, 1, 20), np.full(20, 3.0)])
    found = quadratic_fit(vectors, np.column_stack([vectors[:, 0], np.full(20, 7.0)]), [[0.5, 3.0]])
    np.testing.assert_allclose(found, [[0.5, 7.0]], atol=0.01)


def test_what_does_not_vary_is_not_divided_by_rounding():
    """The deviation of 20 times 0.3 comes out as 6e-17: a child at 0.4 was 2e15 of these away."""
    vectors = np.column_stack([np.linspace(0, 1, 20), np.full(20, 0.3)])
    found = quadratic_fit(vectors, np.column_stack([vectors[:, 0], np.full(20, 0.7)]), [[0.5, 0.4]])
    np.testing.assert_allclose(found, [[0.5, 0.7]], atol=0.01)


def test_the_fit_chooses_children_that_add_most():
    """On a known landscape, what is chosen from many children adds more than children that are not chosen."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(40, 2))

    def means(x):  # two hills
        return np.stack([4 - ((x - [1, 0]) ** 2).sum(axis=1), 4 - ((x - [-1, 0]) ** 2).sum(axis=1)], axis=1)

    known = means(vectors)

    def gain(children):
        return hypervolume(np.vstack([known, means(children)]), REFERENCE) - hypervolume(known, REFERENCE)

    chosen = [gain(propose(vectors, known, REFERENCE, 4, step=0.3, draws=draws(seed))) for seed in range(20)]
    few = vectors[:5], known[:5]  # too few for a fit: the first children are taken
    first = [gain(propose(*few, REFERENCE, 4, step=0.3, draws=draws(seed))) for seed in range(20)]
    assert np.mean(chosen) > 3 * np.mean(first) and POOL > 1


def test_the_same_draws_propose_the_same():
    vectors, means = np.arange(12.0).reshape(4, 3), [[1, 4], [2, 3], [3, 2], [4, 1]]
    one, two = (propose(vectors, means, REFERENCE, 5, step=0.1, draws=draws(9)) for _ in range(2))
    assert np.array_equal(one, two) and one.shape == (5, 3)


def test_the_best_subset_adds_most_first_and_leaves_out_what_adds_nothing():
    means = [[1.0, 1.0], [3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.5, 0.5], [-1.0, 9.0]]
    assert best_subset(means, REFERENCE, 1) == [2]  # 4 against 3
    assert best_subset(means, REFERENCE, 9) == [1, 2, 3]
    assert best_subset([[-1.0, -1.0]], REFERENCE, 3) == []
