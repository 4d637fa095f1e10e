"""The mean over runs: its variance by formulas in plain loops, its limits, and what resampled prompts share."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.corrected import Corrected, Hypervolume, correct, resampled_noise
from rlhf_lines.pareto.replicates import LEAST_P, Part, RunsMean, check_sizes, mean_over_runs, shared_counts
from rlhf_lines.pareto.student import critical_value


def measured(corrected, samples, *, prompts=30, correction=0.0) -> list[Corrected]:
    """Runs with these corrected numbers, each `correction` below its plain value."""
    pairs = zip(corrected, samples, strict=True)
    return [Corrected(v + correction, float(v), np.asarray(s), prompts, is_difference=True) for v, s in pairs]


def covariances(samples: np.ndarray) -> np.ndarray:
    """Between all runs, in plain loops."""
    runs, resamples = samples.shape
    found = np.zeros((runs, runs))
    for i, j in product(range(runs), repeat=2):
        found[i, j] = sum(
            (samples[i, r] - samples[i].mean()) * (samples[j, r] - samples[j].mean()) for r in range(resamples)
        )
    return found / (resamples - 1)


def correlated(runs: int, seed: int, resamples: int = 50) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=resamples), generator.normal(size=(runs, resamples))
    return generator.normal(size=runs) + 3.0, shared + 0.5 * own


def test_the_variance_is_that_of_runs_and_the_covariance_of_prompts():
    values, samples = correlated(4, seed=1)
    found = mean_over_runs(measured(values, samples))
    between = sum((v - values.mean()) ** 2 for v in values) / 3
    covariance = covariances(samples)
    shared = np.mean([covariance[i, j] for i, j in combinations(range(4), 2)])
    assert found.value == found.corrected == pytest.approx(values.mean())
    assert found.runs == pytest.approx((between / 4, 3))
    assert found.prompts == pytest.approx((shared, 29))
    reach = np.sqrt(critical_value(0.95, 3) ** 2 * between / 4 + critical_value(0.95, 29) ** 2 * shared)
    assert found.estimate()[:3] == pytest.approx((values.mean(), values.mean() - reach, values.mean() + reach))


def test_the_interval_lies_around_the_corrected_mean():
    values, samples = correlated(3, seed=6)
    plain, found = (mean_over_runs(measured(values, samples, correction=c)) for c in (0.0, 0.3))
    assert found.value == pytest.approx(values.mean() + 0.3) and found.corrected == pytest.approx(values.mean())
    assert (found.runs, found.prompts, found.estimate()) == (plain.runs, plain.prompts, plain.estimate())


def test_two_sides_are_a_difference_of_means_with_the_covariance_between_them():
    values, samples = correlated(5, seed=2)
    with pytest.raises(ValueError, match="got 3 runs against 2"):
        mean_over_runs(measured(values[:3], samples[:3]), measured(values[3:], samples[3:]))
    values, samples = correlated(7, seed=3)
    a, b = slice(0, 3), slice(3, 7)
    found = mean_over_runs(measured(values[a], samples[a]), measured(values[b], samples[b], prompts=20))
    parts = [values[side].var(ddof=1) / n for side, n in ((a, 3), (b, 4))]
    c = covariances(samples)
    within = [np.mean([c[i, j] for i, j in combinations(side, 2)]) for side in (range(3), range(3, 7))]
    across = np.mean([c[i, j] for i, j in product(range(3), range(3, 7))])
    assert found.corrected == pytest.approx(values[a].mean() - values[b].mean())
    assert found.runs.variance == pytest.approx(sum(parts))
    assert found.runs.degrees == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3))
    assert found.prompts == pytest.approx((max(0.0, sum(within) - 2 * across), 19), abs=1e-12)


def test_the_same_run_several_times_is_as_sure_as_the_run():
    _, samples = correlated(1, seed=4)
    runs = measured([2.0], samples, correction=0.2) * 3
    found = mean_over_runs(runs)
    assert found.corrected == 2.0 and found.runs == (0.0, 1.0)
    assert found.prompts == pytest.approx((runs[0].standard_error ** 2, 29))
    assert found.estimate()[:3] == pytest.approx(runs[0].estimate()[:3])


def test_one_run_on_each_side_has_the_interval_of_their_difference():
    _, samples = correlated(2, seed=5)
    a, b = measured([2.0, 0.5], samples, correction=0.1)
    found = mean_over_runs([a], [b])
    assert found.corrected == 1.5 and found.runs is None
    assert found.estimate()[:3] == pytest.approx((a - b).estimate()[:3])
    assert found.estimate().p_value == pytest.approx((a - b).estimate().p_value)


def test_runs_with_nothing_in_common_have_no_part_of_prompts():
    """Signs that cancel in every pair: the covariance is exactly 0, or below, and then 0 too."""
    signs = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], float)
    assert mean_over_runs(measured([1.0, 2.0, 4.0], signs)).prompts.variance == pytest.approx(0.0, abs=1e-15)
    opposite = mean_over_runs(measured([1.0, 2.0], [signs[0], -signs[0]]))
    assert opposite.prompts.variance == 0.0 and opposite.runs == (0.25, 1)


def test_one_prompt_says_nothing_of_others():
    found = mean_over_runs(measured([1.0, 2.0], np.zeros((2, 9)), prompts=1))
    assert found.prompts is None and found.estimate() == (1.5, None, None, None)


def test_the_p_value_is_where_the_interval_ends_at_zero():
    def p_value(value: float, runs: Part | None, prompts: Part) -> float:
        return RunsMean(value, value, runs, prompts).estimate().p_value

    for value, *parts in ((1.0, Part(0.1, 2), Part(0.05, 99)), (-3.0, None, Part(2.0, 40))):
        _, low, high, _ = RunsMean(value, value, *parts).estimate(1.0 - p_value(value, *parts))
        assert min(abs(low), abs(high)) < 1e-7
    assert p_value(1.0, Part(0.5, 1), Part(0.0, 9)) == pytest.approx(1 - 2 / np.pi * np.arctan(2**0.5))
    assert p_value(0.0, Part(0.5, 1), Part(0.1, 9)) == 1.0
    assert p_value(0.0, None, Part(0.0, 9)) == 1.0  # nothing differs and nothing varies
    assert p_value(1e-9, None, Part(0.0, 9)) == LEAST_P


def test_prompts_that_all_runs_have_are_drawn_alike_wherever_they_stand():
    texts = ["a", "b", "c", "d", "e"]
    one, other = shared_counts([texts, texts[::-1]], 7, 40)
    np.testing.assert_array_equal(one, bootstrap_counts(5, 40, 7))
    np.testing.assert_array_equal(other, one[:, ::-1])


@pytest.mark.parametrize("shared", [0, 1, 5, 9])
def test_noise_has_the_covariance_of_means_by_the_prompts_that_runs_share(shared):
    """`sum over shared p of x_p y_p / sqrt(P (P - 1) Q (Q - 1))`, with x and y less their means; also of one prompt."""
    generator = np.random.default_rng(shared)
    texts = [[f"p{i}" for i in range(9)], [f"p{i}" for i in range(9 - shared, 20 - shared)][::-1]]
    scores = [generator.normal(size=len(some)) + 3.0 for some in texts]
    counts = shared_counts(texts, 1, 60_000)
    noise = [resampled_noise(s[None, :, None], c)[:, 0, 0] for s, c in zip(scores, counts, strict=True)]
    apart = [dict(zip(some, s - s.mean(), strict=True)) for some, s in zip(texts, scores, strict=True)]
    found = np.cov(noise)
    for i, j in product(range(2), repeat=2):
        sizes = math.prod(len(texts[k]) * (len(texts[k]) - 1) for k in (i, j))
        expected = sum(apart[i][text] * apart[j].get(text, 0.0) for text in texts[i]) / math.sqrt(sizes)
        unit = math.sqrt(scores[i].var() * scores[j].var()) / 10
        assert found[i, j] == pytest.approx(expected, abs=0.02 * unit)


def test_runs_with_the_same_prompts_are_corrected_as_each_alone():
    scores = np.random.default_rng(0).normal(size=(4, 20, 2)) + 1.0
    texts = [f"p{i}" for i in range(20)]
    measure = Hypervolume((0.0, 0.0))
    counts, _ = shared_counts([texts, texts], 3)
    alone, given = correct(scores, measure, 3), correct(scores, measure, counts=counts)
    assert given.corrected == alone.corrected and given.resampled.tolist() == alone.resampled.tolist()


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (2, 3), (4, 1)])
def test_numbers_of_runs_whose_spread_is_not_known_are_refused(sizes):
    with pytest.raises(ValueError, match="got "):
        check_sizes(*sizes)


def test_other_numbers_of_runs_are_not():
    for sizes in [(2,), (10,), (1, 1), (2, 2), (3, 5)]:
        check_sizes(*sizes)
