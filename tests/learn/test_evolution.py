"""CMA-ES on a function whose maximum is known, and what makes a run repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.learn.evolution import evolve


TARGET = np.array([0.3, -0.8, 1.5, 0.1])


class Watched:
    """A bowl around the target that is 100 times as steep in one direction, and the vectors that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[float, ...]]] = []

    def __call__(self, vectors):
        self.asked.append(list(vectors))
        return [-float(((np.array(vector) - TARGET) ** 2 * [1, 1, 100, 1]).sum()) for vector in vectors]


def searched(**changes) -> Watched:
    watched = Watched()
    evolve(watched, [1.0] * 4, **{"step": 0.3, "count": 601, "population": 10, "seed": 3, **changes})
    return watched


def test_the_maximum_is_found():
    asked = searched().asked
    np.testing.assert_allclose(asked[-1][0], TARGET, atol=1e-3)


def test_generations_are_whole_and_the_mean_comes_last():
    assert list(map(len, searched(count=36).asked)) == [10, 10, 10, 1]
    assert sum(map(len, searched(count=36, population=None).asked)) == 4 * 8 + 1  # 4 + 3 ln 4 = 8


def test_the_same_seed_asks_for_the_same_vectors_and_leaves_numpys_generator_alone():
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is watched
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = searched(count=31), searched(count=31), searched(count=31, seed=4)
    assert first.asked == again.asked != other.asked
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_too_few_candidates_are_named():
    with pytest.raises(
        ValueError, match="num_candidates is 10, expected at least 11: a generation of 10, and its mean"
    ):
        searched(count=10)
