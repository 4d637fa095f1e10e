"""The text table says what the front says, in 110 columns."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto import build_front, front_table, picked_text
from rlhf_lines.pareto.latex import front_tex
from rlhf_lines.pareto.look_at import what_to_look_at
from rlhf_lines.pareto.report.facts import swept
from rlhf_lines.pareto.table import estimate_text, p_text
from tests.pareto.damaged import DEMO, front_of


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
    assert lines[0] == "40 test prompts, 95 % intervals over prompts, higher is better"
    (row,) = [line for line in lines if line.startswith("lines  ")]
    measures = [front["fronts"]["lines"][measure] for measure in ("hypervolume", "expected_utility")]
    assert all(measure["value"] != measure["corrected"] for measure in measures)
    texts = [f"{measure['corrected']:.3f} [{measure['low']:.3f}, {measure['high']:.3f}]" for measure in measures]
    assert row.split()[1:7] == f"{texts[0]} {texts[1]}".split()
    assert row.split()[-2:] == ["5", "4"]
    (row,) = [line for line in lines if line.startswith("lines - rewarded_soup")]
    for measure in ("hypervolume", "expected_utility"):
        difference = front["comparisons"][0][f"{measure}_difference"]
        assert difference["adjusted_p_value"] < 0.0005
        assert f"{difference['corrected']:.3f} [{difference['low']:.3f}, {difference['high']:.3f}]  <0.001" in row
    assert row.split()[3] == "higher"
    (heads,) = [line for line in lines if line.startswith("difference")]
    assert heads.split() == ["difference", "verdict", "hypervolume", "p", "expected", "utility", "p"]
    note = "p is adjusted (Holm) by each measure for 1 comparison; intervals are not; the verdict is of the first"
    assert any(line.startswith(note) for line in lines) and "P(" not in "".join(lines)


def test_a_front_without_kl_has_no_kl_column(make_points):
    points = [{**point, "kl": None} for point in make_points()]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    assert "kl" not in front_table(front).split()


@pytest.mark.parametrize(("rewards", "blocks"), [(2, 1), (3, 2), (6, 4)])
def test_the_table_fits_and_repeats_the_points_where_rewards_do_not(make_points, rewards, blocks):
    names = [f"reward {i} with a long name" for i in range(rewards)]
    front = build_front(rewards=names, split="test", seed=0, points=make_points(rewards=rewards), resamples=20)
    table = front_table(front)
    assert max(map(len, table.splitlines())) <= 110
    assert [line.split()[:2] for line in table.splitlines()].count(["0", "sft"]) == blocks
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


def test_perplexity_has_a_column_where_it_is_known(make_points):
    points = make_points()
    points[3] |= {"nll": [30.0, 20.0], "text_tokens": [10, 10]}  # exp(50 / 20)
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    text = front_table(front)
    assert text.splitlines()[1] == "ppl: perplexity of the control texts, lower is better"
    assert row_of(text, points[3]).endswith("     -  12.18") and row_of(text, points[4]).endswith("     -")


def test_a_single_policy_is_named(make_points):
    def table_of(points, policies):
        return front_table(
            build_front(rewards=["a", "b"], split="test", seed=0, points=points, policies=policies, resamples=20)
        )

    points = make_points()
    points[7] |= {"group": "morlhf", "spec": {**points[1]["spec"], "weights": [0.0, 0.0, 1.0]}}
    text = table_of(points, ["outputs/policies/brief", "outputs/policies/specific/", "outputs/policies/both"])
    assert "  specific " in row_of(text, points[1]) and "  brief " in row_of(text, points[5])
    assert "  both " in row_of(text, points[7])
    assert text.count("specific") == text.count("brief") == 1  # LiNeS with the same weights is another model
    assert "  seed_1/final " in row_of(table_of(points, ["seed_0/final", "seed_1/final"]), points[1])


def test_twice_a_policy_is_shown_by_its_weights(make_points):
    points = make_points()
    points[1]["spec"]["rule"] = "sum"  # K times the policy
    policies = ["policies/brief", "policies/specific"]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, policies=policies, resamples=20)
    text = front_table(front)
    assert "rewarded_soup  0.00 1.00   1.00  0.00 " in row_of(text, points[1])
    assert "specific" not in text and text.count("brief") == 1


def test_an_alpha_that_is_measured_is_written_as_such(make_points):
    points = make_points()
    points[7]["spec"]["alpha"] = "auto"
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    assert " auto  1.00 " in row_of(front_table(front), points[7])


def test_schedules_are_shown_where_one_is_not_linear(make_points, front):
    assert "schedule" not in front_table(front)
    points = make_points()
    for point in points[6:]:
        point["spec"]["schedule"] = "sqrt"
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    rows = [line.split() for line in front_table(front).splitlines()]
    assert [row[-1] for row in rows if row[:1] in (["group"], ["rewarded_soup"], ["lines"]) and "-" not in row] == [
        *("schedule", "linear", "sqrt")
    ]


def test_long_names_and_all_columns_fit(make_points):
    points = make_points()
    for group in ("a group with a long name", "another group with a long name"):
        for point in make_points()[6:]:
            points.append(
                {**point, "id": len(points), "group": group, "spec": {**point["spec"], "schedule": "reversed"}}
            )
    for point in points:
        point |= {
            "scores": point["scores"] - 5.0,
            "nll": [300.0],
            "text_tokens": [50],
            "kl": [0.5 + point["id"] % 5] * 40,
        }
    policies = ["policies/a policy with a long name", "policies/another policy with a long name"]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, policies=policies, resamples=20)
    lines = front_table(front).splitlines()
    assert max(map(len, lines)) <= 110
    assert sum(line.startswith("difference") for line in lines) == 3  # a block for each measure


def test_metrics_have_columns_and_shares_are_in_percent(make_points):
    points = make_points()
    for point in points:
        cut = {"share_cut": [0.1] * 40} if point["id"] % 2 else {}
        point["metrics"] = {
            "humor": [point["id"] / 8 - 0.5, point["id"] / 8 + 0.5] * 20,
            "tokens": [12.25] * 40,
            "share_empty": [1.0] * 9 + [0.0] * 31,
        }
        point["metrics"] |= cut | {"log_ratio": [0.25] * 40}
        point["kl"] = None
    front = build_front(rewards=["a", "b"], metrics=["humor"], split="test", seed=0, points=points, resamples=20)
    text = front_table(front)
    assert "tokens, empty, cut: mean length, share of empty completions" in text.splitlines()[1]
    assert max(map(len, text.splitlines())) <= 110
    table = "\n".join(text.split("\n\n")[-2:])
    heads = " ".join(line for line in table.splitlines() if "weights" in line).split()
    assert [name for name in heads if name not in ("id", "group", "weights", "alpha", "beta")] == [
        *("a", "b", "humor", "tokens", "empty", "cut", "log", "ratio")
    ]
    for point in points:
        rows = " ".join(line for line in table.splitlines() if line.strip("* ").startswith(f"{point['id']} "))
        assert f"{point['id'] / 8:.3f} [" in rows and " 12.2 " in rows and " 22.5 % " in rows and "0.250" in rows
        assert (" 10.0 %" in rows) == bool(point["id"] % 2)


def test_comparisons_at_equal_kl_come_with_the_others(make_points):
    points = [
        {**point, "kl": [(1 + (point["id"] - 1) % 5 + (point["group"] == "lines")) / 10] * 40}
        for point in make_points()
    ]
    for point in make_points()[6:]:
        points.append({**point, "id": len(points), "group": "ties", "scores": point["scores"] - 0.01})
    points[11]["kl"] = None
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=50)
    lines = front_table(front).splitlines()
    head = next(i for i, line in enumerate(lines) if "hypervolume at equal KL       p " in line)
    at_equal = front["comparisons"][0]["equal_kl_difference"]
    assert at_equal["value"] != at_equal["corrected"] and at_equal["adjusted_p_value"] > 0.0005
    ends = f"[{at_equal['low']:.3f}, {at_equal['high']:.3f}]"
    low, high = front["comparisons"][0]["kl_budgets"]
    budgets = f"{low:.2f} to {high:.2f}"
    assert lines[head].endswith(f"  {'KL, nats':>{len(budgets)}}")
    assert lines[head + 1].endswith(
        f"{at_equal['corrected']:.3f} {ends}   {at_equal['adjusted_p_value']:.3f}  {budgets}"
    )
    assert [lines[head + i].split()[-2:] for i in (2, 3)] == [["-", "-"]] * 2  # of ties, a point has no KL
    text = " ".join("\n".join(lines).split())
    assert "for 1 comparison of LiNeS with the soup and its controls, and separately for the 2 others;" in text
    missing = "lines - ties, rewarded_soup - ties (no KL: it was not measured at every point)"
    assert f"not compared at equal KL, and so not called better: {missing}" in text


@pytest.mark.parametrize(("prompts", "few"), [(29, True), (30, False)])
def test_few_prompts_are_told(make_points, prompts, few):
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=make_points(prompts=prompts), resamples=20)
    assert ("Few prompts (29): intervals are widened" in front_table(front)) == few
    assert ("Few prompts (29): intervals are widened" in swept(front)) == few
    assert ("% Few prompts (29): intervals are widened" in front_tex(front)) == few
    front |= {"sft_model": "sft", "policies": ["a", "b"]}
    assert ("\n  Few prompts (29): intervals are widened" in picked_text(front, front["points"][0], "run")) == few


def test_what_was_chosen_at_an_edge_is_marked_in_table_and_tex(front):
    tuning = {"grid": [], "chosen": {}, "at_edge": False}
    front["validation"] = {**tuning, "groups": {"rewarded_soup": {**tuning}, "scaled": {**tuning, "at_edge": True}}}
    of_lines, of_soup = front["validation"], front["validation"]["groups"]["rewarded_soup"]
    said = "chosen at an edge of what was tried"
    for edges in ((False, False), (True, False), (True, True)):
        of_lines["at_edge"], of_soup["at_edge"] = edges
        names = [*["lines"] * edges[0], *["rewarded_soup"] * edges[1], "scaled"]
        assert f"{said}, so that going beyond may give more: {', '.join(names)}\n" in front_table(front)
        rows = [line for line in front_tex(front).splitlines() if r"$^\dagger$" in line]
        assert [row.split("$")[0] for row in rows] == [
            *["rewarded soup"] * edges[1], *["LiNeS"] * edges[0], *[r"\multicolumn{4}{l}{\footnotesize "] * any(edges)
        ]  # fmt: skip
    front["validation"]["groups"]["scaled"]["at_edge"] = of_lines["at_edge"] = of_soup["at_edge"] = False
    assert said not in front_table(front) and said not in front_tex(front)


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(0.0, "<0.001"), (0.00049, "<0.001"), (0.0005, "0.001"), (0.04949, "0.049"), (1.0, "1.000"), (None, "-")],
)
def test_a_p_value_is_never_written_as_0(p_value, text):
    assert p_text(p_value) == text


def test_a_number_without_an_interval_is_written_alone():
    assert estimate_text({"value": 1.0, "corrected": 0.25, "low": None, "high": None}, 2) == "0.25"
    assert estimate_text({"mean": 1.0, "low": 0.5, "high": 2.0}, 1) == "1.0 [0.5, 2.0]"


def test_one_objective_has_a_table(make_points):
    points = [{**point, "scores": point["scores"][:, :1]} for point in make_points()]
    front = build_front(rewards=["a"], split="test", seed=0, points=points, resamples=20)
    assert sum(line.startswith("*") for line in front_table(front).splitlines()) == 2


def test_what_to_look_at_stands_above_the_points_in_lines_that_fit():
    table = front_table(front_of(DEMO))
    block = next(block for block in table.split("\n\n") if block.startswith("What to look at"))
    assert "- 22 % of the completions of LiNeS 1.00 0.00 are empty; of the SFT model's 1 %." in block
    assert "- 29 % of the completions of LiNeS 0.00 1.00 are cut" in block
    assert [" ".join(text.split()) for text in block.split("\n- ")[1:]] == what_to_look_at(front_of(DEMO))
    assert max(map(len, block.splitlines())) <= 110
    assert table.index(block) < table.index(" id  group")
    assert "What to look at" not in front_table(front_of())
