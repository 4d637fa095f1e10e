"""The text table says what the front says, in 110 columns."""

import pytest

from rlhf_lines.pareto import build_front, front_table


@pytest.fixture
def front(make_points):
    return build_front(rewards=["helpful", "harmless"], split="test", seed=0, points=make_points(), resamples=100)


def row_of(table, point):
    (row,) = [line for line in table.splitlines() if line.strip("* ").split()[:2] == [str(point["id"]), point["group"]]]
    return row


def test_every_point_is_a_row_with_its_numbers(front):
    table = front_table(front)
    for point in front["points"]:
        row = row_of(table, point)
        best = point["id"] in [i for entry in front["fronts"].values() for i in entry["nondominated"]]
        assert row.startswith("*") == best
        score = point["scores"]["harmless"]
        assert f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in row
        assert " ".join(f"{weight:.2f}" for weight in point["spec"]["weights"]) in row
        assert row.endswith("-" if point["kl"] is None else f"{point['kl']['mean']:.3f}")
    assert sum(line.startswith("*") for line in table.splitlines()) == 9


def test_groups_and_differences_come_with_intervals(front):
    lines = front_table(front).splitlines()
    assert lines[0] == "test prompts, 95 % intervals over prompts, higher is better"
    volume = front["fronts"]["lines"]["hypervolume"]
    (row,) = [line for line in lines if line.startswith("lines  ")]
    assert row.split()[1:] == [
        *(f"{volume['value']:.3f}", f"[{volume['low']:.3f},", f"{volume['high']:.3f}]"),
        *("5", "4"),
    ]
    difference = front["comparisons"][0]["hypervolume_difference"]
    (row,) = [line for line in lines if line.startswith("lines - rewarded_soup")]
    assert f"{difference['value']:.3f} [{difference['low']:.3f}, {difference['high']:.3f}]" in row
    assert row.endswith("1.000")


def test_a_front_without_kl_has_no_kl_column(make_points):
    points = [{**point, "kl": None} for point in make_points()]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    assert "kl" not in front_table(front).split()


@pytest.mark.parametrize(("rewards", "blocks"), [(2, 1), (3, 2), (6, 5)])
def test_the_table_fits_and_repeats_the_points_where_rewards_do_not(make_points, rewards, blocks):
    names = [f"reward {i} with a long name" for i in range(rewards)]
    front = build_front(rewards=names, split="test", seed=0, points=make_points(rewards=rewards), resamples=20)
    table = front_table(front)
    assert max(map(len, table.splitlines())) <= 110
    assert table.count("\n   0   sft") == blocks
    assert [table.count(f"reward {i} with a l...") for i in range(rewards)] == [1] * rewards


def test_a_single_point_needs_no_front(make_points):
    front = build_front(rewards=["a", "b"], split="validation", seed=0, points=make_points()[:1], resamples=20)
    table = front_table(front)
    assert "hypervolume" not in table and "difference" not in table and "sft" in table


def test_a_group_name_cannot_break_the_table(make_points):
    points = [{**point, "group": "two\nlines " * 9} for point in make_points()[:2]]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    rows = [line for line in front_table(front).splitlines() if "two lines two lin..." in line]
    assert len(rows) == 3
