"""Student's t against closed forms, tables and its own integral."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lines.pareto.student import t_quantile, t_tail


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 5.0, 300.0])
def test_one_two_and_three_degrees_have_closed_forms(t):
    assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-10)
    assert t_tail(t, 2) == pytest.approx(1 / (t * math.sqrt(2 + t * t) + 2 + t * t), rel=1e-10)  # (1 - t/sqrt(2+t^2))/2
    angle = math.atan(t / math.sqrt(3))
    assert t_tail(t, 3) == pytest.approx(0.5 - (angle + math.sin(2 * angle) / 2) / math.pi, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("t", [0.1, 1.0, 2.0, 6.0])
def test_many_degrees_are_a_normal_distribution(t):
    assert t_tail(t, 1e9) == pytest.approx(math.erfc(t / math.sqrt(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("degrees", [1.0, 1.37, 4.0, 19.5, 400.0])
def test_any_degrees_are_the_integral_of_the_density(degrees):
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    constant = math.exp(log) / math.sqrt(degrees * math.pi)
    x = np.linspace(0.5, 2.0, 200_001)
    density = constant * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    assert t_tail(0.5, degrees) - t_tail(2.0, degrees) == pytest.approx(np.trapezoid(density, x), abs=2e-7)


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_tables(degrees, table):
    assert t_quantile(0.025, degrees) == pytest.approx(table, abs=6e-4)
    assert t_tail(t_quantile(0.025, degrees), degrees) == pytest.approx(0.025, rel=1e-12)


def test_the_sides_mirror_and_less_than_one_degree_is_refused():
    assert t_tail(-1.3, 5) == 1 - t_tail(1.3, 5)
    with pytest.raises(ValueError, match="expected at least 1"):
        t_tail(1.0, 0.5)
