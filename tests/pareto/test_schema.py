"""Faults of a file against its types; colours that stay apart when red, green or blue is not seen; names for people."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import numpy as np
import pytest

from rlhf_lines.pareto import schema
from rlhf_lines.pareto.schema import GROUPS, OTHER_LOOKS, faults, looks, shortened


COLOURS = {name: group.colour for name, group in GROUPS.items()}

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
    colours = {group: lab(colour, SEEN_BY[seen_by]) for group, colour in COLOURS.items()}
    # A difference of 2.3 is just noticeable. The closest, blue and green without blue cones, are seven times as far.
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours.values(), 2)) > 7 * 2.3
    assert np.linalg.norm(colours["lines"] - colours["rewarded_soup"]) > 20 * 2.3


def test_every_group_has_looks_of_its_own():
    every = [*looks([*GROUPS, *"abcd"]).values()]
    for kind in ("name", "label", "colour", "marker", "dashes"):
        assert len({getattr(group, kind) for group in every}) == len(GROUPS) + len(OTHER_LOOKS) == 10


def test_a_group_of_the_user_keeps_its_looks_whatever_order_the_groups_come_in():
    groups = ["ties", "lines", "dare", "sft"]
    found = looks(groups)
    assert list(found) == ["lines", "sft", "dare", "ties"]
    assert found == looks(groups[::-1])
    assert (found["dare"].colour, found["dare"].marker, found["dare"].dashes) == OTHER_LOOKS[0]
    assert found["ties"].colour == OTHER_LOOKS[1][0]
    assert found["lines"] == looks(["lines"])["lines"] == GROUPS["lines"]
    assert looks(f"group {i}" for i in range(9))["group 5"].marker == OTHER_LOOKS[5 % 4][1]


def test_a_name_is_one_short_line():
    assert looks(["two\nlines"])["two\nlines"].label == "two lines"
    assert shortened("x" * 40) == "x" * 27 + "…"


MEAN = {"mean": 1.0, "low": 0.0, "high": 2.0}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (MEAN, schema.Mean | None, []),
        (None, schema.Mean | None, []),
        (3, float, []),  # JSON of a float without a fraction
        ("auto", float | Literal["auto"], []),
        (True, int, [("wrong", "x")]),
        (True, bool | None, []),
        (1, bool, [("wrong", "x")]),
        (1.5, int, [("wrong", "x")]),
        (None, schema.Mean, [("wrong", "x")]),
        ("often", float | Literal["auto"], [("wrong", "x")]),
        ({"a": [1, "2"]}, dict[str, list[int]], [("wrong", "x[a][1]")]),
        ({"mean": 1.0}, schema.Mean | None, [("missing", "x.low"), ("missing", "x.high")]),
        ({**MEAN, "more": 0}, schema.Mean, [("unknown", "x.more")]),
        ([MEAN], schema.Mean | None, [("wrong", "x")]),
    ],
)
def test_faults_are_what_differs_and_where(value, kind, expected):
    assert list(faults(value, kind, "x")) == expected
