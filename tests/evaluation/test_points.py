"""Which points are asked: those of a front, all, or some; the SFT model always."""

from __future__ import annotations

import pytest

from rlhf_lines.evaluation.points import chosen_points
from tests.pareto.report.report_runs import make_front


@pytest.fixture(scope="module")
def front():
    """SFT is point 0; then 11 points each of the soup, LiNeS and the two controls, three apart."""
    return make_front(prompts=8)


def ids(points) -> list[int]:
    return [point["id"] for point in points]


def test_the_front_is_what_no_point_of_its_group_dominates_and_no_control(front):
    best = sorted(i for name in ("rewarded_soup", "lines") for i in front["fronts"][name]["nondominated"])
    assert ids(chosen_points(front)) == [0, *best] and 2 < len(best) < 22
    assert ids(chosen_points(front, groups=["scaled"])) == [0, *sorted(front["fronts"]["scaled"]["nondominated"])]


def test_all_points_or_those_of_a_group(front):
    assert ids(chosen_points(front, ["all"])) == ids(front["points"])
    lines = [point["id"] for point in front["points"] if point["group"] == "lines"]
    assert ids(chosen_points(front, ["all"], ["lines"])) == [0, *lines]


def test_points_by_their_ids_each_once_with_the_sft_model_before(front):
    assert ids(chosen_points(front, ["9", "3", "9"])) == [0, 3, 9]
    assert ids(chosen_points(front, ["0", "6"])) == [0, 6]


@pytest.mark.parametrize(
    ("points", "groups", "message"),
    [
        (["front"], ["linse"], r"unknown group 'linse'; .* did you mean 'lines'\?"),
        (["4"], [], r"--points has '4', expected front, all, or ids of the front's points, of which there are 45"),
        (["front", "3"], [], "--points has 'front', expected front, all, or ids"),
        (["3"], ["lines"], r"points are given by id \(3\): leave out --group lines"),
    ],
)
def test_what_is_unknown_is_named(front, points, groups, message):
    with pytest.raises(ValueError, match=message):
        chosen_points(front, points, groups)


def test_what_a_router_mixes_by_the_prompt_is_left_out_and_refused_where_it_is_asked_for(front):
    """A point of LiNeS with a router: nothing else of the front changes."""
    routed = {**front, "points": [dict(point) for point in front["points"]]}
    for point in routed["points"]:
        if point["group"] == "lines":
            point["spec"] = {**point["spec"], "rule": "twin", "options": {"router": "0123456789ab"}}
    lines = [point["id"] for point in front["points"] if point["group"] == "lines"]
    assert ids(chosen_points(routed, ["all"])) == [i for i in ids(front["points"]) if i not in lines]
    assert not {*lines} & {*ids(chosen_points(routed))}
    with pytest.raises(ValueError, match=r"group lines has weights that a router chooses .* leave it out"):
        chosen_points(routed, groups=["lines"])
    with pytest.raises(ValueError, match=rf"point {lines[0]} has weights that a router chooses"):
        chosen_points(routed, [str(lines[0])])
