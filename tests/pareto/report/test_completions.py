"""Which completions a page holds, and how they are stored in it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from rlhf_lines.pareto.report import Completions, evenly_spaced
from rlhf_lines.pareto.report.completions import columns, fitting, score_spreads


@pytest.mark.parametrize("room", [0, 1, 6, 7, 99])
def test_as_many_prompts_as_fit(room):
    completions = Completions([str(i) for i in range(7)], 7, {}, {}, {}, {})
    assert len(fitting(completions, lambda some: len(some.prompts), room).prompts) == min(room, 7)


@pytest.mark.parametrize(("total", "count"), [(400, 399), (400, 7), (5, 5), (5, 1), (0, 3), (3, 0)])
def test_evenly_spaced_indices_are_distinct_and_apart_by_their_share(total, count):
    indices = evenly_spaced(total, count)
    assert len(set(indices)) == len(indices) == min(total, count)
    assert all(abs(b - a - total / count) <= 1 for a, b in itertools.pairwise(indices))
    assert all(0 <= i < total for i in indices)


def test_a_text_is_stored_once_and_points_share_their_spec():
    completions = Completions(
        prompts=["p", "q"],
        total=9,
        spec_of={4: 70, 5: 70, 6: 80},
        texts={70: [["a", "b"], ["a", None]], 80: [["b", "c"], ["a", "a"]], 90: [["never read"], [""]]},
        kl={70: [[0.123456, float("nan")], [0, None]], 80: [[1, 2], [3, 4]], 90: [[0], [0]]},
        scores={"r": {70: [[1, 2], [3, None]], 80: [[5, 6], [7, 123456.0]], 90: [[0], [0]]}},
    )
    assert columns(completions, {"not read": 1, "r": 0}, 3, {"r": 2.5}) == {
        "prompts": ["p", "q"],
        "asked": [],
        "spec_of": {"4": 0, "5": 0, "6": 1},
        "texts": ["a", "b", "c"],
        "written": [[[0, 1], [0, None]], [[1, 2], [0, 0]]],
        "measures": [
            {"texts": ["1", "2", "3", "5", "6", "7", "123500"], "ranks": [[[0, 1], [2, None]], [[3, 4], [5, 6]]]}
            | {"spread": 2.5},
            {
                "texts": ["0.000", "0.123", "1.000", "2.000", "3.000", "4.000"],
                "ranks": [[[1, None], [0, None]], [[2, 3], [4, 5]]],
            },
        ],
    }


def test_the_spread_of_a_score_is_that_of_the_means_of_one_spec_over_prompts():
    """As in `lost_most`, by whose losses the page sorts."""
    scores = {
        "r": {1: [[0.0, 2.0], [5.0, None]], 2: [[7.0, 7.0], [7.0, 7.0]]},
        "huge": {1: [[1e300], [-1e300]], 2: [[0], [0]]},
        "same": {1: [[0.3]] * 200, 2: [[0.3]] * 200},
    }
    completions = Completions(["p", "q"], 2, {}, {}, {}, scores)
    assert score_spreads(completions, 1) == {"r": 2.0, "huge": 1.0, "same": 1.0}  # |1 - 5| / 2
    assert score_spreads(completions, 2)["r"] == 1.0
    assert score_spreads(completions, None)["r"] == pytest.approx(np.std([1.0, 5.0, 7.0, 7.0]))


def test_what_was_asked_stays_beside_its_prompt_and_is_left_out_where_it_is_the_prompt():
    completions = Completions([f"say: {i}" for i in range(4)], 4, {}, {}, {}, {}, asked=[f"…{i}" for i in range(4)])
    assert columns(completions.some([1, 3]), {}, 3)["asked"] == ["…1", "…3"]
    assert columns(replace(completions, asked=completions.prompts), {}, 3)["asked"] == []
