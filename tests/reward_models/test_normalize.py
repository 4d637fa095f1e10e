"""One scale for scores: measured once, kept exactly."""

from __future__ import annotations

import json

import numpy
import pytest
import torch

from reward_models import Normalization


SCORES = [3.25, -1.5, 0.125, 2.0, 2.0, -7.75]


def test_measured_scores_have_mean_zero_and_deviation_one():
    normalization = Normalization.measure(SCORES, name="r")
    assert normalization.mean == pytest.approx(numpy.mean(SCORES), rel=1e-15)
    assert normalization.std == pytest.approx(numpy.std(SCORES, ddof=1), rel=1e-15)
    normalised = normalization.apply(SCORES)
    assert numpy.mean(normalised) == pytest.approx(0, abs=1e-15)
    assert numpy.std(normalised, ddof=1) == pytest.approx(1, rel=1e-15)


def test_it_is_measured_in_double_precision():
    # In float32 the sum of these would lose the differences.
    scores = [10_000.0 + i / 1024 for i in range(256)]
    expected = torch.tensor(scores, dtype=torch.float64)
    for given in (scores, torch.tensor(scores, dtype=torch.float32)):
        normalization = Normalization.measure(given, name="r")
        assert normalization.mean == pytest.approx(float(expected.mean()), rel=1e-15)
        assert normalization.std == pytest.approx(float(expected.std(correction=1)), rel=1e-12)


def test_applied_by_hand():
    normalization = Normalization(mean=1.0, std=2.0, clip=1.5)
    # (9 - 1) / 2 = 4 is above the limit, (-5 - 1) / 2 = -3 below.
    scores, expected = [1.0, 2.0, 9.0, -5.0], [0.0, 0.5, 1.5, -1.5]
    assert normalization.apply(scores) == expected
    assert normalization.apply(tuple(scores)) == expected
    for dtype in (torch.float32, torch.float64):
        given = torch.tensor(scores, dtype=dtype)
        normalised = normalization.apply(given)
        assert normalised.dtype == dtype and normalised.tolist() == expected
        assert given.tolist() == scores
    assert Normalization(clip=2.0).apply(scores) == [1.0, 2.0, 2.0, -2.0]
    assert Normalization().apply(scores) == scores
    assert Normalization.measure([0.0, 2.0], name="r", clip=0.5).apply([100.0]) == [0.5]


def test_it_survives_the_disk():
    for normalization in (Normalization.measure(SCORES, name="r", clip=3.0), Normalization(0.1, 1 / 3)):
        read = Normalization.from_dict(json.loads(json.dumps(normalization.to_dict())))
        assert read == normalization


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "reward model 'r' cannot be normalised by 0 samples; expected at least 2"),
        ([1.0], "cannot be normalised by 1 samples; expected at least 2"),
        # Their mean is not exactly 0.1 in floating point.
        ([0.1] * 3, "'r' cannot be normalised: all 3 samples scored 0.1"),
        ([1.0, float("nan"), 2.0], "sample 1 scored nan"),
        ([float("inf"), 2.0], "sample 0 scored inf"),
    ],
)
def test_what_cannot_be_measured(scores, message):
    for given in (scores, torch.tensor(scores, dtype=torch.float64)):
        with pytest.raises(ValueError, match=message):
            Normalization.measure(given, name="r")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": float("nan")}, "mean of a normalisation is nan; expected a finite number"),
        ({"std": 0.0}, "std of a normalisation is 0.0; expected a positive number"),
        ({"std": float("inf")}, "std of a normalisation is inf"),
        ({"std": "1"}, "std of a normalisation is '1'"),
        ({"clip": 0}, "clip of a normalisation is 0; expected a positive number"),
        ({"clip": -1.0}, "clip of a normalisation is -1.0"),
        ({"clip": True}, "clip of a normalisation is True"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(ValueError, match=message):
        Normalization(**values)
    with pytest.raises(ValueError, match=message):
        Normalization.from_dict({**Normalization().to_dict(), **values})


@pytest.mark.parametrize("values", [{}, {"mean": 0.0, "std": 1.0}, {**Normalization().to_dict(), "weight": 1}, [1]])
def test_a_saved_one_has_exactly_its_keys(values):
    with pytest.raises(ValueError, match="has the keys mean, std, clip, but this one is"):
        Normalization.from_dict(values)
