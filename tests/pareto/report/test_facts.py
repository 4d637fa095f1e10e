"""What a sweep has found, in sentences."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.report.facts import facts, swept
from tests.pareto.report.report_runs import MINUS, make_front


class TestFacts:
    def compared(self, **intervals):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["validation"] = None
        for point in front["points"]:
            point["perplexity"] = None
        front["comparisons"] = [
            {"a": "lines", "b": group}
            | {"hypervolume_difference": {"value": (low + high) / 2, "low": low, "high": high}}
            | {"expected_utility_difference": {"value": 0.1, "low": -0.2, "high": 0.4, "probability_positive": 0.7}}
            for group, (low, high) in intervals.items()
        ]
        for entry in front["comparisons"]:
            entry["hypervolume_difference"]["probability_positive"] = 0.25
        return facts(front)

    @pytest.mark.parametrize(
        ("interval", "verdict", "title"),
        [
            ((0.1, 0.3), "better", "LiNeS beats the rewarded soup"),
            ((-0.3, -0.1), "worse", "LiNeS does worse than the rewarded soup"),
            ((-0.1, 0.5), "unclear", "LiNeS and the rewarded soup cannot be told apart"),
        ],
    )
    def test_lines_against_the_soup(self, interval, verdict, title):
        [fact] = self.compared(rewarded_soup=interval)
        assert (fact["verdict"], fact["title"]) == (verdict, title)
        value = f"{sum(interval) / 2:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]".replace("-", MINUS)
        assert fact["text"] == (
            f"LiNeS {MINUS} rewarded soup: hypervolume {value}, above zero with probability 0.250 and "
            f"expected utility 0.100 [{MINUS}0.200, 0.400], above zero with probability 0.700."
        )

    @pytest.mark.parametrize("against_reversed", [(1, 2), (-2, -1), (-1, 1), None])
    @pytest.mark.parametrize(
        ("against_scaled", "verdict", "begins"),
        [
            ((1, 2), "better", "Depth matters, not only length"),
            ((-2, -1), "worse", "Depth does not help"),
            ((-1, 1), "unclear", "Depth is not seen to matter, only length"),
        ],
    )
    def test_depth_or_only_length(self, against_scaled, verdict, begins, against_reversed):
        intervals = {"scaled": against_scaled} | ({"reversed": against_reversed} if against_reversed else {})
        [fact] = self.compared(**intervals)
        assert fact["verdict"] == verdict
        assert fact["title"].startswith(begins)
        ends = {(1, 2): "reversed, it does worse", (-2, -1): "reversed, it does better"}
        if against_reversed in ends:
            assert fact["title"].endswith(ends[against_reversed])

    @pytest.mark.parametrize(("interval", "verdict"), [((1, 2), "better"), ((-2, -1), "worse"), ((-1, 1), "unclear")])
    def test_the_reversed_schedule_alone(self, interval, verdict):
        [fact] = self.compared(reversed=interval)
        assert fact["verdict"] == verdict

    def test_what_was_chosen(self):
        front = make_front(groups=("lines",))
        [chosen] = facts(front)
        assert chosen["title"] == "alpha 1, beta 1, schedule linear"
        assert "9 settings on 16 validation prompts" in chosen["text"]
        front["validation"]["chosen"]["beta"] = 0.0
        assert "LiNeS is plain scaling here" in facts(front)[0]["text"]

    @pytest.mark.parametrize(
        ("soup", "title"),
        [
            (5.0, "LiNeS undoes 75 % of what the rewarded soup forgets"),
            (4.2, "LiNeS forgets more than the rewarded soup: 25 % more"),
            (3.9, "The rewarded soup forgets nothing of the control texts, so that LiNeS has nothing to undo"),
        ],
    )
    def test_what_is_forgotten(self, soup, title):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["comparisons"], front["validation"] = [], None
        for point in front["points"]:
            mean = {"sft": 4.0, "lines": 4.25, "rewarded_soup": soup}[point["group"]]
            score = {"sft": 1.0, "lines": 1.9, "rewarded_soup": 2.0}[point["group"]]
            point["perplexity"] = {"mean": mean, "low": mean, "high": mean}
            point["scores"] = {key: {"mean": score, "low": score, "high": score} for key in front["rewards"]}
        [forgotten] = facts(front)
        assert forgotten["title"] == title
        if soup == 5.0:
            assert forgotten["text"].endswith("LiNeS keeps 90 % of the gain in brief and 90 % of the gain in faithful.")

    def test_what_was_swept(self):
        front = make_front(groups=("lines",), rewards=("a", "b", "c"))
        assert swept(front) == (
            "12 merged policies: LiNeS (11 points) and SFT (1 point); each measured on 24 test prompts with "
            "1 completion per prompt, scored by a, b and c. Higher scores are better."
        )
