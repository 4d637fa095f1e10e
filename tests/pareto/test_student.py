"""Student's t against closed forms and printed tables."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from rlhf_lines.pareto.student import critical_value, within


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 40.0])
def test_closed_forms_for_few_degrees(t):
    assert within(t, 1) == pytest.approx(2 / math.pi * math.atan(t), abs=1e-15)
    assert within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), abs=1e-15)
    angle = math.atan(t / math.sqrt(3))
    assert within(t, 3) == pytest.approx(2 / math.pi * (angle + math.sin(angle) * math.cos(angle)), abs=1e-15)
    s = math.sin(math.atan(t / 2))
    assert within(t, 4) == pytest.approx(s * (1 + (1 - s * s) / 2), abs=1e-15)
    assert within(-t, 3) == within(t, 3)


# Two-sided 95 % (and 99 %) points of Student's t as printed in Fisher and Yates, table III.
@pytest.mark.parametrize(
    ("degrees", "at_95", "at_99"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (5, 2.571, 4.032),
        (10, 2.228, 3.169),
        (29, 2.045, 2.756),
        (120, 1.980, 2.617),
    ],
)
def test_table_of_fisher_and_yates(degrees, at_95, at_99):
    assert critical_value(0.95, degrees) == pytest.approx(at_95, abs=5.1e-4)
    assert critical_value(0.99, degrees) == pytest.approx(at_99, abs=5.1e-4)


def test_it_becomes_the_normal_distribution():
    assert critical_value(0.95, 20_000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=2e-4)
    # Even and odd degrees have sums of their own.
    assert within(1.5, 1000) == pytest.approx(within(1.5, 1001), abs=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 7, 50, 399])
def test_the_critical_value_inverts_the_distribution(degrees):
    assert within(critical_value(0.9, degrees), degrees) == pytest.approx(0.9, abs=1e-14)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="got 0 degrees of freedom"):
        within(1.0, 0)
    with pytest.raises(ValueError, match="confidence is 95"):
        critical_value(95, 10)
