"""The page's table of preferences beside the numbers of its front."""

from __future__ import annotations

import re

from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.tables import choice_table
from rlhf_lines.pareto.report.words import MINUS, NOTHING
from tests.pareto.report.report_runs import make_front


def utility(front, preference, point) -> float:
    parts = zip(preference, front["objectives"], front["reference_point"], front["ideal_point"], strict=True)
    return sum(w * (point["scores"][name]["mean"] - low) / (high - low) for w, name, low, high in parts)


def test_what_is_picked_is_compared_with_the_soup_within_its_kl():
    """By hand; the picked points have the KL of the soup's middle one, so that the limit is met and passed."""
    front = make_front()
    content = Content(front)
    points = {point["id"]: point for point in front["points"]}
    soup = [point for point in front["points"] if point["group"] == "rewarded_soup"]
    middle = sorted(point["kl"]["mean"] for point in soup)[len(soup) // 2]
    for choice in content.choices[:-1]:
        points[choice.point]["kl"]["mean"] = middle
    points[content.choices[-1].point]["kl"]["mean"] = min(point["kl"]["mean"] for point in soup) / 2
    content = Content(front)
    found, of_picked, of_soup = choice_table(content).columns[1:4]
    assert [of_picked.head, of_soup.head] == ["KL of picked", "KL of soup"]
    assert "soup within its KL" in found.head
    passed = set()
    for choice, cell, *spent in zip(content.choices, found.cells, of_picked.cells, of_soup.cells, strict=True):
        limit = points[choice.point]["kl"]["mean"]
        assert spent[0] == f"{limit:.2f}"
        within = [point for point in soup if point["kl"]["mean"] <= limit]
        passed.add(len(within))
        if not within:
            assert cell == spent[1] == NOTHING
            continue
        best = max(within, key=lambda point, choice=choice: utility(front, choice.preference, point))
        worth = utility(front, choice.preference, best)
        assert re.search(r"\((.*?)\)", cell).group(1).replace(MINUS, "-") == f"{worth:.3f}"
        assert f'href="#b={best["id"]}"' in cell and spent[1] == f"{best['kl']['mean']:.2f}"
    assert 0 in passed and 0 < max(passed) < len(soup)


def test_without_kl_or_without_a_soup_there_is_no_such_column():
    front = make_front()
    for point in front["points"]:
        point["kl"] = None
    assert not any("within its KL" in column.head for column in choice_table(Content(front)).columns)
    assert not any(
        "within its KL" in column.head for column in choice_table(Content(make_front(groups=("lines",)))).columns
    )


def test_how_much_more_than_the_soup_is_picked_stands_with_its_interval_and_what_it_says():
    front = make_front()
    for point in front["points"]:  # the soup is nearest, and best for the last preference
        point["kl"]["mean"] = 1.0 if point["group"] == "rewarded_soup" else 2.0
        if point["group"] == "rewarded_soup" and point["spec"]["weights"] == [0.0, 1.0]:
            point["scores"]["faithful"]["mean"] += 0.5
    count = len(Content(front).choices)
    values = [{"value": 0.25, "low": 0.125, "high": 0.375}, {"value": -0.25, "low": -0.375, "high": -0.125}]
    values += [{"value": 0.25, "low": -0.125, "high": 0.625}, {"value": 0.25, "low": None, "high": None}]
    values += [None] * (count - len(values) - 1) + [values[0]]
    found = choice_table(Content(front, over_soup=values)).columns[1]
    assert found.head == f"picked {MINUS} soup within its KL"
    texts = [re.sub("<.*?>", "", cell) for cell in found.cells]
    assert texts == [
        "+0.250 [0.125, 0.375] ↑ better",
        f"{MINUS}0.250 [{MINUS}0.375, {MINUS}0.125] ↓ worse",
        f"+0.250 [{MINUS}0.125, 0.625] ≈ cannot be told apart",
        f"+0.250 {NOTHING} ",
        *[NOTHING] * (count - 5),
        "it is the soup's",
    ]
    assert not any("picked" in column.head for column in choice_table(Content(front)).columns[:2])


def test_every_group_that_is_looked_at_has_a_column_and_the_picked_one_is_in_one_of_them():
    front = make_front(groups=("rewarded_soup", "lines"))
    front["points"] = [*front["points"][:13], front["points"][0] | {"id": 99, "group": "morlhf"}]
    front["fronts"]["lines"] |= {"nondominated": [], "hull": []}
    front["fronts"].pop("lines")  # of a single point, as that of MORLHF

    def heads():
        return [re.sub("<.*?>", "", column.head).split(" ", 1)[-1] for column in choice_table(Content(front)).columns]

    assert heads()[-3:] == ["LiNeS", "rewarded soup", "MORLHF"] and "SFT" not in heads()
    for score in front["points"][0]["scores"].values():
        score["mean"] = 99.0
    assert "SFT" in heads()
    table = choice_table(Content(front))
    assert all(any("picked" in cell for cell in cells[1:]) for _, cells in table.rows())


def test_the_utility_of_what_is_picked_stands_corrected_where_it_is_known():
    front = make_front()
    count = len(Content(front).choices)
    worths = [{"value": 0.5 + k / 100, "low": 0.4, "high": None if k else 0.75} for k in range(count)]
    (found,) = [c for c in choice_table(Content(front, worths)).columns if "corrected" in c.head]
    texts = [re.sub("<.*?>", "", cell) for cell in found.cells]
    assert texts == ["0.500 [0.400, 0.750]", *(f"0.{50 + k}0 {NOTHING}" for k in range(1, count))]
    for unknown in ((), [None] * count):
        assert not any("corrected" in str(c.head) for c in choice_table(Content(front, unknown)).columns)
