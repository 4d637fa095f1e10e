"""What a sweep has found, in sentences and effects."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest

from rlhf_lines.pareto.comparisons import verdict
from rlhf_lines.pareto.report.facts import facts, ideal, swept, verdicts
from tests.pareto.report.report_runs import MINUS, make_front


@cache
def three_groups():
    return make_front(groups=("lines", "rewarded_soup", "scaled"))


def compared(**signs):
    """Returns a front in which LiNeS is compared with groups, by the sign of each measure."""
    front = deepcopy(three_groups())
    front["fronts"]["reversed"] = deepcopy(front["fronts"]["scaled"])
    front["confidence"], words = 0.95, {(1, 1, 1): "better", (-1, -1, -1): "worse", (0, 0, 0): "undecided"}
    for entry in front["fronts"].values():
        entry["hypervolume"]["corrected"], entry["expected_utility"]["corrected"] = 10.0, 0.5
    front["comparisons"] = [
        {"a": "lines", "b": group, "kl_budgets": [0.0, 1.0], "equal_kl_hypervolumes": [5.0, 4.0], "no_equal_kl": None}
        | {
            f"{measure}_difference": {
                "value": 9.0,
                "corrected": sign * size,
                "low": sign * size - size / 2,
                "high": sign * size + size / 2,
            }
            | {"adjusted_p_value": 0.0001 if sign else 0.7, "p_value": 0.0001, "probability_positive": 0.5}
            for measure, sign, size in zip(
                ("hypervolume", "expected_utility", "equal_kl"), found, (1.6, 0.01, 0.4), strict=True
            )
        }
        | {"verdict": words.get(found, "mixed")}
        for group, found in signs.items()
    ]
    return front


class TestVerdicts:
    def test_effects_are_shares_of_the_other_group(self):
        [card] = verdicts(compared(rewarded_soup=(1, -1, 0)))
        at_equal = "hypervolume at equal KL from 0.00 to 1.00 nats"
        assert [(e.measure, e.effect, e.interval, e.p_value, e.verdict, e.sign) for e in card.effects] == [
            ("hypervolume", "+16 %", "[+8, +24] %", "<0.001", "better", "↑"),
            ("expected utility", f"{MINUS}2.0 %", f"[{MINUS}3.0, {MINUS}1.0] %", "<0.001", "worse", "↓"),
            (at_equal, "0.0 %", f"[{MINUS}5.0, +5.0] %", "0.700", "unclear", "≈"),
        ]
        assert (card.title, card.verdict) == ("LiNeS against rewarded soup: mixed", "mixed")
        assert card.text == (
            "Hypervolume higher; expected utility lower; hypervolume at equal KL not different beyond noise."
        )

    @pytest.mark.parametrize(
        ("signs", "title", "verdict"),
        [
            ((1, 1, 1), "LiNeS is better than rewarded soup", "better"),
            ((-1, -1, -1), "LiNeS is worse than rewarded soup", "worse"),
            ((0, 0, 0), "LiNeS and rewarded soup cannot be told apart", "unclear"),
        ],
    )
    def test_all_measures_give_the_verdict(self, signs, title, verdict):
        [card] = verdicts(compared(rewarded_soup=signs))
        assert (card.title, card.verdict, card.text) == (title, verdict, "")

    @pytest.mark.parametrize(
        ("signs", "text"),
        [
            ((1, 1, 1), "So depth helps here, and not length alone."),
            ((-1, -1, -1), "So depth does not help here: one factor for all layers gives more."),
            ((0, 0, 0), "So depth is not seen to matter here."),
        ],
    )
    def test_the_comparison_with_one_factor_says_whether_depth_helps(self, signs, text):
        soup, scaled = verdicts(compared(scaled=signs, rewarded_soup=(1, 1, 1)))
        assert "rewarded soup" in soup.title and "even scaling" in scaled.title  # the soup is told first
        assert scaled.text == text

    def test_the_strongest_control_has_a_card_too(self):
        front = compared(reversed=(-1, -1, -1), scaled=(1, 1, 1), rewarded_soup=(1, 1, 1))
        titles = [card.title for card in verdicts(front)]
        assert [title.split()[2] for title in titles] == ["better", "better", "worse"]
        assert titles[-1] == "LiNeS is worse than reversed LiNeS"

    def test_another_group_is_called_better_only_where_its_comparison_says_so(self):
        with_equal_kl, worse = compared(rewarded_soup=(1, 1, 1), ties=(-1, -1, -1)), "LiNeS is worse than ties."
        without = compared(rewarded_soup=(1, 1, 1), ties=(-1, -1, -1))
        without["comparisons"][1]["verdict"] = "lower"
        undecided = compared(rewarded_soup=(1, 1, 1), ties=(0, 0, 0))
        of_others = compared(rewarded_soup=(1, 1, 1))  # LiNeS is not compared with it
        largest = "Another group has the largest measures"
        for front, title, start, end in (
            (with_equal_kl, "Another group is better than LiNeS", ": ", worse),
            (without, "Another group is higher than LiNeS", ": ", worse.replace("worse", "lower")),
            (undecided, largest, ", but ", "LiNeS and ties cannot be told apart."),
            (of_others, largest, ".", ""),
        ):
            assert largest not in [card.title for card in facts(front)]
            front["fronts"]["ties"] = {"hypervolume": {"corrected": 12.5}, "expected_utility": {"corrected": 0.25}}
            card = facts(front)[0]
            assert (card.title, card.verdict) == (title, "")
            assert card.text == f"Of all groups, ties has the largest hypervolume (12.5){start}{end}"

    @pytest.mark.parametrize(
        ("signs", "title", "text"),
        [
            ((1, 1), "LiNeS is higher than even scaling", "So depth may help here, or longer steps."),
            ((-1, -1), "LiNeS is lower than even scaling", "So depth does not help here, unless at equal KL."),
            ((-1, 0), "LiNeS against even scaling: mixed", "So depth does not help here, unless at equal KL."),
            ((0, 0), "LiNeS and even scaling cannot be told apart", "So depth is not seen to matter here."),
        ],
    )
    def test_without_equal_kl_the_card_says_so_and_nothing_is_better(self, signs, title, text):
        front = compared(scaled=(*signs, 1))
        [entry] = front["comparisons"]
        entry |= {"equal_kl_difference": None, "kl_budgets": None, "equal_kl_hypervolumes": None, "no_equal_kl": "why"}
        entry["verdict"] = verdict(dict(zip(("hypervolume", "expected_utility"), signs, strict=True)))
        [card] = verdicts(front)
        assert card.title == title and card.verdict == ("mixed" if "mixed" in title else "unclear")
        assert card.text.startswith("Not compared at equal KL (why). ") and card.text.endswith(text)
        assert len(card.effects) == 2

    def test_other_groups_are_compared_where_lines_is_not(self):
        front = compared(rewarded_soup=(1, 1, 1))
        front["comparisons"][0]["a"] = "scaled"
        assert [card.title for card in verdicts(front)] == ["even scaling is better than rewarded soup"]


class TestFacts:
    def test_what_was_chosen(self):
        front = make_front(groups=("lines",))
        front["validation"]["groups"] = {"scaled": {**front["validation"], "at_edge": False}}
        chosen = facts(front)[0]
        assert (chosen.title, chosen.verdict) == ("Scalings were chosen on other prompts", "unclear")
        settings = "LiNeS: alpha 1, beta 1 (of 9 settings); even scaling: alpha 1, beta 1 (of 9 settings). Chosen by"
        assert chosen.text.startswith(settings)
        assert chosen.text.endswith("LiNeS lies at an edge of what was tried, so that more of it may be better.")
        assert "on 16 validation prompts at 3 weights" in chosen.text
        front["validation"] |= {"at_edge": False, "max_kl": 4.5}
        front["validation"]["chosen"]["beta"] = 0.0
        chosen = facts(front)[0]
        assert "edge" not in chosen.text and "with KL at most 4.5" in chosen.text and chosen.verdict == ""
        assert "LiNeS is plain scaling here" in chosen.text
        front["validation"]["minimum"] = {"harmless": 0.25}
        assert "with KL at most 4.5 and harmless at least 0.25, and used" in facts(front)[0].text

    @pytest.mark.parametrize(
        ("at_edge", "words"),
        [
            ((True, True, True), "All lie at an edge of"),
            ((True, False, True), "LiNeS and reversed LiNeS lie at an edge of"),
        ],
    )
    def test_an_edge_is_told_once(self, at_edge, words):
        front = make_front(groups=("lines",))
        others = {"scaled": at_edge[1], "reversed": at_edge[2]}
        front["validation"]["at_edge"] = at_edge[0]
        front["validation"]["groups"] = {
            name: {**front["validation"], "at_edge": edge} for name, edge in others.items()
        }
        text = facts(front)[0].text
        assert words in text and text.count("edge") == 1

    @pytest.mark.parametrize(
        ("soup", "title", "change"),
        [
            (5.0, "LiNeS forgets less than the rewarded soup", "+25"),
            (4.2, "LiNeS forgets more than the rewarded soup", "+5"),
            (4.25, "LiNeS forgets as much as the rewarded soup", "+6"),
        ],
    )
    def test_what_is_forgotten(self, soup, title, change):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["validation"] = None
        for point in front["points"]:
            mean = {"sft": 4.0, "lines": 4.25, "rewarded_soup": soup}[point["group"]]
            score = {"sft": 1.0, "lines": 1.9, "rewarded_soup": 2.0}[point["group"]]
            point["perplexity"] = {"mean": mean, "low": mean, "high": mean}
            point["scores"] = {key: {"mean": score, "low": score, "high": score} for key in front["rewards"]}
        [forgotten] = facts(front)
        assert forgotten.title == title
        assert forgotten.text == (
            "Perplexity of 50 texts outside the task, lower is better: the SFT model's is 4. At the same weights the "
            f"rewarded soup changes it by {change} % and LiNeS by +6 % (medians over 11 weights); LiNeS has 90 % of "
            "the soup's gain in brief (median over 11 weights) and 90 % of the soup's gain in faithful (median over 11 "
            "weights)."
        )

    def test_nothing_was_forgotten(self):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["validation"] = None
        for point in front["points"]:
            point["perplexity"] = {"mean": 4.0 - 0.1 * (point["group"] != "sft"), "low": 3.0, "high": 5.0}
        assert facts(front)[0].title == "Nothing was forgotten"

    def test_what_was_swept(self):
        front = make_front(groups=("lines",), rewards=("a", "b", "c"), prompts=30)
        assert swept(front) == (
            "12 policies: LiNeS (11 points) and SFT (1 point); each measured on 30 test prompts with "
            "1 completion per prompt, scored by a, b and c. Higher scores are better."
        )


def test_more_than_the_ideal_point_is_possible_where_it_is_that_of_single_policies():
    front = make_front(groups=("lines", "rewarded_soup"))
    assert ideal(front) == "the best single policy's score in each objective; more is possible"
    front["points"] = [point for point in front["points"] if point["group"] == "lines"]
    assert ideal(front) == "the best point's score in each objective"
