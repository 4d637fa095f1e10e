"""The sentence that stands above everything else, against hand-made comparisons."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.headline import best_of_others, budgets_text, front_headline
from rlhf_lines.pareto.measures import REFERENCE_POINT_RULE


def difference(value, p_value):
    """Told by its corrected value; the plain one is another number here, which must not show."""
    ends = {"low": value - 1, "high": value + 1}
    return {"value": value + 7, "corrected": value, **ends, "adjusted_p_value": p_value}


def measures(hypervolume, expected_utility):
    return {
        name: {"value": corrected + 7, "corrected": corrected}
        for name, corrected in (("hypervolume", hypervolume), ("expected_utility", expected_utility))
    }


def front_of(**comparisons):
    """A front with these comparisons of LiNeS: a verdict, and value and p-value of each measure."""
    names = ("hypervolume", "expected_utility", "equal_kl")
    return {
        "confidence": 0.95,
        "objectives": ["a", "b"],
        "reference_point": [-0.1, 8.0],
        "reference_point_rule": REFERENCE_POINT_RULE,
        "ideal_point": [1.0, 30.0],
        "points": [{"group": "lines", "kl": {"mean": kl}} for kl in (-0.5, 3.25)],  # below 0 it counts as 0
        "fronts": {group: measures(20.0, 0.5) for group in comparisons},
        "comparisons": [
            {
                "a": "lines",
                "b": group,
                "verdict": verdict,
                "kl_budgets": [0.5, 3.25] if len(found) > 2 else None,
                "equal_kl_hypervolumes": [11.0, 8.0] if len(found) > 2 else None,
                "no_equal_kl": None if len(found) > 2 else "no KL",
            }
            | {f"{name}_difference": None for name in names}
            | {f"{name}_difference": difference(*each) for name, each in zip(names, found, strict=False)}
            for group, (verdict, found) in comparisons.items()
        ],
    }


def test_a_range_of_kl_that_is_narrow_beside_what_both_groups_span_is_said_to_be():
    front = front_of(rewarded_soup=("better", [(3.4, 0.001), (0.1, 0.01), (16.96, 0.04)]))
    front["points"] += [{"group": "rewarded_soup", "kl": {"mean": kl}} for kl in (3.0, 27.0)]
    front["points"] += [{"group": "scaled", "kl": {"mean": 99.0}}]  # has no part in it
    assert front_headline(front).endswith("+212 % hypervolume at equal KL from 0.50 to 3.25 nats.")
    front["points"][3]["kl"]["mean"] = 28.0  # 2.75 of 28 is less than a tenth, of 27 it is more
    assert front_headline(front).endswith("+212 % hypervolume at equal KL from 0.50 to 3.25 nats, a narrow range.")
    assert budgets_text(front, front["comparisons"][0]) == "0.50 to 3.25, narrow"
    assert budgets_text(front, front["comparisons"][0] | {"kl_budgets": None}, "--") == "--"


@pytest.mark.parametrize(
    ("comparisons", "sentence"),
    [
        (
            {"rewarded_soup": ("better", [(3.4, 0.001), (0.1, 0.01), (0.16, 0.04)])},
            "For these policies, LiNeS is better than the rewarded soup: +17 % hypervolume, +20 % expected utility, "
            "+2.0 % hypervolume at equal KL from 0.50 to 3.25 nats.",
        ),
        (
            {"scaled": ("mixed", [(-3.4, 0.001), (-0.01, 0.2), (0.8, 0.01)])},
            "For these policies, LiNeS against even scaling is mixed: -17 % hypervolume, "
            "-2.0 % expected utility (within noise), +10 % hypervolume at equal KL from 0.50 to 3.25 nats. So depth "
            "helps by some of these measures and not by others.",
        ),
        (
            {"scaled": ("mixed", [(-3.4, 0.001), (-0.01, 0.2), (-0.01, 0.9)])},
            "For these policies, LiNeS against even scaling is mixed: -17 % hypervolume, -2.0 % expected utility "
            "(within noise), -0.1 % hypervolume at equal KL from 0.50 to 3.25 nats (within noise). So depth does not "
            "help here: one factor for all layers gives more.",
        ),
        (
            {
                "scaled": ("lower", [(-20.0, 0.0), (-1.0, 0.0)]),
                "rewarded_soup": ("undecided", [(0.02, 0.9), (0.0, 1.0)]),
            },
            "For these policies, LiNeS and the rewarded soup cannot be told apart: +0.1 % hypervolume, +0.0 % expected "
            "utility. LiNeS is lower than even scaling: -100 % hypervolume, -200 % expected utility. So depth does not "
            "help here, unless at equal KL. All this is not compared at equal KL (no KL).",
        ),
        (
            {
                "scaled": ("higher", [(20.0, 0.0), (1.0, 0.0)]),
                "rewarded_soup": ("undecided", [(0.02, 0.9), (0.0, 1.0), (0.0, 1.0)]),
            },
            "For these policies, LiNeS and the rewarded soup cannot be told apart: +0.1 % hypervolume, +0.0 % expected "
            "utility, +0.0 % hypervolume at equal KL from 0.50 to 3.25 nats. LiNeS is higher than even scaling: +100 % "
            "hypervolume, +200 % expected utility; not compared at equal KL (no KL). So depth may help here, or longer "
            "steps.",
        ),
        (
            {
                "reversed": ("worse", [(-1.0, 0.0), (-0.1, 0.0), (-0.8, 0.0)]),
                "scaled": ("better", [(1.0, 0.0), (0.1, 0.0), (0.8, 0.0)]),
                "rewarded_soup": ("better", [(1.0, 0.0), (0.1, 0.0), (0.8, 0.0)]),
            },
            "For these policies, LiNeS is better than the rewarded soup: +5.0 % hypervolume, +20 % expected utility, "
            "+10 % hypervolume at equal KL from 0.50 to 3.25 nats. LiNeS is better than even scaling: +5.0 % "
            "hypervolume, +20 % expected utility, +10 % hypervolume at equal KL from 0.50 to 3.25 nats. So depth helps "
            "here, and not length alone. LiNeS is worse than reversed LiNeS: -5.0 % hypervolume, -20 % "
            "expected utility, -10 % hypervolume at equal KL from 0.50 to 3.25 nats.",
        ),
        ({}, ""),
    ],
)
def test_the_headline(comparisons, sentence):
    assert front_headline(front_of(**comparisons)) == sentence


def test_what_has_no_size_is_told_by_the_difference():
    front = front_of(rewarded_soup=("higher", [(3.4, 0.001), (0.1234, 0.01)]))
    front["fronts"]["rewarded_soup"] = measures(0.0, -0.1)
    assert front_headline(front).endswith(
        "LiNeS is higher than the rewarded soup: +3.4 hypervolume, +0.123 expected utility; not compared at equal KL "
        "(no KL)."
    )


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        ({}, ""),
        ({"reversed": measures(60.0, 0.9), "ties": measures(59.0, 0.8)}, ""),
        (
            {"reversed": measures(60.0, 0.9), "ties": measures(60.25, 0.92)},
            "Of all groups, ties has the largest hypervolume (60.25) and expected utility (0.92), but LiNeS and ties "
            "cannot be told apart.",
        ),
        (
            {"scaled": measures(60.0, 0.95), "dare": measures(61.0, 0.9)},
            "Of all groups, dare has the largest hypervolume (61): LiNeS is worse than dare.",
        ),
        (
            {"ties": measures(60.0, 0.95), "dare": measures(61.0, 0.9)},
            "Of all groups, dare has the largest hypervolume (61): LiNeS is worse than dare; ties has the largest "
            "expected utility (0.95), but LiNeS and ties cannot be told apart.",
        ),
        (
            {"fisher": measures(61.0, 0.5)},
            "Of all groups, fisher has the largest hypervolume (61): LiNeS against fisher is mixed.",
        ),
    ],
)
def test_the_group_of_the_largest_measures_is_named_with_what_its_comparison_says(best, sentence):
    front = front_of(
        rewarded_soup=("better", [(3.4, 0.001), (0.1, 0.01), (0.16, 0.04)]),
        ties=("undecided", [(-3.4, 0.2), (-0.1, 0.3), (-0.16, 0.4)]),
        dare=("worse", [(-3.4, 0.001), (-0.1, 0.01), (-0.16, 0.04)]),
        fisher=("mixed", [(-3.4, 0.001), (0.1, 0.01), (-0.16, 0.04)]),
    )
    front["fronts"] |= {"lines": measures(23.4, 0.6)} | best
    assert best_of_others(front) == sentence
    assert front_headline(front).endswith(sentence or "at equal KL from 0.50 to 3.25 nats.")


def test_a_group_that_lines_is_not_compared_with_is_named_alone():
    front = front_of(rewarded_soup=("better", [(3.4, 0.001), (0.1, 0.01), (0.16, 0.04)]))
    front["fronts"]["ties"] = measures(60.0, 0.4)
    assert best_of_others(front) == "Of all groups, ties has the largest hypervolume (60)."
