"""Dominance and hypervolume against their definitions; ``front.json`` against its contract."""

import copy
import json
from itertools import combinations

import numpy as np
import pytest

from rlhf_lines.pareto import (
    REFERENCE_POINT_RULE,
    Point,
    build_front,
    hypervolume,
    nondominated,
    read_front,
    reference_point,
    write_front,
)


def front_of(points, **changes):
    return build_front(
        **{"rewards": ["a", "b"], "split": "test", "seed": 7, "points": points, "resamples": 200, **changes}
    )


def nondominated_by_definition(scores):
    def dominates(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [i for i, b in enumerate(scores) if not any(dominates(a, b) for a in scores)]


def hypervolume_by_inclusion_exclusion(scores, reference):
    """Sums the volumes of intersections of boxes with alternating signs: exact, 2^n terms."""
    total = 0.0
    for size in range(1, len(scores) + 1):
        for subset in combinations(scores, size):
            sides = [
                max(0.0, min(column) - low) for column, low in zip(zip(*subset, strict=True), reference, strict=True)
            ]
            total += (-1) ** (size + 1) * float(np.prod(sides))
    return total


@pytest.mark.parametrize("rewards", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_nondominated_is_the_definition(rewards, seed):
    # Integers from a small range make ties and duplicates common.
    scores = np.random.default_rng(seed).integers(0, 4, size=(30, rewards)).astype(float)
    expected = nondominated_by_definition(scores.tolist())
    assert len(expected) < 30
    assert nondominated(scores) == expected


def test_duplicates_of_a_nondominated_point_all_stay():
    assert nondominated([[2, 0], [0, 2], [2, 0], [1, 0]]) == [0, 1, 2]


@pytest.mark.parametrize("rewards", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_inclusion_exclusion(rewards, seed):
    # Some points lie below the reference point 0 in a coordinate and add nothing.
    scores = np.random.default_rng(seed).normal(0.5, 1.0, size=(8, rewards))
    expected = hypervolume_by_inclusion_exclusion(scores.tolist(), [0.0] * rewards)
    assert expected > 0
    assert hypervolume(scores, [0.0] * rewards) == pytest.approx(expected, rel=1e-12)


def test_hypervolume_of_the_points_in_the_documentation_of_moocore():
    # moocore documents 38.0 for these points when they are minimised with reference (10, 10); mirrored at the origin
    # that is a maximisation. Maximised with reference (0, 0) they give 39.0.
    points = np.array([[5, 5], [4, 6], [2, 7], [7, 4]], dtype=float)
    assert hypervolume(-points, [-10, -10]) == 38.0
    assert hypervolume(points, [0, 0]) == 39.0


def test_dominated_points_do_not_change_the_hypervolume():
    scores = np.random.default_rng(0).uniform(0.5, 1.0, size=(10, 3))
    dominated = scores * 0.7
    assert hypervolume(np.vstack([scores, dominated]), [0, 0, 0]) == pytest.approx(
        hypervolume(scores, [0, 0, 0]), rel=1e-14
    )


def test_reference_point_is_a_tenth_of_the_range_below_the_lowest():
    # Lowest 0 and -4, ranges 2 and 10: 0 - 0.2 and -4 - 1.
    assert reference_point([[0.0, 6.0], [2.0, -4.0], [1.0, 0.0]]) == pytest.approx([-0.2, -5.0])


def test_a_front_has_exactly_the_keys_of_the_contract(make_points):
    front = json.loads(json.dumps(front_of(make_points()), allow_nan=False))
    assert set(front) == {
        *("format", "rewards", "split", "reference_point", "reference_point_rule", "seed", "resamples", "confidence"),
        *("points", "fronts", "comparisons"),
    }
    assert (front["format"], front["rewards"], front["split"], front["seed"]) == (1, ["a", "b"], "test", 7)
    assert front["reference_point_rule"] == REFERENCE_POINT_RULE
    for point in front["points"]:
        assert set(point) == {"id", "group", "spec", "scores", "kl", "prompts", "samples_per_prompt"}
        assert set(point["spec"]) == {"rule", "weights", "alpha", "beta", "schedule", "options"}
        assert list(point["scores"]) == ["a", "b"]
        assert all(set(score) == {"mean", "low", "high"} for score in point["scores"].values())
        assert (point["kl"] is None) == (point["group"] != "lines")
        assert point["kl"] is None or set(point["kl"]) == {"mean", "low", "high"}
        assert (point["prompts"], point["samples_per_prompt"]) == (40, 2)
    assert set(front["fronts"]) == {"rewarded_soup", "lines"}
    for entry in front["fronts"].values():
        assert set(entry) == {"hypervolume", "nondominated"}
        assert set(entry["hypervolume"]) == {"value", "low", "high"}
    (comparison,) = front["comparisons"]
    assert set(comparison) == {"a", "b", "hypervolume_difference"}
    assert (comparison["a"], comparison["b"]) == ("lines", "rewarded_soup")
    assert set(comparison["hypervolume_difference"]) == {"value", "low", "high", "probability_positive"}


def test_the_numbers_of_a_front_are_those_of_its_parts(make_points):
    points = make_points()
    front = front_of(points)
    means = np.array([point["scores"].mean(axis=0) for point in points])
    reference = reference_point(means)
    assert front["reference_point"] == reference
    for row, point in enumerate(front["points"]):
        assert [score["mean"] for score in point["scores"].values()] == means[row].tolist()
        assert all(score["low"] < score["mean"] < score["high"] for score in point["scores"].values())
    lines, soup = means[6:], means[1:6]
    # Ids, not rows of the group: the point in the middle of `lines` has id 8.
    assert front["fronts"]["lines"]["nondominated"] == [6, 7, 9, 10]
    assert front["fronts"]["lines"]["hypervolume"]["value"] == hypervolume(lines, reference)
    difference = front["comparisons"][0]["hypervolume_difference"]
    assert difference["value"] == pytest.approx(hypervolume(lines, reference) - hypervolume(soup, reference), rel=1e-12)
    assert difference["low"] > 0 and difference["probability_positive"] == 1.0
    # Prompts are shared, so their difficulty cancels in the difference.
    alone = front["fronts"]["lines"]["hypervolume"]
    assert difference["high"] - difference["low"] < 0.5 * (alone["high"] - alone["low"])


def test_a_front_does_not_depend_on_the_order_of_the_points(make_points):
    points = make_points()
    assert front_of(points) == front_of(points[::-1])


def test_a_front_accepts_points_and_does_not_change_its_input(make_points):
    points = make_points()
    before = copy.deepcopy(points)
    assert front_of([Point(**point) for point in points]) == front_of(points)
    for point, old in zip(points, before, strict=True):
        assert point["spec"] == old["spec"]
        np.testing.assert_array_equal(point["scores"], old["scores"])


def test_every_group_with_a_front_is_compared_with_lines_and_rewarded_soup_comes_first(make_points):
    points = make_points()
    for group in ("reversed", "averaged"):
        for point in make_points()[1:3]:
            points.append({**point, "id": len(points), "group": group})
    pairs = [(entry["a"], entry["b"]) for entry in front_of(points)["comparisons"]]
    assert pairs == [("lines", "rewarded_soup"), ("lines", "averaged"), ("lines", "reversed")]


def test_identical_groups_do_not_differ(make_points):
    points = make_points()[:6]
    points += [{**point, "id": point["id"] + 5, "group": "lines"} for point in points[1:]]
    difference = front_of(points)["comparisons"][0]["hypervolume_difference"]
    assert difference == {"value": 0.0, "low": 0.0, "high": 0.0, "probability_positive": 0.5}


def test_bad_input_is_named(make_points):
    points = make_points()
    with pytest.raises(ValueError, match="needs at least one scored point"):
        front_of([])
    with pytest.raises(ValueError, match=r"point ids \[0\] occur more than once"):
        front_of([points[0], points[0]])
    with pytest.raises(ValueError, match=r"scores of point 1 have shape \(39, 2\); expected .* = \(40, 2\)"):
        front_of([points[0], {**points[1], "scores": points[1]["scores"][1:]}])
    with pytest.raises(ValueError, match="one column for each of"):
        front_of(points, rewards=["a", "b", "c"])
    with pytest.raises(ValueError, match="name one reward twice"):
        front_of(points, rewards=["a", "a"])
    with pytest.raises(ValueError, match=r"kl of point 6 has shape \(3,\)"):
        front_of([*points[:6], {**points[6], "kl": [0.0, 1.0, 2.0]}])
    points[2]["scores"][5, 1] = np.nan
    with pytest.raises(ValueError, match="point 2 has score nan for reward 'b' on prompt 5"):
        front_of(points)


def test_a_front_is_read_as_it_was_written(make_points, tmp_path):
    front = front_of(make_points())
    path = write_front(tmp_path, front)
    assert path == tmp_path / "front.json"
    assert read_front(tmp_path) == front
    assert [file.name for file in tmp_path.iterdir()] == ["front.json"]


def test_a_front_that_cannot_be_written_leaves_the_old_one(make_points, tmp_path):
    front = front_of(make_points())
    write_front(tmp_path, front)
    with pytest.raises(ValueError, match="JSON"):
        write_front(tmp_path, {**front, "seed": float("nan")})
    assert read_front(tmp_path) == front
    assert [file.name for file in tmp_path.iterdir()] == ["front.json"]


def test_a_write_that_fails_leaves_no_temporary_file(make_points, tmp_path):
    (tmp_path / "front.json").mkdir()  # a file cannot take the name of a folder
    with pytest.raises(OSError):
        write_front(tmp_path, front_of(make_points()))
    assert [file.name for file in tmp_path.iterdir()] == ["front.json"]


def test_a_missing_or_foreign_front_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with: rlhf-lines front"):
        read_front(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_front(tmp_path / "absent", {})
    (tmp_path / "front.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="has format 2; expected 1"):
        read_front(tmp_path)
    (tmp_path / "front.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_front(tmp_path)
