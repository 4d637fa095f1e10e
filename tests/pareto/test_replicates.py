"""The mean over runs: its variance by formulas in plain loops, its limits, and what resampled prompts share."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.replicates import LEAST_P, Part, RunsMean, check_sizes, holm, mean_over_runs, shared_counts
from rlhf_lines.pareto.student import critical_value


def covariances(samples: np.ndarray, prompts: int) -> np.ndarray:
    """Between all runs, in plain loops; a bootstrap has 1 - 1/P of them."""
    runs, resamples = samples.shape
    found = np.zeros((runs, runs))
    for i, j in product(range(runs), repeat=2):
        found[i, j] = sum(
            (samples[i, r] - samples[i].mean()) * (samples[j, r] - samples[j].mean()) for r in range(resamples)
        )
    return found / resamples * prompts / (prompts - 1)


def correlated(runs: int, seed: int, resamples: int = 50) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=resamples), generator.normal(size=(runs, resamples))
    return generator.normal(size=runs) + 3.0, shared + 0.5 * own


def test_the_variance_is_that_of_runs_and_the_covariance_of_prompts():
    values, samples = correlated(4, seed=1)
    found = mean_over_runs(values, samples, prompts=30)
    between = sum((v - values.mean()) ** 2 for v in values) / 3
    covariance = covariances(samples, 30)
    shared = np.mean([covariance[i, j] for i, j in combinations(range(4), 2)])
    assert found.value == pytest.approx(values.mean())
    assert found.runs == pytest.approx((between / 4, 3))
    assert found.prompts == pytest.approx((shared, 29))
    reach = np.sqrt(critical_value(0.95, 3) ** 2 * between / 4 + critical_value(0.95, 29) ** 2 * shared)
    assert found.interval() == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_two_sides_are_a_difference_of_means_with_the_covariance_between_them():
    values, samples = correlated(5, seed=2)
    a, b = slice(0, 3), slice(3, 5)
    with pytest.raises(ValueError, match="got 3 runs against 2"):
        mean_over_runs(values[a], samples[a], prompts=30, against=(values[b], samples[b]))
    values, samples = correlated(7, seed=3)
    a, b = slice(0, 3), slice(3, 7)
    found = mean_over_runs(values[a], samples[a], prompts=30, against=(values[b], samples[b]))
    parts = [values[side].var(ddof=1) / n for side, n in ((a, 3), (b, 4))]
    c = covariances(samples, 30)
    within = [np.mean([c[i, j] for i, j in combinations(side, 2)]) for side in (range(3), range(3, 7))]
    across = np.mean([c[i, j] for i, j in product(range(3), range(3, 7))])
    assert found.value == pytest.approx(values[a].mean() - values[b].mean())
    assert found.runs.variance == pytest.approx(sum(parts))
    assert found.runs.degrees == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3))
    assert found.prompts.variance == pytest.approx(max(0.0, sum(within) - 2 * across), abs=1e-12)


def test_the_same_run_several_times_is_as_sure_as_the_run():
    _, samples = correlated(1, seed=4)
    found = mean_over_runs([2.0] * 3, np.repeat(samples, 3, axis=0), prompts=30)
    assert found.value == 2.0 and found.runs == (0.0, 1.0)
    assert found.prompts.variance == pytest.approx(samples.var() * 30 / 29)


def test_one_run_on_each_side_has_the_interval_of_their_difference():
    _, samples = correlated(2, seed=5)
    found = mean_over_runs([2.0], samples[:1], prompts=30, against=([0.5], samples[1:]))
    assert found.value == 1.5 and found.runs is None
    assert found.prompts.variance == pytest.approx((samples[0] - samples[1]).var() * 30 / 29)


def test_runs_with_nothing_in_common_have_no_part_of_prompts():
    """Signs that cancel in every pair: the covariance is exactly 0, or below, and then 0 too."""
    signs = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], float)
    assert mean_over_runs([1.0, 2.0, 4.0], signs, prompts=9).prompts.variance == pytest.approx(0.0, abs=1e-15)
    opposite = mean_over_runs([1.0, 2.0], [signs[0], -signs[0]], prompts=9)
    assert opposite.prompts.variance == 0.0 and opposite.runs == (0.25, 1)


def test_the_p_value_is_where_the_interval_ends_at_zero():
    for found in (RunsMean(1.0, Part(0.1, 2), Part(0.05, 99)), RunsMean(-3.0, None, Part(2.0, 40))):
        low, high = found.interval(1.0 - found.p_value())
        assert min(abs(low), abs(high)) < 1e-8
    assert RunsMean(1.0, Part(0.5, 1), Part(0.0, 9)).p_value() == pytest.approx(1 - 2 / np.pi * np.arctan(2**0.5))
    assert RunsMean(0.0, Part(0.5, 1), Part(0.1, 9)).p_value() == 1.0
    assert RunsMean(0.0, None, Part(0.0, 9)).p_value() == 1.0  # nothing differs and nothing varies
    assert RunsMean(1e-9, None, Part(0.0, 9)).p_value() == LEAST_P


def test_prompts_that_all_runs_have_are_drawn_alike_wherever_they_stand():
    texts = ["a", "b", "c", "d", "e"]
    one, other = shared_counts([texts, texts[::-1]], 40, seed=7)
    np.testing.assert_array_equal(one, bootstrap_counts(5, 40, 7))
    np.testing.assert_array_equal(other, one[:, ::-1])


def test_prompts_are_drawn_among_those_that_the_same_runs_have():
    shared = [f"s{i}" for i in range(6)]
    one, other, apart = shared_counts([[*shared, "x", "y"], ["z", "v", "w", *shared], ["p", "q"]], 400, seed=0)
    np.testing.assert_array_equal(one[:, :6], other[:, 3:])
    assert (one[:, :6].sum(axis=1) == 6).all() and (one.sum(axis=1) == 8).all() and (other.sum(axis=1) == 9).all()
    assert (apart.sum(axis=1) == 2).all()
    assert abs(np.corrcoef(one[:, 6], apart[:, 0])[0, 1]) < 0.2 and abs(np.corrcoef(one[:, 6], one[:, 0])[0, 1]) < 0.2


def test_p_values_are_adjusted_by_holm():
    """By the definition: the smallest level at which the stepwise test refuses."""

    def refused(p_values, level):
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        out = set()
        for rank, i in enumerate(order):
            if p_values[i] > level / (len(p_values) - rank):
                break
            out.add(i)
        return out

    p_values = [0.012, 0.6, 0.011, 0.04, 0.9]
    adjusted = holm(p_values)
    for level in np.linspace(0.001, 0.999, 999) + 1e-7:
        assert refused(p_values, level) == {i for i, p in enumerate(adjusted) if p <= level}
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.7, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (2, 3), (4, 1)])
def test_numbers_of_runs_whose_spread_is_not_known_are_refused(sizes):
    with pytest.raises(ValueError, match="got "):
        check_sizes(*sizes)


def test_other_numbers_of_runs_are_not():
    for sizes in [(2,), (10,), (1, 1), (2, 2), (3, 5)]:
        check_sizes(*sizes)
