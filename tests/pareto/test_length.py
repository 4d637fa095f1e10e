"""Correlation with length and the score at matched length, against numpy's own and a jackknife in a loop."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto.length import at_matched_length, jackknife_error, length_correlation
from rlhf_lines.pareto.resampling import Resampling


RESAMPLING = Resampling(confidence=0.9)
Q = 1.6448536269514722  # the 95 % quantile of the normal distribution


@pytest.fixture
def drawn():
    """Tokens and scores of a point and of the SFT model, with prompts that have something in common; far from 0."""
    generator = np.random.default_rng(5)
    prompts = generator.normal(size=(25, 1))
    tokens = [np.round(np.exp(2.5 + shift + 0.5 * generator.normal(size=(25, 3)))) for shift in (0.2, 0.0)]
    scores = [
        1e4 + gain + prompts + 0.7 * np.log(length) + 0.3 * generator.normal(size=(25, 3))
        for gain, length in zip((0.4, 0.0), tokens, strict=True)
    ]
    return tuple(tokens), tuple(scores)


def jackknife(statistic, prompts: int) -> float:
    """From the statistic of the prompts that are kept."""
    values = [statistic([q for q in range(prompts) if q != p]) for p in range(prompts)]
    return np.sqrt((prompts - 1) / prompts * sum((value - np.mean(values)) ** 2 for value in values))


def test_the_correlation_is_pearsons_over_all_completions(drawn):
    (tokens, _), (scores, _) = drawn

    def r(kept):
        return np.corrcoef(tokens[kept].ravel(), scores[kept].ravel())[0, 1]

    found = length_correlation(tokens, scores, RESAMPLING)
    value, error = r(range(25)), jackknife(lambda kept: np.arctanh(r(kept)), 25)
    assert found["mean"] == pytest.approx(value, rel=1e-9)
    ends = np.tanh([np.arctanh(value) - Q * error, np.arctanh(value) + Q * error])
    assert [found["low"], found["high"]] == pytest.approx(ends, rel=1e-6)


def test_the_score_at_matched_length_is_the_intercept_over_pairs(drawn):
    tokens, scores = drawn

    def intercept(kept):
        x = (np.log(tokens[0]) - np.log(tokens[1]))[kept].ravel()
        y = (scores[0] - scores[1])[kept].ravel()
        design = np.stack([np.ones_like(x), x], axis=1)
        return np.linalg.lstsq(design, y, rcond=None)[0][0]

    found = at_matched_length(tokens, scores, RESAMPLING)
    value, error = intercept(range(25)), jackknife(intercept, 25)
    assert found["mean"] == pytest.approx(value, rel=1e-9)
    assert [found["low"], found["high"]] == pytest.approx([value - Q * error, value + Q * error], rel=1e-7)


def test_a_gain_that_is_all_length_is_none_at_equal_length():
    generator = np.random.default_rng(0)
    before, after = (generator.integers(low, 40, size=(200, 1)) for low in (5, 15))
    noise = 0.01 * generator.normal(size=(2, 200, 1))
    scores = (np.log(after) + noise[0], np.log(before) + noise[1])
    assert (scores[0] - scores[1]).mean() > 0.25
    found = at_matched_length((after, before), scores, Resampling())
    assert found["low"] < 0 < found["high"] and abs(found["mean"]) < 0.01


def test_without_spread_there_is_no_correlation(drawn):
    (tokens, _), (scores, _) = drawn
    assert length_correlation(tokens, np.full_like(scores, 0.1), RESAMPLING) is None
    assert length_correlation(np.full_like(tokens, 7), scores, RESAMPLING) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_that_is_length_has_correlation_one(drawn, sign):
    (tokens, _), _ = drawn
    assert length_correlation(tokens, sign * tokens / 3, RESAMPLING) == {"mean": sign, "low": sign, "high": sign}


def test_where_one_prompt_has_all_the_spread_nothing_is_known_of_others():
    tokens, scores = np.full((6, 2), 5.0), np.arange(12.0).reshape(6, 2)
    tokens[3] = [1, 2]
    found = length_correlation(tokens, scores, RESAMPLING)
    assert found["mean"] == pytest.approx(np.corrcoef(tokens.ravel(), scores.ravel())[0, 1])
    assert (found["low"], found["high"]) == (-1.0, 1.0)


def test_lengths_that_do_not_overlap_have_no_score_at_equal_length(drawn):
    (_, sft), scores = drawn
    assert at_matched_length((sft + 1, sft), scores, RESAMPLING) is None
    assert at_matched_length((sft, sft + 1), scores, RESAMPLING) is None
    one_in_twenty = np.where(np.arange(75).reshape(25, 3) < 4, sft, sft + 1)
    assert at_matched_length((one_in_twenty, sft), scores, RESAMPLING) is not None
    one_fewer = np.where(np.arange(75).reshape(25, 3) < 3, sft, sft + 1)
    assert at_matched_length((one_fewer, sft), scores, RESAMPLING) is None


def test_of_equal_lengths_it_is_the_mean_difference(drawn):
    (_, sft), scores = drawn
    found = at_matched_length((sft, sft), scores, RESAMPLING)
    difference = (scores[0] - scores[1]).mean(axis=1)
    error = difference.std(ddof=1) / np.sqrt(25)  # what the jackknife of a mean is
    assert [found["mean"], found["high"]] == pytest.approx([difference.mean(), difference.mean() + Q * error], rel=1e-7)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=40)
    left_out = (values.sum() - values) / 39
    assert jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / np.sqrt(40))
