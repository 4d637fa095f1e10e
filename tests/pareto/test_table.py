"""The text table says what the front says, in 110 columns."""

from __future__ import annotations

import json
import re

import pytest

from rlhf_lines.pareto import build_front, front_table, picked_text
from rlhf_lines.pareto.latex import front_tex
from rlhf_lines.pareto.look_at import what_to_look_at
from rlhf_lines.pareto.report.facts import swept
from rlhf_lines.pareto.schema import label
from rlhf_lines.pareto.table import estimate_text, p_text
from tests.pareto.damaged import DEMO, front_of


@pytest.fixture
def front(make_points):
    return build_front(rewards=["helpful", "harmless"], split="test", seed=0, points=make_points(), resamples=100)


def cells_of(line):
    """Of the table's columns there are two blanks or more between."""
    return re.split(r" {2,}", line.strip("* "))


def row_of(table, point):
    own = [str(point["id"]), label(point["group"])]
    (row,) = [line for line in table.splitlines() if cells_of(line)[:2] == own]
    return row


def shown_points(table):
    """The ids of the points that the table has, in its order; a second block has them again."""
    heads = [i for i, line in enumerate(table.splitlines()) if line.startswith(" id")]
    rows = [line.strip("* ").split() for line in table.splitlines()[heads[0] + 1 :]]
    return list(dict.fromkeys(int(row[0]) for row in rows if row and row[0].isdigit()))


def test_every_point_of_the_best_group_is_a_row_with_its_numbers(front):
    table = front_table(front)
    utilities = {name: entry["expected_utility"]["corrected"] for name, entry in front["fronts"].items()}
    assert max(utilities, key=utilities.get) == "lines"
    assert "\n\nThe group of the largest expected utility: LiNeS (alpha 1, beta 1, linear)\n\n id" in table
    shown = [point for point in front["points"] if point["group"] != "rewarded_soup"]  # which has no known policies
    assert shown_points(table) == [point["id"] for point in shown] == [0, 6, 7, 8, 9, 10]
    for point in shown:
        row = row_of(table, point)
        best = point["id"] in [i for entry in front["fronts"].values() for i in entry["nondominated"]]
        assert row.startswith("*") == best
        score = point["scores"]["harmless"]
        assert f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in row
        assert cells_of(row)[2] == " / ".join(f"{weight:g}" for weight in point["spec"]["weights"])
        assert row.endswith("-" if point["kl"] is None else f"{point['kl']['mean']:.3f}")
    assert table.endswith(
        "\n*: no other point of its group dominates it; KL: to the SFT model, in nats\n"
        "rlhf-lines front RUN_DIR --all, front.csv and the page have also: 5 other points"
    )


@pytest.mark.parametrize(("gain", "expected"), [(3.0, "LiNeS"), (-3.0, "rewarded soup")])
def test_no_control_is_the_group_that_is_shown_however_good_it_is(make_points, gain, expected):
    points = make_points()
    for point in points[6:]:
        point["scores"] = point["scores"] + gain
    for point in make_points()[6:]:
        points.append({**point, "id": len(points), "group": "scaled", "scores": point["scores"] + 9.0})
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    utility = {group: entry["expected_utility"]["corrected"] for group, entry in front["fronts"].items()}
    assert max(utility, key=utility.get) == "scaled"
    assert f"expected utility, controls aside: {expected} (" in front_table(front)
    assert "even scaling" not in front_table(front).partition("controls aside: ")[2]


def test_settings_are_columns_where_they_differ_within_the_group(make_points):
    points = make_points()
    points[7]["spec"] |= {"alpha": "auto", "beta": 0.25}
    text = front_table(build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20))
    assert "expected utility: LiNeS\n" in text and "   auto  0.25 " in row_of(text, points[7])
    assert "      1     1 " in row_of(text, points[6])


def test_groups_and_differences_come_with_intervals(front):
    lines = front_table(front).splitlines()
    assert lines[0] == "40 test prompts, 95 % intervals over prompts, higher is better"
    (row,) = [line for line in lines if line.startswith("LiNeS  ")]
    measures = [front["fronts"]["lines"][measure] for measure in ("hypervolume", "expected_utility")]
    assert all(measure["value"] != measure["corrected"] for measure in measures)
    texts = [f"{measure['corrected']:.3f} [{measure['low']:.3f}, {measure['high']:.3f}]" for measure in measures]
    assert row.split()[1:7] == f"{texts[0]} {texts[1]}".split()
    assert row.split()[-2:] == ["5", "4"]
    (row,) = [line for line in lines if line.startswith("LiNeS - rewarded soup")]
    for measure in ("hypervolume", "expected_utility"):
        difference = front["comparisons"][0][f"{measure}_difference"]
        assert difference["adjusted_p_value"] < 0.0005
        assert f"{difference['corrected']:.3f} [{difference['low']:.3f}, {difference['high']:.3f}]  <0.001" in row
    assert cells_of(row)[1] == "higher"
    (heads,) = [line for line in lines if line.startswith("difference")]
    assert heads.split() == ["difference", "verdict", "hypervolume", "p", "expected", "utility", "p"]
    note = "p is adjusted (Holm) by each measure for 1 comparison; intervals are not; the verdict is of the first"
    assert any(line.startswith(note) for line in lines) and "P(" not in "".join(lines)


