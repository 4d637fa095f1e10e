"""`comparison.json` of synthetic runs: the measures of single runs, attainment by counting, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rlhf_lines.pareto import build_front, correct, expected_utility, holm, hypervolume, utilities
from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.comparison import RunsFile, read_comparison, write_comparison
from rlhf_lines.pareto.comparison_table import comparison_table
from rlhf_lines.pareto.corrected import DRAWN
from rlhf_lines.pareto.equal_kl import EqualKL, noise_over_own_budgets, with_neighbours_joined
from rlhf_lines.pareto.replicates import mean_over_runs
from rlhf_lines.pareto.runs import RunScores, attainment_difference, attainment_over_runs, compare_runs
from rlhf_lines.pareto.schema import faults


SETTINGS = {"objectives": ["r1", "r2"], "split": "test", "seed": 4}
OF_FRONT = {"rewards": SETTINGS["objectives"], "split": "test", "seed": 4, "resamples": 200}
DIFFERENCES = ("hypervolume_difference", "expected_utility_difference", "equal_kl_difference")
POLICIES = ["one", "two"]


@pytest.fixture
def make_run(make_points):
    """A function from a seed to a run and to the arguments of `build_front`."""

    def make(seed, *, side="a", prompts=30, **changes):
        points = make_points(prompts=prompts, seed=seed)
        generator = np.random.default_rng(100 + seed)
        for point in points[1:]:
            scale = 0.3 + 0.05 * point["spec"]["beta"] + 0.1 * (point["id"] % 5)
            point["kl"] = generator.gamma(4.0, scale, size=prompts)
        front = build_front(points=points, sft_model="sft", policies=POLICIES, **OF_FRONT)
        values = {
            "name": f"run {seed}",
            "folder": f"runs/{seed}",
            "prompts": [f"p{i}" for i in range(prompts)],
            "points": front["points"],
            "scores": {point["id"]: point["scores"] for point in points},
            "sft_model": "sft",
            "policies": POLICIES,
            "side": side,
            "kl": {point["id"]: point["kl"] for point in points[1:]},
        }
        return RunScores(**{**values, **changes}), front

    return make


def test_the_file_has_the_keys_of_the_schema_and_is_read_as_it_was_written(make_run, tmp_path):
    comparison = compare_runs([make_run(seed)[0] for seed in (1, 2, 3)], **SETTINGS)
    assert list(faults(comparison, RunsFile)) == []
    write_comparison(tmp_path, comparison)
    assert read_comparison(tmp_path) == comparison
    text = (tmp_path / "comparison.json").read_text()
    for damage, told in (
        (text.replace('"format": 1', '"format": 2'), "has format 2; expected 1"),
        (text.replace('"verdict"', '"verdikt"', 1), r"has no comparisons\[0\].verdict"),
        (text.replace('"split": "test"', '"split": 3'), "has a wrong value for split"),
        ("{", "is not valid JSON"),
    ):
        (tmp_path / "comparison.json").write_text(damage)
        with pytest.raises(ValueError, match=told):
            read_comparison(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the output_dir of rlhf-lines compare"):
        read_comparison(tmp_path / "no")


def test_an_objective_without_spread_is_noted(make_run):
    runs = [make_run(seed)[0] for seed in (1, 2)]
    assert compare_runs(runs, **SETTINGS, notes=["one"])["notes"] == ["one"]
    for run in runs:
        for scores in run.scores.values():
            scores[:, 1] = 0.3
    *before, told = compare_runs(runs, **SETTINGS, notes=["one"])["notes"]
    assert before == ["one"] and told.startswith("r2 is 0.3 for the SFT model and every policy, and hypervolumes are")
    assert told.endswith("leave it out, by rlhf-lines front RUN_DIR --objectives r1.")


def test_by_its_own_reference_point_a_run_has_the_numbers_of_its_front(make_run):
    """Corrected ones and intervals too, also at equal KL: the prompts are resampled as there.

    Utilities depend on the ideal point, which is the anchors' of all runs.
    """
    run, front = make_run(1)
    found = compare_runs([run, make_run(2)[0]], **SETTINGS, given_reference=front["reference_point"])
    assert found["reference_point_rule"] == "given"
    for name, entry in front["fronts"].items():
        assert found["runs"][0]["groups"][name]["hypervolume"] == pytest.approx(entry["hypervolume"], rel=1e-12)
    (theirs,), (ours,) = front["comparisons"], found["comparisons"]
    assert (ours["a"], ours["b"]) == (theirs["a"], theirs["b"]) == ("lines", "rewarded_soup")
    assert ours["kl_budgets"][0] == theirs["kl_budgets"] != ours["kl_budgets"][1]
    for key in ("hypervolume_difference", "equal_kl_difference"):
        of_run = ours[key]["runs"][0]
        assert list(of_run) == ["value", "corrected", "low", "high"]
        assert of_run == pytest.approx({k: theirs[key][k] for k in of_run}, rel=1e-12)
    same = compare_runs([run, run], **SETTINGS)["comparisons"][0]  # whose anchors are those of the one
    for key in DIFFERENCES:
        for of_run in same[key]["runs"]:
            assert of_run == pytest.approx({k: theirs[key][k] for k in of_run}, rel=1e-12)


def test_all_runs_are_measured_by_the_anchors_of_all(make_run):
    runs = [make_run(seed)[0] for seed in (1, 2)]
    found = compare_runs(runs, **SETTINGS)
    # The SFT model is point 0; the ends of the rewarded soup are 1 and 5. LiNeS' ends are none: they are scaled.
    anchors = np.array([np.mean(run.scores[i], axis=0) for run in runs for i in (0, 1, 5)])
    low, high = anchors.min(axis=0), anchors.max(axis=0)
    assert found["reference_point"] == pytest.approx((low - 0.1 * (high - low)).tolist())
    assert found["ideal_point"] == pytest.approx(high.tolist())
    for run, entry in zip(runs, found["runs"], strict=True):
        means = np.array([np.mean(run.scores[i], axis=0) for i in range(6, 11)])
        measures = entry["groups"]["lines"]
        assert measures["hypervolume"]["value"] == pytest.approx(hypervolume(means, found["reference_point"]))
        units = utilities(means[None], found["reference_point"], found["ideal_point"])
        assert measures["expected_utility"]["value"] == pytest.approx(expected_utility(units)[0])


def test_an_unrelated_group_changes_nothing_but_the_list(make_run):
    runs = [make_run(seed)[0] for seed in (1, 2)]
    before = compare_runs(runs, **SETTINGS)
    for run in runs:
        for i in (11, 12):
            spec = {**run.points[1]["spec"], "rule": "ties"}
            run.points.append({**run.points[1], "id": i, "group": "ties", "spec": spec, "single_policy": None})
            run.scores[i] = np.asarray(run.scores[1]) - 9.0
        run.points.append({**run.points[1], "id": 13, "group": "morlhf", "single_policy": 2})
        run.scores[13] = np.asarray(run.scores[1]) - 99.0
    after = compare_runs(runs, **SETTINGS)
    assert after["reference_point"] == before["reference_point"] and len(after["comparisons"]) == 3
    ours, theirs = (c["comparisons"][0]["hypervolume_difference"] for c in (before, after))
    assert {**theirs, "adjusted_p_value": ours["adjusted_p_value"]} == ours
    assert theirs["adjusted_p_value"] >= ours["adjusted_p_value"] == ours["p_value"]


def test_over_runs_is_the_mean_of_the_runs_and_signs_are_counted(make_run):
    found = compare_runs([make_run(seed)[0] for seed in (1, 2, 3, 4)], **SETTINGS)
    for key in DIFFERENCES[:2]:
        difference = found["comparisons"][0][key]
        values, corrected = ([run[k] for run in difference["runs"]] for k in ("value", "corrected"))
        assert difference["value"] == pytest.approx(np.mean(values))
        assert difference["corrected"] == pytest.approx(np.mean(corrected)) != difference["value"]
        assert difference["error_of_runs"] == pytest.approx(np.std(corrected, ddof=1) / 2)
        assert difference["low"] + difference["high"] == pytest.approx(2 * difference["corrected"])
        assert difference["positive_runs"] == sum(value > 0 for value in corrected) == 4
    assert found["shared_prompts"] == 30 and found["notes"] == []


def test_the_same_run_twice_has_the_numbers_of_the_run(make_run):
    run = make_run(1)[0]
    found = compare_runs([run, run, run], **SETTINGS)
    for key in DIFFERENCES:
        difference = found["comparisons"][0][key]
        assert difference["runs"][0] == difference["runs"][2]
        for number in difference["runs"][0]:
            assert difference[number] == pytest.approx(difference["runs"][0][number], rel=1e-9)
        assert difference["error_of_runs"] == pytest.approx(0.0, abs=1e-12)
    surfaces = found["attainment"]["a"]["lines"]
    assert surfaces["best"] == surfaces["median"] == surfaces["worst"]


def test_prompts_in_another_order_are_the_same_prompts(make_run):
    runs = [make_run(seed)[0] for seed in (1, 2)]
    order = np.random.default_rng(0).permutation(30)
    turned, _ = make_run(2, prompts=30)
    turned = RunScores(
        "turned",
        "t",
        [turned.prompts[i] for i in order],
        turned.points,
        {i: np.asarray(s)[order] for i, s in turned.scores.items()},
        kl={i: s[order] for i, s in turned.kl.items()},
    )
    one, other = compare_runs(runs, **SETTINGS), compare_runs([runs[0], turned], **SETTINGS)
    for a, b in zip(one["comparisons"], other["comparisons"], strict=True):
        for key in DIFFERENCES:
            for number in ("value", "corrected", "low", "high", "error_of_runs", "error_of_prompts"):
                assert a[key][number] == pytest.approx(b[key][number], rel=1e-9)


def test_two_recipes_are_compared_group_by_group(make_run):
    runs = [make_run(seed, side=side)[0] for seed, side in ((1, "a"), (2, "a"), (3, "b"), (4, "b"))]
    found = compare_runs(runs, **SETTINGS)
    assert list(faults(found, RunsFile)) == []
    assert [(entry["a"], entry["b"]) for entry in found["comparisons"]] == [
        ("lines", "lines"),
        ("rewarded_soup", "rewarded_soup"),
    ]
    difference = found["comparisons"][0]["hypervolume_difference"]
    for key in ("value", "corrected"):
        values = [run["groups"]["lines"]["hypervolume"][key] for run in found["runs"]]
        assert difference[key] == pytest.approx(sum(values[:2]) / 2 - sum(values[2:]) / 2)
    assert difference["runs"] == [] and difference["positive_runs"] is None
    assert sorted(found["attainment"]) == ["a", "b"]
    pair = compare_runs([runs[0], runs[2]], **SETTINGS)["comparisons"][0]["hypervolume_difference"]
    assert pair["error_of_runs"] is None and pair["error_of_prompts"] > 0


def test_at_equal_kl_every_run_has_its_own_budget(make_run):
    """The smaller of both groups' largest mean KL, from scores of every prompt."""
    runs = [make_run(seed)[0] for seed in (1, 2, 3)]
    found = compare_runs(runs, **SETTINGS)
    entry, each, hypervolumes = found["comparisons"][0], [], []
    for run, budget in zip(runs, entry["kl_budgets"], strict=True):
        spent = [[np.mean(run.kl[i]) for i in ids] for ids in (range(1, 6), range(6, 11))]
        assert budget == [max(map(min, spent)), min(map(max, spent))]
        measure, offered = EqualKL.between(*budget, found["reference_point"]), []
        for ids in (range(6, 11), range(1, 6)):
            own = np.stack([np.column_stack([run.scores[i], -run.kl[i]]) for i in ids])
            joined = with_neighbours_joined(own, [run.points[i]["spec"]["weights"] for i in ids])
            unmoved = np.column_stack([run.scores[0], np.zeros(30)])[None]
            offered.append(np.concatenate([joined, unmoved]))
        kl = [[run.kl[i] for i in ids] for ids in (range(6, 11), range(1, 6))]
        noise = noise_over_own_budgets(offered, kl, [bootstrap_counts(30, DRAWN, SETTINGS["seed"])] * 2)
        one, other = (correct(values, measure, noise=drawn) for values, drawn in zip(offered, noise, strict=True))
        each.append(one - other)
        hypervolumes.append([one.corrected, other.corrected])
    expected = mean_over_runs(each)
    np.testing.assert_allclose(entry["equal_kl_hypervolumes"], hypervolumes, rtol=1e-12)
    difference = entry["equal_kl_difference"]
    assert [run["value"] for run in difference["runs"]] == pytest.approx([one.value for one in each], rel=1e-12)
    assert [difference[key] for key in ("corrected", "low", "high", "p_value")] == pytest.approx(expected.estimate())


