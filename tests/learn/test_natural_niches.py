"""The archive and the crossover against the authors' code; attraction and a search by hand."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines.learn.natural_niches import attraction, crossover, evolve_niches, fitness, updated
from tests.learn.reference import CASES, FOLDER, ORIGIN
from tests.merge.reference import tensors


def test_reference_files_are_the_recorded_ones():
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.safetensors")}
    assert found == ORIGIN["sha256"]


def test_the_archive_is_that_of_the_authors():
    case = CASES["m2n2_update_archive"]
    archive = [np.array(row) for row in case["params"]["initial_archive"]]
    scores = np.array(case["params"]["initial_scores"])
    for step in case["sequence"]:
        archive, scores = updated(
            archive, scores, np.array(step["child"]), np.array(step["child_score"]), step["alpha"]
        )
        np.testing.assert_allclose(np.stack(archive), step["archive_after"], rtol=1e-12)
        np.testing.assert_allclose(scores, step["scores_after"], rtol=1e-12)


def test_the_crossover_is_that_of_the_authors():
    case = CASES["m2n2_crossover_n2_w0.35_s3000"]

    def flat(weights) -> np.ndarray:
        return torch.cat([weights[name].flatten() for name in sorted(weights)]).double().numpy()

    params = case["params"]
    got = crossover(flat(tensors("model_ft0")), flat(tensors("model_ft1")), params["w"], params["split_point"])
    assert len(got) == params["d"]
    np.testing.assert_allclose(got, flat(load_file(FOLDER / case["file"])), **case["tol"])


def test_vectors_in_one_direction_are_mixed_along_the_line():
    found = crossover(np.array([2.0, 2.0]), np.array([4.0, 4.0]), 0.25, 1)
    np.testing.assert_allclose(found, [2.5, 3.5])
    np.testing.assert_allclose(crossover(np.zeros(2), np.ones(2), 0.25, 1), [0.25, 0.75])


def test_fitness_and_attraction_by_hand():
    scores = np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    # z = 2, 2, 0: the first gets 1/2, the second 1/2 + 1; on the third prompt nobody gets anything.
    assert fitness(scores).tolist() == [0.5, 1.5]
    assert fitness(scores, alpha=0.0).tolist() == [1.0, 3.0]
    assert attraction(scores, 0).tolist() == [0.0, 1.0]
    assert attraction(scores, 1).tolist() == [0.0, 0.0]


def test_a_search_measures_so_many_and_finds_better_ones():
    asked = []

    def evaluate(vectors):
        asked.append(list(vectors))
        # Two prompts that want different numbers.
        return [np.exp(-((np.array([vector[0] - 2.0, vector[1] + 1.0])) ** 2)) for vector in vectors]

    draws = np.random.default_rng(1)
    first = [draws.normal(size=2) for _ in range(6)]
    evolve_niches(evaluate, first, count=60, size=6, children=3, seed=2)
    assert list(map(len, asked)) == [6, *[3] * 18]
    found = [vector for vectors in asked[:19] for vector in vectors]
    best = [max(one.sum() for one in evaluate(vectors)) for vectors in (asked[0], found)]
    assert best[1] >= best[0]
    again = []
    evolve_niches(lambda v: again.append(list(v)) or evaluate(v), first, count=60, size=6, children=3, seed=2)
    assert all(
        np.array_equal(a, b) for one, two in zip(asked, again, strict=False) for a, b in zip(one, two, strict=True)
    )


def test_the_rest_of_the_candidates_are_fewer_children():
    sizes = []

    def evaluate(vectors):
        sizes.append(len(vectors))
        return [np.ones(2)] * len(vectors)

    evolve_niches(evaluate, [np.ones(3), np.arange(3.0)], count=7, size=4, children=2)
    assert sizes == [2, 2, 2, 1]


def test_a_child_as_fit_as_the_least_fit_does_not_take_its_place():
    archive, scores = [np.array([0.0]), np.array([1.0])], np.array([[1.0, 1.0], [2.0, 2.0]])
    same = updated(archive, scores, np.array([2.0]), np.array([1.0, 1.0]))
    assert [one.item() for one in same[0]] == [0.0, 1.0] and same[1].tolist() == scores.tolist()
    fitter = updated(archive, scores, np.array([2.0]), np.array([1.0, 1.5]))
    assert [one.item() for one in fitter[0]] == [2.0, 1.0]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_ends_of_the_arc_are_the_parents(ratio):
    first, second = np.array([1.0, 0.0, 2.0]), np.array([0.0, 3.0, 1.0])
    found = crossover(first, second, ratio, 3)
    np.testing.assert_allclose(found, second if ratio else first, atol=1e-12)
