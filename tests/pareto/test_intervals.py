"""Intervals and p-values against the textbook's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import Estimate, holm, mean_estimate, paired_difference
from rlhf_lines.pareto.intervals import deviation, paired_share_difference, share_estimate


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


@pytest.mark.parametrize("differ", [1, 9, 10])
def test_where_few_prompts_differ_a_difference_has_no_interval(differ):
    a, b = np.zeros(60), np.r_[np.ones(differ), np.zeros(60 - differ)]
    found = paired_difference(b, a)
    assert found.value == differ / 60
    assert found == mean_estimate(b) if differ == 10 else found[1:] == (None, None, None)


def test_the_deviation_of_one_number_is_0_and_not_what_rounding_leaves():
    values = np.column_stack([np.full(200, 0.3), np.arange(200.0)])
    assert values[:, 0].std() > 0
    np.testing.assert_array_equal(deviation(values), [0.0, values[:, 1].std()])
    assert deviation(values[:, 1], ddof=1) == values[:, 1].std(ddof=1)


def of_more_answers(share, answers, t):
    """The ends of a share of that many answers and t^2 more, half of them yes: mean -+ t sd / sqrt of their number."""
    total = answers + t**2
    middle = (share * answers + t**2 / 2) / total
    return middle - t * np.sqrt(middle * (1 - middle) / total), middle + t * np.sqrt(middle * (1 - middle) / total)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_ends_of_a_share_are_those_of_more_answers(chance, samples, confidence):
    """n is as many answers as have the spread of the mean."""
    values = (np.random.default_rng(7).random((60, samples)) < chance).mean(axis=1)
    found, share = share_estimate(values, confidence), values.mean()
    answers = share * (1 - share) / (values.var(ddof=1) / 60)
    if samples == 1:  # of yes or no, one less than there are prompts
        assert answers == pytest.approx(59, rel=1e-12)
    assert found.value == share and found.p_value is None
    assert 0 < found.low < share < found.high < 1
    ends = of_more_answers(share, answers, stats.t.ppf((1 + confidence) / 2, 59))
    assert found[1:3] == pytest.approx(ends, rel=1e-10)


@pytest.mark.parametrize("prompts", [50, 100, 400])
def test_an_interval_of_a_share_holds_any_share(prompts):
    """Of all counts of yes among the prompts, weighed by how often they come: exactly, where nothing is simulated."""
    counts = np.arange(prompts + 1)
    ends = np.array([share_estimate(np.arange(prompts) < count)[1:3] for count in counts])
    for share in np.linspace(0.003, 0.5, 300):
        held = (ends[:, 0] <= share) & (share <= ends[:, 1])
        assert stats.binom.pmf(counts, prompts, share)[held].sum() > 0.94


@pytest.mark.parametrize("prompts", [2, 10, 400])
def test_a_share_of_none_or_of_all_has_an_interval_that_reaches_inwards(prompts):
    t = stats.t.ppf(0.975, prompts - 1)
    none, every, half = (share_estimate(np.full(prompts, share)) for share in (0.0, 1.0, 0.5))
    high = of_more_answers(0.0, prompts, t)[1]
    assert none == (0.0, 0.0, pytest.approx(min(1.0, high), rel=1e-12), None)
    assert every == (1.0, pytest.approx(max(0.0, 1 - high), rel=1e-12), 1.0, None)
    assert half[1:3] == pytest.approx(of_more_answers(0.5, prompts, t), rel=1e-12)


def test_a_share_and_its_rest_have_intervals_that_mirror():
    values = np.random.default_rng(1).integers(5, size=80) / 4
    found, rest = share_estimate(values), share_estimate(1 - values)
    assert (1 - rest.high, 1 - rest.low) == pytest.approx((found.low, found.high), rel=1e-12)


def test_sparse_parts_count_as_answers_of_one_a_prompt():
    """Of 60 prompts three have a part of 0.3: as many answers as its spread is worth would be 3.4 a prompt."""
    values = np.array([0.3] * 3 + [0.0] * 57)
    found, share = share_estimate(values, answers=False), 0.015
    assert found.high == pytest.approx(of_more_answers(share, 60, stats.t.ppf(0.975, 59))[1], rel=1e-10)
    narrow = share_estimate(values)
    assert 0.0 == found.low < narrow.low < share < narrow.high < found.high
    dense = np.array([0.3] * 10 + [0.0] * 50)
    assert share_estimate(dense, answers=False) == share_estimate(dense)


def test_a_difference_of_paired_shares_is_of_both_intervals():
    """Of 51 pairs with counts 36, 12, 2 and 1; n of the shares is one less than there are pairs.

    The ends of both are those of a share, and phi is made of the four counts.
    """
    a = np.array([1.0] * 36 + [1.0] * 12 + [0.0] * 2 + [0.0])
    b = np.array([1.0] * 36 + [0.0] * 12 + [1.0] * 2 + [0.0])
    p, q = 48 / 51, 38 / 51
    phi = (36 * 1 - 12 * 2) / np.sqrt(48 * 3 * 38 * 13)
    (low_a, high_a), (low_b, high_b) = (np.clip(of_more_answers(x, 50, stats.t.ppf(0.975, 50)), 0, 1) for x in (p, q))
    low = p - q - np.sqrt((p - low_a) ** 2 - 2 * phi * (p - low_a) * (high_b - q) + (high_b - q) ** 2)
    high = p - q + np.sqrt((high_a - p) ** 2 - 2 * phi * (high_a - p) * (q - low_b) + (q - low_b) ** 2)
    found = paired_share_difference(a, b)
    assert found == (pytest.approx(p - q), pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9), None)
    turned = paired_share_difference(b, a)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=1e-12)


def test_shares_that_differ_nowhere_have_an_interval_and_stay_within_what_can_be():
    generator = np.random.default_rng(4)
    for chance in (0.0, 0.01, 0.5, 1.0):
        a, b = (generator.random((2, 40, 3)) < [[[chance]], [[1 - chance]]]).mean(axis=2)
        found = paired_share_difference(a, b)
        assert -1.0 <= found.low <= found.value <= found.high <= 1.0 and found.low < found.high
        same = paired_share_difference(a, a)
        assert same.value == 0.0 and same.low <= 0.0 <= same.high
    assert paired_share_difference([0.5], [0.25]) == (0.25, None, None, None)
    with pytest.raises(ValueError, match="expected one per prompt, the same prompts"):
        paired_share_difference([0.5, 0.5], [0.5])


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