def test_between_two_sides_one_budget_holds_for_all_runs(make_run):
    """Else the side that moved further would be given more of it."""
    runs = [make_run(seed, side=side)[0] for seed, side in ((1, "a"), (2, "a"), (3, "b"), (4, "b"))]
    for entry, ids in zip(compare_runs(runs, **SETTINGS)["comparisons"], (range(6, 11), range(1, 6)), strict=True):
        spent = [[np.mean(run.kl[i]) for i in ids] for run in runs]
        budget = [max(map(min, spent)), min(map(max, spent))]
        assert entry["kl_budgets"] == [budget] * 4 and entry["equal_kl_difference"]["runs"] == []
        ours, theirs = np.mean(entry["equal_kl_hypervolumes"], axis=1)
        assert np.shape(entry["equal_kl_hypervolumes"]) == (2, 2)
        assert entry["equal_kl_difference"]["corrected"] == pytest.approx(ours - theirs, rel=1e-9)


def test_without_the_kl_of_a_point_there_is_no_comparison_at_equal_kl(make_run):
    run = make_run(1)[0]
    lacking = make_run(2, kl={i: kl for i, kl in make_run(2)[0].kl.items() if i != 3})[0]
    (entry,) = compare_runs([run, lacking], **SETTINGS)["comparisons"]
    assert (entry["equal_kl_difference"], entry["kl_budgets"]) == (None, None)
    sides = compare_runs([run, make_run(2, kl=lacking.kl, side="b")[0]], **SETTINGS)["comparisons"]
    assert [entry["equal_kl_difference"] is None for entry in sides] == [False, True]
    reason = "no KL: it was not measured at every point"
    assert entry["no_equal_kl"] == reason and [entry["no_equal_kl"] for entry in sides] == [None, reason]


