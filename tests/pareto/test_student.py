"""Student's t against closed forms, tables and its own density."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lines.pareto.student import critical_value, within


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 5.0, 300.0])
def test_one_two_and_three_degrees_have_closed_forms(t):
    assert within(t, 1) == pytest.approx(2 / math.pi * math.atan(t), rel=1e-12, abs=1e-15)
    assert within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), rel=1e-12, abs=1e-15)
    angle = math.atan(t / math.sqrt(3))
    assert within(t, 3) == pytest.approx((2 * angle + math.sin(2 * angle)) / math.pi, rel=1e-12, abs=1e-15)
    assert within(-t, 3) == within(t, 3)


@pytest.mark.parametrize("t", [0.1, 1.0, 2.0, 6.0, 1e6])
def test_many_degrees_are_a_normal_distribution(t):
    assert within(t, 1e6) == pytest.approx(math.erf(t / math.sqrt(2)), rel=1e-6)


@pytest.mark.parametrize("degrees", [1.0, 1.37, 4.0, 19.5, 400.0])
def test_any_degrees_are_the_integral_of_the_density(degrees):
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    constant = math.exp(log) / math.sqrt(degrees * math.pi)
    x = np.linspace(0.0, 2.0, 200_001)
    density = constant * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    assert within(2.0, degrees) == pytest.approx(2 * np.trapezoid(density, x), abs=1e-9)


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_critical_values_are_those_of_the_tables(degrees, table):
    assert critical_value(0.95, degrees) == pytest.approx(table, abs=6e-4)
    assert within(critical_value(0.95, degrees), degrees) == pytest.approx(0.95, rel=1e-12)


def test_less_than_one_degree_and_impossible_confidences_are_refused():
    with pytest.raises(ValueError, match="needs at least 1"):
        within(1.0, 0.5)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            critical_value(confidence, 3)
