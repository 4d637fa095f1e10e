"""Intervals and p-values against the textbook's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import Estimate, holm, mean_estimate, paired_difference
from rlhf_lines.pareto.intervals import share_estimate


# "Student" (1908), Cushny and Peebles' hours of sleep gained by two drugs on ten patients: the paired difference is
# 1.58 hours, its standard deviation 1.23, t = 4.062, p = 0.00283.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_the_sleep_of_students_patients():
    gained = paired_difference(SECOND, FIRST)
    assert gained.value == pytest.approx(1.58)
    assert (gained.low, gained.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert gained.p_value == pytest.approx(0.00283289, abs=1e-7)
    assert gained == mean_estimate(np.subtract(SECOND, FIRST))


def test_the_p_value_inverts_the_interval():
    values = np.random.default_rng(0).normal(0.3, 1.0, 40)
    p_value = mean_estimate(values).p_value
    edge = mean_estimate(values, confidence=1 - p_value)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0.0, abs=1e-10)


def test_values_without_spread_and_one_prompt():
    assert mean_estimate([0.1] * 7) == Estimate(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 0.0)
    assert paired_difference([0.3, 0.7], [0.3, 0.7]) == Estimate(0.0, 0.0, 0.0, 1.0)
    assert mean_estimate([2.0]) == Estimate(2.0, None, None, None)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("chance", [0.02, 0.5, 0.97])
def test_the_ends_of_a_share_solve_wilsons_equation(chance, samples, confidence):
    """|p - q| = t sqrt(q (1 - q) / n), n as many answers as have the spread of the mean."""
    values = (np.random.default_rng(7).random((60, samples)) < chance).mean(axis=1)
    found, share = share_estimate(values, confidence), values.mean()
    answers = share * (1 - share) / (values.var(ddof=1) / 60)
    if samples == 1:  # of yes or no, one less than there are prompts
        assert answers == pytest.approx(59, rel=1e-12)
    t = stats.t.ppf((1 + confidence) / 2, 59)
    assert found.value == share and found.p_value is None
    assert 0 < found.low < share < found.high < 1
    for end in (found.low, found.high):
        assert abs(share - end) == pytest.approx(t * np.sqrt(end * (1 - end) / answers), rel=1e-10)


@pytest.mark.parametrize("prompts", [2, 10, 400])
def test_a_share_of_none_or_of_all_has_an_interval_that_reaches_inwards(prompts):
    w = stats.t.ppf(0.975, prompts - 1) ** 2 / prompts
    none, every, half = (share_estimate(np.full(prompts, share)) for share in (0.0, 1.0, 0.5))
    assert none == (0.0, 0.0, pytest.approx(w / (1 + w), rel=1e-12), None)
    assert every == (1.0, pytest.approx(1 / (1 + w), rel=1e-12), 1.0, None)
    reach = 0.5 * np.sqrt(w / (1 + w))
    assert half[1:3] == pytest.approx((0.5 - reach, 0.5 + reach), rel=1e-12)


def test_a_share_and_its_rest_have_intervals_that_mirror():
    values = np.random.default_rng(1).integers(5, size=80) / 4
    found, rest = share_estimate(values), share_estimate(1 - values)
    assert (1 - rest.high, 1 - rest.low) == pytest.approx((found.low, found.high), rel=1e-12)


def test_a_share_of_one_prompt_has_no_interval_and_others_are_refused():
    assert share_estimate([0.25]) == (0.25, None, None, None)
    for wrong in ([], [[0.5]], [0.5, 1.1], [-0.1, 0.5], [np.nan, 0.5]):
        with pytest.raises(ValueError, match="a share from 0 to 1 per prompt"):
            share_estimate(wrong)


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, and never less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, None, 0.9]) == [0.4, None, 0.9]
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"shape \(3,\) and \(2,\)"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"values of shape \(0,\)"):
        mean_estimate([])