def test_the_run_and_group_of_the_longer_steps_are_named(make_run):
    near, far = make_run(1)[0], make_run(2)[0]
    for i in range(6, 11):
        far.kl[i] = far.kl[i] + 50.0
    (entry,) = compare_runs([near, far], **SETTINGS)["comparisons"]
    assert entry["verdict"] not in ("better", "worse")
    assert re.fullmatch(
        rf"no common KL: LiNeS of {far.name} takes longer steps, from 5\d\.\d\d nats on, where rewarded soup of "
        rf"{far.name} ends at \d\.\d\d",
        entry["no_equal_kl"],
    )
    text = " ".join(comparison_table(compare_runs([near, far], **SETTINGS)).split())
    assert f"nothing is compared at equal KL, and so no group is called better ({entry['no_equal_kl']})" in text


def test_verdicts_are_by_p_values_that_are_adjusted_by_family(make_run):
    runs = [make_run(seed)[0] for seed in (1, 2, 3, 4)]
    for run in runs:
        for i in range(11, 16):  # the soup again, and no KL
            run.points.append({**run.points[i - 10], "id": i, "group": "ties"})
            run.scores[i] = run.scores[i - 10]
    found = compare_runs(runs, **SETTINGS)
    pairs = {(entry["a"], entry["b"]): entry for entry in found["comparisons"]}
    assert list(pairs) == [("lines", "rewarded_soup"), ("lines", "ties"), ("rewarded_soup", "ties")]
    for key in DIFFERENCES[:2]:
        first, *others = [entry[key] for entry in found["comparisons"]]
        assert first["adjusted_p_value"] == first["p_value"] < 0.05  # the family of LiNeS and the soup
        assert [each["adjusted_p_value"] for each in others] == holm([each["p_value"] for each in others])
        assert others[1]["p_value"] == 1.0
    assert pairs["lines", "ties"]["verdict"] == "higher" and pairs["rewarded_soup", "ties"]["verdict"] == "undecided"


