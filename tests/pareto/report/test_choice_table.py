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
    found, passed = choice_table(content).columns[-1], set()
    assert "within its KL" in found.head
    for choice, cell in zip(content.choices, found.cells, strict=True):
        limit = points[choice.point]["kl"]["mean"]
        within = [point for point in soup if point["kl"]["mean"] <= limit]
        passed.add(len(within))
        if not within:
            assert cell == NOTHING
            continue
        best = max(utility(front, choice.preference, point) for point in within)
        assert re.search(r"\((.*?)\)", cell).group(1).replace(MINUS, "-") == f"{best:.3f}"
    assert 0 in passed and 0 < max(passed) < len(soup)


def test_without_kl_or_without_a_soup_there_is_no_such_column():
    front = make_front()
    for point in front["points"]:
        point["kl"] = None
    assert not any("within its KL" in column.head for column in choice_table(Content(front)).columns)
    assert not any(
        "within its KL" in column.head for column in choice_table(Content(make_front(groups=("lines",)))).columns
    )


def test_the_utility_of_what_is_picked_stands_corrected_where_it_is_known():
    front = make_front()
    count = len(Content(front).choices)
    worths = [{"value": 0.5 + k / 100, "low": 0.4, "high": None if k else 0.75} for k in range(count)]
    (found,) = [c for c in choice_table(Content(front, worths)).columns if "corrected" in c.head]
    texts = [re.sub("<.*?>", "", cell) for cell in found.cells]
    assert texts == ["0.500 [0.400, 0.750]", *(f"0.{50 + k}0 {NOTHING}" for k in range(1, count))]
    for unknown in ((), [None] * count):
        assert not any("corrected" in str(c.head) for c in choice_table(Content(front, unknown)).columns)