def test_a_front_without_kl_has_no_kl_column(make_points):
    points = [{**point, "kl": None} for point in make_points()]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    assert not any("KL" in cells_of(line) for line in front_table(front).splitlines())


@pytest.mark.parametrize(("rewards", "blocks", "intervals"), [(2, 1, True), (3, 1, True), (4, 2, False), (6, 3, False)])
def test_the_table_fits_without_intervals_or_repeats_the_points(make_points, rewards, blocks, intervals):
    names = [f"reward {i} with a long name" for i in range(rewards)]
    front = build_front(rewards=names, split="test", seed=0, points=make_points(rewards=rewards), resamples=20)
    table = front_table(front)
    assert max(map(len, table.splitlines())) <= 110
    assert [line.split()[:2] for line in table.splitlines()].count(["0", "SFT"]) == blocks
    assert [table.count(f"reward {i} with a l...") for i in range(rewards)] == [1] * rewards
    assert ("[" in table.partition("\n id  group")[2]) == intervals


def test_a_single_point_needs_no_front(make_points):
    front = build_front(rewards=["a", "b"], split="validation", seed=0, points=make_points()[:1], resamples=20)
    table = front_table(front)
    assert "hypervolume" not in table and "difference" not in table and "expected utility" not in table
    assert table.splitlines()[-1].split()[:3] == ["0", "SFT", "0"]


def test_a_group_name_cannot_break_the_table(make_points):
    points = [{**point, "group": "two\nlines " * 9} for point in make_points()[:2]]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    table = front_table(front)
    rows = [line for line in table.splitlines() if "two lines two lin..." in line]
    assert len(rows) == 4 and "two\nlines" not in table


def test_perplexity_has_a_column_where_it_is_known(make_points):
    points = make_points()
    points[8] |= {"nll": [30.0, 20.0], "text_tokens": [10, 10]}  # exp(50 / 20)
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    text = front_table(front)
    assert "perplexity: of the control texts, lower is better" in " ".join(text.splitlines()[-3:])
    assert row_of(text, points[8]).endswith("  12.18") and row_of(text, points[9]).endswith("  -")


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
    assert shown_points(text) == [0, 5, 6, 7, 8, 9, 10]
    assert "specific" not in text and text.count("brief") == 1