def test_one_prompt_has_no_interval(make_run, tmp_path):
    found = compare_runs([make_run(seed, prompts=1)[0] for seed in (1, 2)], **SETTINGS)
    difference = found["comparisons"][0]["hypervolume_difference"]
    empty = ("low", "high", "error_of_prompts", "p_value", "adjusted_p_value")
    assert [difference[key] for key in empty] == [None] * 5 and difference["error_of_runs"] > 0
    assert found["comparisons"][0]["verdict"] == "undecided"
    write_comparison(tmp_path, found)
    assert read_comparison(tmp_path) == found


def test_groups_that_a_run_lacks_are_named(make_run):
    full, part = make_run(1)[0], make_run(2)[0]
    kept = [point for point in part.points if point["group"] != "lines"]
    lacking = RunScores("lacking", "l", part.prompts, kept, part.scores)
    with pytest.raises(ValueError, match="share 'rewarded_soup' of several points; expected two groups"):
        compare_runs([full, lacking], **SETTINGS)
    beside = RunScores("beside", "b", part.prompts, kept, part.scores, side="b")
    found = compare_runs([full, beside], **SETTINGS)
    assert found["notes"] == ["left out, because not every run has them: lines"]
    assert list(found["runs"][0]["groups"]) == ["rewarded_soup"]


