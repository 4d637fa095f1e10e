"""Corrected measures against closed forms, identities and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lines.pareto import ExpectedUtility, Hypervolume, correct, expected_utility, hypervolume, utilities
from rlhf_lines.pareto import corrected as module
from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.corrected import (
    MOST_EXTRAPOLATED,
    Shrinking,
    extrapolated_share,
    resampled_noise,
)


def drawn(truths, prompts=200, spread=1.0, seed=0):
    truths = np.asarray(truths, dtype=float)
    noise = np.random.default_rng(seed).normal(0.0, spread, (len(truths), prompts, truths.shape[1]))
    return truths[:, None] + noise


@pytest.fixture
def arc():
    w = np.linspace(0.0, 1.0, 9)
    return np.stack([w + w * (1 - w), 1 - w + w * (1 - w)], axis=1)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_value_is_the_plain_measure(objectives):
    scores = drawn(np.random.default_rng(1).uniform(0, 1, (6, objectives)))
    reference, ideal = (-0.5,) * objectives, (1.5,) * objectives
    means = scores.mean(axis=1)
    assert correct(scores, Hypervolume(reference)).value == hypervolume(means, reference)
    utility = correct(scores, ExpectedUtility(reference, ideal)).value
    assert utility == expected_utility(utilities(means[None], reference, ideal))[0]


def test_noise_has_the_covariance_of_the_means():
    scores = drawn([[0.0, 1.0], [2.0, 3.0]], prompts=12)
    scores[1] += scores[0]
    noise = resampled_noise(scores, bootstrap_counts(scores.shape[1], 100_000, 0)).reshape(-1, 4)
    columns = scores.transpose(1, 0, 2).reshape(12, 4)
    expected = np.cov(columns.T) / 12
    np.testing.assert_allclose(
        np.cov(noise.T).diagonal(), expected.diagonal(), rtol=0.02
    )  # a factor 11 / 12 would show
    np.testing.assert_allclose(np.cov(noise.T), expected, atol=0.02)
    assert np.abs(noise.mean(axis=0)).max() < 0.01


def test_shrunk_points_spread_as_they_would_without_noise(arc):
    noise = np.random.default_rng(0).normal(0.0, 0.1, (4000, 40, 2))
    truths = np.random.default_rng(1).normal(0.0, [0.3, 0.2], (40, 2))
    means = truths + noise[0]
    between = np.cov(Shrinking(noise)(means[None])[0].T)
    within = np.einsum("rnk,rnl->kl", noise - noise.mean(1, keepdims=True), noise) / 4000 / 39
    np.testing.assert_allclose(between, np.cov(means.T) - within, atol=1e-12)
    # Points that coincide become one; an objective without noise stays; nothing moves without noise.
    flat = Shrinking(noise)(0.05 * noise[:1])
    np.testing.assert_allclose(flat, np.broadcast_to(flat.mean(axis=1, keepdims=True), flat.shape), atol=1e-12)
    exact = noise * [1.0, 0.0]
    np.testing.assert_allclose(Shrinking(exact)(means[None])[0, :, 1], means[:, 1], atol=1e-12)
    np.testing.assert_array_equal(Shrinking(0.0 * noise)(means[None])[0], means)
    # The units of an objective do not matter.
    np.testing.assert_allclose(
        Shrinking(noise * [1.0, 1e6])(means[None] * [1.0, 1e6])[0], Shrinking(noise)(means[None])[0] * [1.0, 1e6]
    )


@pytest.mark.parametrize("smallness", [1e-4, 1e-9, 1e-17])
def test_next_to_no_noise_in_one_objective_leaves_the_others_as_without_it(smallness):
    """A KL that is the same for all prompts has the noise of its rounding, and points that are any distance apart."""
    noise = np.random.default_rng(0).normal(0.0, 0.1, (400, 30, 2))
    means = np.random.default_rng(1).normal(0.0, 0.2, (5, 30, 2))
    shrunk = Shrinking(noise * [1.0, smallness])(means)
    np.testing.assert_allclose(shrunk, Shrinking(noise * [1.0, 0.0])(means), rtol=0, atol=100 * smallness + 1e-13)


MEASURES = [Hypervolume((-0.3, -0.3)), ExpectedUtility((-0.3, -0.3), (1.2, 1.2))]


@pytest.fixture
def exact():
    """Scores of six points that are the same at all of 40 prompts."""
    scores = np.broadcast_to(np.linspace(0.1, 0.9, 6)[:, None, None], (6, 40, 2)).copy()
    scores[..., 1] = 1.1 - scores[..., 1] ** 2
    return scores


@pytest.mark.parametrize("measure", MEASURES)
def test_scores_without_noise_have_nothing_to_correct(exact, measure):
    found = correct(exact, measure)
    assert found.corrected == pytest.approx(found.value, rel=1e-12) and found.standard_error < 1e-12
    # What never varied in 40 prompts may in others: there is no interval, nor one of a difference from it.
    assert found.estimate() == (found.corrected, None, None, None)
    difference = found - correct(exact[:3], measure)
    assert difference.corrected > 0.0 and difference.estimate() == (difference.corrected, None, None, None)


@pytest.mark.parametrize("column", [0, 1])
def test_noise_in_one_objective_of_all_points_alike_is_what_is_uncertain(exact, column):
    exact[..., column] += np.random.default_rng(0).normal(0.0, 0.2, 40)
    found = correct(exact, MEASURES[0])
    assert abs(found.corrected - found.value) < 0.1 * found.standard_error < 0.1 * found.value


@pytest.mark.parametrize(("others", "is_told"), [(9, False), (10, True)])
def test_no_interval_where_a_score_is_one_number_at_nearly_all_prompts(arc, others, is_told):
    scores = drawn(arc)
    scores[4, :, 1] = np.where(np.arange(200) < others, scores[4, :, 1], 1.0)
    found = correct(scores, MEASURES[0])
    assert (found.estimate().low is not None) == is_told
    assert (found - correct(drawn(arc, seed=1), MEASURES[0])).estimate().low is not None


@pytest.mark.parametrize("measure", MEASURES)
def test_copies_of_points_change_nothing(arc, measure):
    scores = drawn(arc)
    copied = np.concatenate([scores[3:4], scores, scores[3:4], scores[3:4]])
    assert (correct(copied, measure) - correct(scores, measure)).estimate() == (0.0, 0.0, 0.0, 1.0)
    noise = np.random.default_rng(2).normal(0.0, 0.1, (module.DRAWN, len(copied), 2))
    noise[:, [0, 10, 11]] = noise[:, [4]]
    found = correct(copied, measure, noise=noise) - correct(scores, measure, noise=noise[:, 1:10])
    assert found.estimate() == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(arc, bad):
    scores = drawn(arc)
    scores[2, 5, 1] = bad
    with pytest.raises(ValueError, match=f"scores hold {bad}; expected finite numbers"):
        correct(scores, MEASURES[1])


def test_two_prompts_are_enough_for_an_interval(arc):
    found = correct(drawn(arc, prompts=2), Hypervolume((-9.0, -9.0))).estimate()
    assert found.low < found.value < found.high


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0, 6.0])
def test_the_order_is_that_of_the_bias_of_the_higher_of_two_points(distance):
    """With normal noise t in the difference d of two means, the higher is too high by t phi(d / t) - d Phi(-d / t).

    At d = 0 that is in proportion to t, so that all of it is extrapolated that ever is; for d far above t it grows
    faster than the square, and nothing is.
    """

    def bias(noise):
        z = distance / noise
        density = math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
        return noise * density - distance * 0.5 * math.erfc(z / math.sqrt(2.0))

    gains = [bias(noise) - bias(1.0) for noise in (math.sqrt(2.0), 2.0)]
    order = min(2.0, max(1.0, 2.0 * math.log2(gains[1] / gains[0] - 1.0)))
    share = extrapolated_share(*np.array(gains)[:, None])
    assert share == pytest.approx([MOST_EXTRAPOLATED * (2.0 - order) ** 2], abs=1e-12)
    assert {0.0: order == pytest.approx(1.0), 6.0: order == 2.0}.get(distance, 1.0 < order <= 2.0)


def test_what_does_not_grow_is_not_extrapolated():
    assert extrapolated_share(np.array([1.0]), np.array([1.5])) == [0.8]  # never more
    by_root_2, by_2 = np.array([(0.0, 0.0), (0.1, 0.05), (-0.1, 0.2), (0.1, -0.2), (0.2, 0.2)]).T
    assert not extrapolated_share(by_root_2, by_2).any()


def test_both_corrections_are_mixed_by_the_share():
    """Against the same by plain loops over resamples, of the number itself and of one resample."""
    scores, reference = drawn([[0.5, 0.6], [0.6, 0.5], [0.55, 0.55]], prompts=40, seed=10), (-1.0, -1.0)
    noise = resampled_noise(scores, bootstrap_counts(40, module.DRAWN, 3))
    shrunk, means = Shrinking(noise), scores.mean(axis=1)

    def estimate(means, noise):
        added = [sign * each for sign in (1, -1) for each in noise]
        plain, centre = hypervolume(means, reference), shrunk(means[None])[0]
        bias = np.mean([hypervolume(centre + each, reference) for each in added]) - hypervolume(centre, reference)
        gains = [np.mean([hypervolume(means + s * each, reference) for each in added]) - plain for s in (1, 3**0.5)]
        share = extrapolated_share(*np.array(gains)[:, None])[0]
        return plain - (1 - share) * bias - share * gains[1], share

    found = correct(scores, Hypervolume(reference), 3)
    expected, share = estimate(means, noise[: module.ADDED])
    assert 0.0 < share < MOST_EXTRAPOLATED and found.corrected == pytest.approx(expected, rel=1e-12)
    for i in (7, module.OUTER - 2):
        once_more, _ = estimate(shrunk(means[None])[0] + noise[i], noise[module.OUTER :])
        assert found.resampled[i] == pytest.approx(once_more, rel=1e-12)
    given = correct(scores, Hypervolume(reference), noise=noise)
    np.testing.assert_allclose(given.resampled, found.resampled, rtol=1e-12)
    assert correct(scores, Hypervolume(reference), noise=2.0 * noise).corrected < found.corrected
    assert found.standard_error == found.resampled.std(ddof=1)


def test_the_bias_of_the_higher_of_two_equal_points_goes():
    # The higher of two independent means with error s is s / sqrt(pi) too high.
    plain, corrected = [], []
    for seed in range(200):
        found = correct(drawn([[1.0], [1.0]], prompts=60, seed=seed), Hypervolume((0.0,)))
        plain.append(found.value - 1.0)
        corrected.append(found.corrected - 1.0)
    error = 1.0 / math.sqrt(60)
    assert np.mean(plain) == pytest.approx(error / math.sqrt(math.pi), abs=0.2 * error)
    assert abs(np.mean(corrected)) < 0.25 * error / math.sqrt(math.pi) + 0.1 * error


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_one_point_has_nothing_to_correct_and_the_error_of_a_product(objectives):
    scores = drawn([[2.0, 3.0, 4.0][:objectives]], prompts=2000, spread=0.5)
    found = correct(scores, Hypervolume((0.0,) * objectives))
    means = scores.mean(axis=1)[0]
    assert found.value == pytest.approx(means.prod(), rel=1e-12)
    gradient = means.prod() / means
    error = (scores[0] @ gradient).std(ddof=1) / math.sqrt(2000)
    assert found.corrected == pytest.approx(found.value, abs=0.05 * error)
    assert found.standard_error == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("measure", [Hypervolume((-0.3, -0.3)), ExpectedUtility((-0.3, -0.3), (1.2, 1.2))])
def test_points_far_apart_are_left_as_they_are(measure):
    # Far from each other against noise of 0.002; each of them is best somewhere, and has a wide region of its own.
    scores = drawn([[0.0, 1.0], [0.7, 0.7], [1.0, 0.0]], prompts=400, spread=0.04)
    found = correct(scores, measure)
    assert abs(found.value - found.corrected) < 0.2 * found.standard_error


def test_a_group_against_itself_is_no_difference(arc):
    found = correct(drawn(arc), Hypervolume((-0.3, -0.3)))
    assert (found - found).estimate() == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_a_group_against_itself_in_another_order_is_no_difference(arc, seed):
    """Rounding leaves a spread of 1e-16, and anything over it would be many standard errors."""
    scores, measure = drawn(arc, seed=seed), ExpectedUtility((-0.3, -0.3), (1.2, 1.2))
    for one in (measure, Hypervolume((-0.3, -0.3))):
        found = correct(scores, one) - correct(scores[::-1], one)
        assert (found.value, *found.estimate()) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_differences_are_paired(arc):
    prompts = np.random.default_rng(5).normal(0.0, 2.0, (1, 300, 2))
    a, b = drawn(arc + 0.1, 300, 0.1) + prompts, drawn(arc, 300, 0.1, seed=1) + prompts
    measure = Hypervolume((-1.0, -1.0))
    found = correct(a, measure), correct(b, measure)
    difference = found[0] - found[1]
    assert difference.value == found[0].value - found[1].value
    assert difference.standard_error < 0.3 * found[0].standard_error
    back = found[1] - found[0]
    assert back.estimate().p_value == difference.estimate().p_value
    with pytest.raises(ValueError, match="300 and 200 prompts"):
        found[0] - correct(drawn(arc), measure)


def test_points_between_measured_ones_are_combined_prompt_by_prompt(arc):
    # A point on the line between its neighbours adds nothing to the expected utility, whatever its noise.
    ends = drawn(arc[::8], 100)
    between = np.concatenate([ends, ends.mean(axis=0, keepdims=True)])
    measure = ExpectedUtility((-0.3, -0.3), (1.2, 1.2))
    assert correct(between, measure).value == pytest.approx(correct(ends, measure).value, rel=1e-12)


def test_no_interval_where_points_are_as_near_to_the_reference_as_noise(arc):
    scores = drawn(0.01 * arc, prompts=50, seed=0)
    found = correct(scores, Hypervolume((-0.05, -0.05)))
    assert found.corrected < 0 < found.value
    assert found.estimate()[1:] == (None, None, None)
    assert (found - correct(scores[:5], Hypervolume((-0.05, -0.05)))).estimate().p_value is not None


def test_one_prompt_has_no_interval(arc):
    found = correct(drawn(arc, prompts=1), Hypervolume((-9.0, -9.0)))
    assert found.corrected == found.value
    assert found.estimate()[1:] == (None, None, None)
    assert (found - found).estimate()[1:] == (None, None, None)


def test_points_below_the_reference_have_no_volume(arc):
    found = correct(drawn(arc - 5.0), Hypervolume((0.0, 0.0)))
    assert (found.value, found.corrected) == (0.0, 0.0)
    assert found.estimate() == (0.0, None, None, None)


def test_the_order_of_points_and_units_do_not_matter(arc):
    scores = drawn(arc)
    measure = Hypervolume((-0.3, -0.3))
    found, turned = correct(scores, measure), correct(scores[::-1], measure)
    assert turned.corrected == pytest.approx(found.corrected, rel=1e-10)
    scaled = correct(scores * [1.0, 1000.0], Hypervolume((-0.3, -300.0)))
    assert scaled.corrected == pytest.approx(1000.0 * found.corrected, rel=1e-9)
    assert scaled.standard_error == pytest.approx(1000.0 * found.standard_error, rel=1e-9)


def test_scores_need_three_axes():
    with pytest.raises(ValueError, match=r"\[points, prompts, objectives\]"):
        correct(np.zeros((3, 4)), Hypervolume((0.0,)))