def test_schedules_are_shown_where_one_is_not_linear(make_points, front):
    assert "schedule" not in front_table(front)
    points = make_points()
    for point in points[6:]:
        point["spec"]["schedule"] = "sqrt"
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    rows = [line.split() for line in front_table(front).splitlines()]
    assert [row[-1] for row in rows if row[:1] in (["group"], ["rewarded"], ["LiNeS"]) and "-" not in row] == [
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
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    text = front_table(front)
    notes = " ".join(text.split("\n\n")[-1].split())
    assert "tokens: mean length; empty: share of empty completions; cut: share cut at the longest length" in notes
    assert max(map(len, text.splitlines())) <= 110
    head, *rows = text.split("\n\n")[-2].splitlines()
    assert cells_of(head) == ["id", "group", "weights", "a", "b", "log-ratio", "tokens", "empty", "cut"]
    for row in rows:
        odd = int(row.strip("* ").split()[0]) % 2
        assert re.search(rf"\] +0.250 +12.2  22.5 %  {'10.0 %' if odd else '     -'}$", row), row


def test_further_scores_stand_beside_the_objectives_and_what_does_not_fit_is_named(make_points):
    """Intervals of the objectives go last."""
    points = make_points()
    for point in points:
        point["metrics"] = {"humor": [point["id"] / 8, 0.0] * 20, "share_cut": [0.1] * 40, "tokens": [12.25] * 40}

    def table(*metrics):
        for point in points:
            point["metrics"] |= dict.fromkeys(metrics, point["metrics"]["humor"])
        front = build_front(rewards=["a", "b"], metrics=metrics, split="test", seed=0, points=points, resamples=20)
        _, table, notes = front_table(front).split("\n\n")[-3:]
        assert max(map(len, table.splitlines())) <= 110
        return table.splitlines()[0].split()[3:], row_of(table, points[10]), " ".join(notes.split())

    heads, row, notes = table("humor")
    assert heads == ["a", "b", "humor", "KL", "tokens"] and row.count("[") == 3
    assert notes.endswith("rlhf-lines front RUN_DIR --all, front.csv and the page have also: 5 other points, cut")
    heads, row, notes = table("humor", "m2", "m3")
    assert heads == ["a", "b", "humor", "m2", "m3", "KL", "tokens"] and row.count("[") == 2
    assert " 0.625  0.625  0.625 " in row and notes.endswith("also: 5 other points, cut")
    heads, row, notes = table("humor", "m2", "m3", *(f"metric {i}" for i in range(3)))
    assert heads[:2] == ["a", "b"] and "[" not in row


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
    missing = "LiNeS - ties, rewarded soup - ties (no KL: it was not measured at every point)"
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
        names = [*["LiNeS"] * edges[0], *["rewarded soup"] * edges[1], "even scaling"]
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
    assert "- 22 % of the completions of LiNeS 1 / 0 are empty; of the SFT model's 1 %." in block
    assert "- 29 % of the completions of LiNeS 0 / 1 are cut" in block
    assert [" ".join(text.split()) for text in block.split("\n- ")[1:]] == what_to_look_at(front_of(DEMO))
    assert max(map(len, block.splitlines())) <= 110
    assert table.index(block) < table.index(" id  group")
    assert "What to look at" not in front_table(front_of())


def test_all_points_have_all_that_was_measured():
    """Every number of `front.json` that says what completions are like is a cell of the table."""
    front = front_of(DEMO)
    table = front_table(front, all_points=True)
    assert max(map(len, table.splitlines())) <= 110
    cells: dict[str, dict[str, str]] = {}
    for block in [block for block in table.split("\n\n") if block.startswith(" id  group")]:
        head, *rows = block.splitlines()
        for row in rows:
            found = dict(zip(cells_of(head), cells_of(row), strict=True))
            cells.setdefault(found["id"], {}).update(found)
    assert cells.keys() == {str(point["id"]) for point in front["points"]}

    def share(mean):
        return f"{100 * mean['mean']:.1f} %"

    for point in front["points"]:
        found, row = point["metrics"], cells[str(point["id"])]
        wins = found["win_rate"]
        expected = {"tokens": f"{found['tokens']['mean']:.1f}", "empty": share(found["share_empty"])}
        expected |= {"cut": share(found["share_cut"]), "repetition": share(found["repetition"])}
        expected |= {"distinct": share(found["distinct"]), "win rate": share(wins)}
        expected |= {"better in all": share(wins["all_better"]), "worse in all": share(wins["all_worse"])}
        for name in "ab":
            r, matched = found["length_correlation"][name], found["at_matched_length"][name]
            expected |= {f"win rate ({name})": share(wins["by_objective"][name])}
            expected |= {f"correlation ({name})": "-" if r is None else f"{r['mean']:z.2f}"}
            expected |= {f"at equal length ({name})": "-" if matched is None else f"{matched['mean']:z.3f}"}
            assert row[name].startswith(f"{point['scores'][name]['mean']:.3f} [")
        assert {name: row[name] for name in expected} == expected
    assert table.count("share better in it") == 1 and "correlation (a): with length" in " ".join(table.split())
    named = " ".join(front_table(front).split()).rpartition("have also: ")[2]
    assert named.startswith(
        "3 other points, repetition, distinct, win rate, better in all, worse in all, win rate (a), correlation (a), "
    )


def test_objectives_that_are_cut_alike_are_numbered():
    front = front_of(DEMO)
    names = dict(zip("ab", (f"a very long name of an objective {i}" for i in range(2)), strict=True))
    text = re.sub(r'"([ab])"', lambda found: f'"{names[found[1]]}"', json.dumps(front["points"], default=float))
    front |= {"points": json.loads(text), "objectives": list(names.values()), "rewards": list(names.values())}
    table = front_table(front, all_points=True)
    assert "win rate (1)" in table and "at equal length (2)" in table


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({7: "morlhf"}, "MORLHF is a single point, which is no front: it is compared with nothing."),
        (
            {6: "ties", 7: "morlhf", 8: "dare"},
            "ties, MORLHF and dare are single points, which are no fronts: they are compared with nothing.",
        ),
        ({}, None),
    ],
)
def test_a_single_point_is_said_to_be_no_front(make_points, groups, sentence):
    points = [{**point, "group": groups.get(point["id"], point["group"])} for point in make_points()]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    assert front["not_compared"] == sentence  # the SFT model is a single point, too, and is no group to compare
    assert front["fronts"].keys() == {"rewarded_soup", "lines"}
    assert ("compared with nothing" in front_table(front)) == (sentence is not None)
    assert sentence is None or sentence in " ".join(front_table(front).split())