def test_three_rewards_have_no_attainment(make_points):
    names = ["r1", "r2", "r3"]
    runs = []
    for seed in (1, 2):
        points = make_points(rewards=3, seed=seed)
        entries = build_front(points=points, **{**OF_FRONT, "rewards": names})["points"]
        scores = {point["id"]: point["scores"] for point in points}
        runs.append(RunScores(f"{seed}", f"{seed}", [f"p{i}" for i in range(40)], entries, scores))
    found = compare_runs(runs, **{**SETTINGS, "objectives": names})
    assert found["attainment"] is None and found["comparisons"][0]["attainment_difference"] is None
    assert list(faults(found, RunsFile)) == []


def fronts(seed: int, runs: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.uniform(0, 3, size=(generator.integers(1, 6), 2)) for _ in range(runs)]


def attained(fronts, place) -> int:
    return sum(any(x >= place[0] and y >= place[1] for x, y in front) for front in fronts)


@pytest.mark.parametrize("runs", [2, 3, 4, 5])
def test_attainment_over_runs_is_counted(runs):
    found = attainment_over_runs(some := fronts(runs, runs))
    for place in np.random.default_rng(9).uniform(0, 3.2, size=(400, 2)):
        count = attained(some, place)
        for name, least in (("best", 1), ("median", runs / 2), ("worst", runs)):
            assert attained([np.array(found[name]).reshape(-1, 2)], place) == (count >= least)


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
def test_a_difference_of_attainment_is_counted(runs):
    a, b = fronts(1, runs), fronts(2, runs)
    rectangles = attainment_difference(a, b, [0.0, -0.5])
    for place in np.random.default_rng(9).uniform(-0.4, 3.2, size=(400, 2)):
        inside = [share for x0, y0, x1, y1, share in rectangles if x0 < place[0] < x1 and y0 < place[1] < y1]
        expected = (attained(a, place) - attained(b, place)) / runs if place[0] > 0 else 0.0
        assert len(inside) <= 1 and sum(inside) == pytest.approx(expected)


def test_where_no_run_attains_more_there_is_no_rectangle():
    assert attainment_difference(fronts(1, 3), fronts(1, 3)[::-1], [0.0, 0.0]) == []
