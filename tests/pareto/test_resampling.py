"""Intervals of scores: of shares where they are answers, none where they hold nothing, else from resamples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.intervals import share_estimate
from rlhf_lines.pareto.resampling import Resampling


RESAMPLING = Resampling(resamples=200, seed=3)


def column(others, mode=0.0, prompts=60):
    return np.array([*others, *[mode] * (prompts - len(others))])


def interval(values):
    found = RESAMPLING.scores({"score": values})["score"]
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-14)
    return found["low"], found["high"]


@pytest.mark.parametrize("values", [column([]), column([], 1.0), column([1.0]), column([1.0] * 40)])
def test_scores_of_0_and_1_are_answers(values):
    assert interval(values) == share_estimate(values)[1:3]


@pytest.mark.parametrize(
    "values",
    [
        column([0.3]),
        column([0.3, 0.9] * 4),
        column([0.25] * 9, 1.0),
        column([0.3] * 10),
        column([0.3] * 25, 1.0),
    ],
)
def test_parts_of_which_most_are_0_or_1_have_the_interval_of_a_share(values):
    assert interval(values) == share_estimate(values, answers=False)[1:3]


def agresti_coull(values, confidence=0.95):
    """Written out in float64, of prompt means of answers."""
    p, prompts, t = values.mean(), len(values), stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    n = p * (1 - p) / (values.var(ddof=1) / prompts)
    q = (p * n + t**2 / 2) / (n + t**2)
    reach = t * np.sqrt(q * (1 - q) / (n + t**2))
    return max(0.0, q - reach), min(1.0, q + reach)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97])
def test_means_of_answers_over_samples_have_one_interval_whatever_the_share(share):
    values = np.random.default_rng(5).binomial(4, share, size=60) / 4
    found = RESAMPLING.scores({"correct": values, "other": values}, answers=["correct"])
    assert (found["correct"]["low"], found["correct"]["high"]) == pytest.approx(agresti_coull(values), rel=1e-9)
    if share in (0.3, 0.5):  # as scores that lie between 0 and 1 it is not sparse
        resampled = RESAMPLING.means({"other": values})["other"]
        assert found["other"] == resampled != found["correct"]


def test_a_point_whose_scores_happen_to_be_0_and_1_has_the_interval_of_the_others():
    """Of a score that may be -1, too: a single point does not show it, the run does."""
    values = np.random.default_rng(5).binomial(1, 0.5, size=60).astype(float)
    found, resampled = RESAMPLING.scores({"": values}, answers=[])[""], RESAMPLING.means({"": values})[""]
    assert found == resampled != RESAMPLING.scores({"": values})[""]
    assert interval(values) == pytest.approx(agresti_coull(values), rel=1e-9)


@pytest.mark.parametrize(
    "values", [column([0.3] * 9, -1.0), column([1.5]), column([0.3], 0.5), column([], 7.0), column([-0.1] * 9)]
)
def test_other_sparse_scores_have_none(values):
    assert interval(values) == (None, None)


@pytest.mark.parametrize(
    "values",
    [column([0.3] * 10, -1.0), column([1.3] * 10), np.arange(8.0), np.random.default_rng(0).normal(size=60)],
)
def test_what_has_enough_values_is_resampled(values):
    found = RESAMPLING.means({"score": values})["score"]
    assert interval(values) == (found["low"], found["high"])


def test_a_front_is_told_which_scores_are_answers(make_points):
    points, draws = make_points(prompts=60), np.random.default_rng(2)
    for point in points:
        point["scores"][:, 1], point["metrics"] = (
            draws.binomial(2, 0.5, size=60) / 2,
            {"right": draws.binomial(2, 0.4, size=60) / 2},
        )
    options = {"rewards": ["a", "b"], "metrics": ["right"], "split": "test", "seed": 0, "resamples": 20}
    front = build_front(points=points, answers=["b", "right"], **options)
    for point, entry in zip(points, front["points"], strict=True):
        of = {
            "b": (entry["scores"]["b"], point["scores"][:, 1]),
            "right": (entry["metrics"]["right"], point["metrics"]["right"]),
        }
        for found, values in of.values():
            assert (found["low"], found["high"]) == pytest.approx(agresti_coull(values), rel=1e-9)


def test_a_front_has_them_for_objectives_and_metrics_and_its_kl_is_no_score(make_points):
    points = make_points(prompts=60)
    for point in points:
        point["scores"][:, 1] = column([1.0] * point["id"])
        point["kl"] = column([])
        point["metrics"] = {"format": column([1.0]), "rare": column([3.0]), "log_ratio": column([])}
    front = build_front(
        rewards=["a", "b"], metrics=["format", "rare"], split="test", seed=0, points=points, resamples=20
    )
    for point in front["points"]:
        assert (point["scores"]["b"]["low"], point["scores"]["b"]["high"]) == share_estimate(
            column([1.0] * point["id"])
        )[1:3]
        assert point["metrics"]["format"]["high"] == share_estimate(column([1.0])).high
        assert point["metrics"]["rare"] == {"mean": pytest.approx(0.05), "low": None, "high": None}
        assert point["kl"] == point["metrics"]["log_ratio"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
