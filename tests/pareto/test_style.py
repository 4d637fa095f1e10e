"""Colours that stay apart when red, green or blue is not seen, and names for people."""

from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest

from rlhf_lines.pareto import style


# Machado, Oliveira and Fernandes (2009), table 1 at severity 1: linear RGB as it is seen.
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, seen_by):
    """CIELAB of a colour ``#RRGGBB`` under D65."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.asarray(seen_by) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_the_groups_of_a_sweep_stay_apart(seen_by):
    colours = {group: lab(colour, SEEN_BY[seen_by]) for group, colour in style.COLOURS.items()}
    # A difference of 2.3 is just noticeable. The closest, blue and green without blue cones, are seven times as far.
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours.values(), 2)) > 7 * 2.3
    assert np.linalg.norm(colours["lines"] - colours["rewarded_soup"]) > 20 * 2.3


def test_every_group_of_a_sweep_has_looks_of_its_own():
    for looks in (style.COLOURS, style.MARKERS, style.DASHES, style.LABELS):
        assert set(looks) == set(style.ORDER)
    for own, others in (
        (style.COLOURS, style.OTHER_COLOURS),
        (style.MARKERS, style.OTHER_MARKERS),
        (style.DASHES, style.OTHER_DASHES),
    ):
        assert len({*own.values(), *others}) == len(own) + len(others)


def test_a_group_of_the_user_keeps_its_looks_whatever_order_the_groups_come_in():
    groups = ["ties", "lines", "dare", "sft"]
    assert style.colour("ties", groups) == style.colour("ties", groups[::-1]) == style.OTHER_COLOURS[1]
    assert style.marker("dare", groups) == style.OTHER_MARKERS[0]
    assert style.dashes("dare", groups) == style.OTHER_DASHES[0]
    assert style.colour("lines", ["lines"]) == style.COLOURS["lines"]
    many = [f"group {i}" for i in range(9)]
    assert style.colour("group 5", many) == style.OTHER_COLOURS[5 % 4]


def test_a_name_is_one_short_line():
    assert style.label("two\nlines") == "two lines"
    assert style.label("x" * 40) == "x" * 27 + "…"


def test_a_mixture_or_a_scaled_policy_is_no_single_policy():
    front = {"policies": ["a", "b"]}
    for group, weights in (("rewarded_soup", [0.5, 0.5]), ("lines", [1.0, 0.0]), ("rewarded_soup", [])):
        assert style.single_policy(front, {"group": group, "spec": {"weights": weights}}) is None


def test_the_examples_run():
    assert doctest.testmod(style).failed == 0
