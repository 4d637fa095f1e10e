"""The bootstrap against a plain loop over the same resampled prompts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import (
    bootstrap,
    bootstrap_hypervolumes,
    bootstrap_means,
    hypervolume,
    interval,
    probability_positive,
)
from rlhf_lines.pareto.bootstrap import mean_interval


def resampled_prompts(prompts, resamples, seed):
    generator = np.random.Generator(np.random.PCG64(seed))
    return [generator.integers(prompts, size=prompts) for _ in range(resamples)]


@pytest.fixture
def scores():
    return np.random.default_rng(1).normal(size=(4, 13, 2)) * [1.0, 50.0]


def test_bootstrap_means_are_those_of_a_loop(scores):
    means = bootstrap_means(scores, resamples=50, seed=5)
    assert means.shape == (50, 4, 2)
    for r, draw in enumerate(resampled_prompts(13, 50, 5)):
        for i in range(4):
            for k in range(2):
                expected = sum(float(scores[i, p, k]) for p in draw) / 13
                assert means[r, i, k] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_bootstrap_means_keep_float32_scores_exact():
    # 1 + 2^-20 is a float32, but the sum of 1000 of them is not: float64 sums it without an error.
    value = np.float32(1 + 2**-20)
    means = bootstrap_means(np.full((1, 1000, 1), value, dtype=np.float32), resamples=10, seed=0)
    assert (means == float(value)).all()


def test_resamples_are_shared_by_points_and_independent_of_their_order(scores):
    means = bootstrap_means(scores, resamples=20, seed=2)
    np.testing.assert_allclose(bootstrap_means(scores[::-1], resamples=20, seed=2), means[:, ::-1], rtol=1e-12)
    np.testing.assert_allclose(bootstrap_means(scores[:1] + 1, resamples=20, seed=2), means[:, :1] + 1, rtol=1e-10)
    assert not np.allclose(bootstrap_means(scores, resamples=20, seed=3), means)


def test_bootstrap_hypervolumes_are_those_of_each_resample(scores):
    means = bootstrap_means(scores, resamples=30, seed=0)
    reference = [-1.0, -40.0]
    expected = [hypervolume(resample, reference) for resample in means]
    assert len(set(expected)) == 30
    assert bootstrap_hypervolumes(means, reference).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("points", [1, 2, 40])
def test_areas_are_those_of_moocore(points):
    means = np.random.default_rng(points).normal(size=(200, points, 2)).round(1)  # with ties, and below the reference
    expected = [hypervolume(resample, [-0.5, 0.1]) for resample in means]
    lengths = [hypervolume(resample[:, :1], [0.1]) for resample in means]
    assert bootstrap_hypervolumes(means[..., :1], [0.1]).tolist() == pytest.approx(lengths, rel=1e-12, abs=1e-15)
    assert bootstrap_hypervolumes(means, [-0.5, 0.1]).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_interval_is_the_percentile_interval():
    # 0..1000 at 95 %: 2.5 % of 1000 from either end.
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
    assert interval(np.arange(1001.0)[::-1], confidence=0.8) == pytest.approx((100.0, 900.0))
    with pytest.raises(ValueError, match="confidence is 95"):
        interval([0.0, 1.0], confidence=95)


def test_the_interval_of_a_mean_has_the_width_of_the_normal_approximation():
    scores = np.random.default_rng(0).normal(3.0, 2.0, size=(1, 400, 1))
    low, high = interval(bootstrap_means(scores, resamples=4000, seed=0)[:, 0, 0])
    half_width = 1.96 * scores.std() / np.sqrt(400)
    assert low == pytest.approx(scores.mean() - half_width, abs=0.02)
    assert high == pytest.approx(scores.mean() + half_width, abs=0.02)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("prompts", [2, 10, 49, 50, 400])
def test_the_interval_of_a_mean_is_stretched_below_50_prompts(prompts, confidence):
    samples = np.random.default_rng(prompts).gamma(2.0, size=999)
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    factor = stats.t.ppf(1 - tail, prompts - 1) / stats.norm.ppf(1 - tail) * np.sqrt(prompts / (prompts - 1))
    assert factor > 1
    expected = (low, high) if prompts >= 50 else (1.9 + factor * (low - 1.9), 1.9 + factor * (high - 1.9))
    assert mean_interval(samples, 1.9, prompts, confidence) == pytest.approx(expected, rel=1e-12)


def test_the_mean_of_few_normal_scores_has_the_width_of_students_interval():
    """The bootstrap's variance lacks a factor P / (P - 1), and its quantiles are normal ones: both are made up for."""
    scores = stats.norm.ppf((np.arange(30) + 0.5) / 30)[None, :, None]
    low, high = mean_interval(bootstrap_means(scores, 20_000, 0)[:, 0, 0], 0.0, 30)
    reach = stats.t.ppf(0.975, 29) * scores.std(ddof=1) / np.sqrt(30)
    assert (low, high) == pytest.approx((-reach, reach), rel=0.02)


def test_the_mean_of_one_prompt_has_no_interval():
    assert mean_interval([2.0, 2.0], 2.0, 1) == (None, None)


def test_ties_count_half():
    assert probability_positive([-2.0, -1.0, 0.0, 0.0, 3.0]) == pytest.approx((1 + 0.5 * 2) / 5)
    assert probability_positive(np.zeros(4)) == 0.5


def test_scores_have_three_axes_and_no_empty_one():
    with pytest.raises(ValueError, match="expected \\[points, prompts, rewards\\]"):
        bootstrap_means([[1.0, 2.0]])
    with pytest.raises(ValueError, match="at least one of each"):
        bootstrap_means(np.zeros((2, 0, 2)))


def test_shared_counts_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        bootstrap.bootstrap_counts(5, 3, 0)[0, 0] = 9.0


def test_inputs_are_not_changed(scores):
    frozen = scores.copy()
    means = bootstrap_means(scores, resamples=5, seed=0)
    means_before = means.copy()
    bootstrap_hypervolumes(means, [-9.0, -99.0])
    interval(means[:, 0, 0])
    np.testing.assert_array_equal(scores, frozen)
    np.testing.assert_array_equal(means, means_before)
