"""The numbers of a front against those of its parts, and ``front.json`` against its contract."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from scipy import stats

from rlhf_lines.pareto import (
    REFERENCE_POINT_RULE,
    UTILITY_RULE,
    ExpectedUtility,
    Hypervolume,
    Point,
    build_front,
    correct,
    expected_utility,
    front_table,
    hypervolume,
    plot_forgetting,
    plot_front,
    read_front,
    reference_point,
    utilities,
    write_front,
)
from rlhf_lines.pareto.behaviour import Behaviour
from rlhf_lines.pareto.schema import faults


def front_of(points, **changes):
    return build_front(
        **{"rewards": ["a", "b"], "split": "test", "seed": 7, "points": points, "resamples": 200, **changes}
    )


def test_a_front_has_exactly_the_keys_of_the_contract(make_points):
    front = json.loads(json.dumps(front_of(make_points()), allow_nan=False))
    assert list(faults(front)) == []
    # Written down a second time: a key that the schema loses, or gains, is seen here.
    assert set(front) == {
        *("format", "rewards", "split", "reference_point", "reference_point_rule", "seed", "resamples", "confidence"),
        *("points", "fronts", "comparisons", "ideal_point", "utility_rule", "objectives", "metrics", "not_compared"),
        *("sft_model", "policies", "validation", "surrogate", "forgetting", "audit", "benchmarks", "answers"),
    }
    assert (front["format"], front["rewards"], front["split"], front["seed"]) == (1, ["a", "b"], "test", 7)
    assert front["reference_point_rule"] == REFERENCE_POINT_RULE
    assert front["utility_rule"] == UTILITY_RULE
    for point in front["points"]:
        assert set(point) == {
            *("id", "group", "spec", "scores", "kl", "prompts", "samples_per_prompt", "perplexity"),
            *("label", "preference", "single_policy", "merge_arguments", "metrics", "changes", "lost_most"),
            "benchmark_changes",
        }
        assert set(point["spec"]) == {"rule", "weights", "alpha", "beta", "schedule", "options"}
        assert list(point["scores"]) == ["a", "b"]
        assert all(set(score) == {"mean", "low", "high"} for score in point["scores"].values())
        assert point["kl"] is None or set(point["kl"]) == {"mean", "low", "high"}
        assert (point["kl"] is None) == (point["group"] != "lines")
        assert (point["prompts"], point["samples_per_prompt"]) == (40, 2)
        assert point["perplexity"] is None
    assert set(front["fronts"]) == {"rewarded_soup", "lines"}
    for entry in front["fronts"].values():
        assert set(entry) == {"hypervolume", "nondominated", "hull", "expected_utility"}
        for measure in ("hypervolume", "expected_utility"):
            assert set(entry[measure]) == {"value", "corrected", "low", "high"}
    (comparison,) = front["comparisons"]
    assert set(comparison) == {
        *("a", "b", "hypervolume_difference", "expected_utility_difference", "equal_kl_difference"),
        *("kl_budgets", "equal_kl_hypervolumes", "no_equal_kl", "verdict"),
    }
    assert (comparison["a"], comparison["b"]) == ("lines", "rewarded_soup")
    for measure in ("hypervolume", "expected_utility"):
        assert set(comparison[f"{measure}_difference"]) == {
            *("value", "corrected", "low", "high", "probability_positive", "p_value", "adjusted_p_value")
        }
    # The soup has no KL here.
    assert [comparison[key] for key in ("equal_kl_difference", "kl_budgets", "equal_kl_hypervolumes")] == [None] * 3
    assert (comparison["no_equal_kl"], comparison["verdict"]) == ("no KL: it was not measured at every point", "higher")


SPEC = {"rule": "linear", "weights": [0.0, 1.0], "alpha": 1.0, "beta": 0.0, "schedule": "linear", "options": {}}


def test_a_spec_that_lacks_a_setting_is_refused():
    with pytest.raises(ValueError, match="the spec of point 4 has no rule, alpha, beta, schedule, options"):
        Point(4, "lines", {"weights": [0.5, 0.5]}, [[0.0, 1.0]])


def test_the_numbers_of_a_front_are_those_of_its_parts(make_points):
    points = make_points()
    front = front_of(points)
    means = np.array([point["scores"].mean(axis=0) for point in points])
    reference = reference_point(means[[0, 1, 5]])  # the SFT model and the two single policies
    assert front["reference_point"] == reference
    for row, point in enumerate(front["points"]):
        assert [score["mean"] for score in point["scores"].values()] == means[row].tolist()
        assert all(score["low"] < score["mean"] < score["high"] for score in point["scores"].values())
    lines, soup = means[6:], means[1:6]
    # Ids, not rows of the group: the point in the middle of `lines` has id 8.
    assert front["fronts"]["lines"]["nondominated"] == [6, 7, 9, 10]
    volume = front["fronts"]["lines"]["hypervolume"]["value"]
    assert volume == pytest.approx(hypervolume(lines, reference), rel=1e-14)
    difference = front["comparisons"][0]["hypervolume_difference"]
    assert difference["value"] == pytest.approx(hypervolume(lines, reference) - hypervolume(soup, reference), rel=1e-12)
    assert difference["low"] > 0 and difference["probability_positive"] == 1.0
    # Prompts are shared, so their difficulty cancels in the difference.
    alone = front["fronts"]["lines"]["hypervolume"]
    assert difference["high"] - difference["low"] < 0.5 * (alone["high"] - alone["low"])


@pytest.mark.parametrize("rewards", [2, 3, 4])
def test_both_measures_have_the_same_fixed_points_and_prompts(make_points, rewards):
    points = make_points(rewards=rewards)
    front = front_of(points, rewards=[f"r{k}" for k in range(rewards)])
    scores = np.stack([point["scores"] for point in points])
    means = scores.mean(axis=1)
    anchors = [0, 1, 5] if rewards == 2 else slice(None)  # else no point of the fixture is a single policy
    reference, ideal = reference_point(means[anchors]), means[anchors].max(axis=0)
    assert front["ideal_point"] == ideal.tolist()
    groups = {"lines": slice(6, 11), "rewarded_soup": slice(1, 6)}
    t = stats.t.ppf(0.975, 39)
    for name, measure, plain in (
        ("hypervolume", Hypervolume(tuple(reference)), lambda rows: hypervolume(rows, reference)),
        (
            "expected_utility",
            ExpectedUtility(tuple(reference), tuple(ideal)),
            lambda rows: expected_utility(utilities(rows[None], reference, ideal))[0],
        ),
    ):
        found = {group: correct(scores[rows], measure, 7) for group, rows in groups.items()}
        for group, rows in groups.items():
            one = found[group]
            ends = {"low": one.corrected - t * one.standard_error, "high": one.corrected + t * one.standard_error}
            expected = {"value": plain(means[rows]), "corrected": one.corrected, **ends}
            assert front["fronts"][group][name] == pytest.approx(expected, rel=1e-12)
        between = found["lines"] - found["rewarded_soup"]
        value = plain(means[groups["lines"]]) - plain(means[groups["rewarded_soup"]])
        corrected = found["lines"].corrected - found["rewarded_soup"].corrected
        paired = found["lines"].resampled - found["rewarded_soup"].resampled
        error = paired.std(ddof=1)
        assert between.standard_error == pytest.approx(error, rel=1e-10)
        expected = {"value": value, "corrected": corrected, "low": corrected - t * error, "high": corrected + t * error}
        expected["probability_positive"] = np.mean(paired - paired.mean() + corrected > 0)
        expected |= dict.fromkeys(("p_value", "adjusted_p_value"), 2 * stats.t.sf(corrected / error, 39))
        assert front["comparisons"][0][f"{name}_difference"] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_hull_of_a_front_names_ids_and_leaves_out_dents():
    def point(i, a, b, group="lines"):
        return {"id": i, "group": group, "spec": SPEC, "scores": [[a, b]] * 3}

    # 12 is nondominated, but 0.5 * (11 + 14) is better in both; 13 is dominated; 15 equals 14.
    points = [point(11, 0.0, 4.0), point(12, 1.0, 1.5), point(13, 0.5, 1.0), point(14, 3.0, 2.0), point(15, 3.0, 2.0)]
    front = front_of([*points, point(16, 4.0, 0.0), point(3, 9.0, 9.0, "sft")])
    assert front["fronts"]["lines"]["nondominated"] == [11, 14, 15, 16]
    points[1] = point(12, 1.0, 2.5)
    front = front_of([*points, point(16, 4.0, 0.0), point(3, 9.0, 9.0, "sft")])
    assert front["fronts"]["lines"]["nondominated"] == [11, 12, 14, 15, 16]
    assert front["fronts"]["lines"]["hull"] == [11, 14, 16]


@pytest.mark.parametrize("copies", [1, 13])
def test_perplexity_weighs_tokens_and_resamples_texts(make_points, copies):
    points = make_points()
    nll, tokens = [12.0, 30.0, 3.0, 9.0] * copies, [10, 20, 1, 4] * copies
    points[4] |= {"nll": nll, "text_tokens": tokens}
    front = front_of(points)
    assert [point["id"] for point in front["points"] if point["perplexity"] is not None] == [4]
    # As a loop: each resample draws whole texts and divides sums, not a mean of four ratios.
    generator = np.random.Generator(np.random.PCG64(7))
    texts, samples = len(nll), []
    for _ in range(200):
        draw = generator.integers(texts, size=texts)
        samples.append(sum(nll[i] for i in draw) / sum(tokens[i] for i in draw))
    few = stats.t.ppf(0.975, texts - 1) / stats.norm.ppf(0.975) * np.sqrt(texts / (texts - 1))
    factor = few if texts < 50 else 1.0
    low, high = (np.exp(54 / 35 + factor * (end - 54 / 35)) for end in np.quantile(samples, [0.025, 0.975]))
    expected = {"mean": np.exp(54 / 35), "low": low, "high": high}
    assert front["points"][4]["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_no_perplexity_is_below_one(make_points):
    """Of two texts the ends are stretched to 9 times as far, and no token has a probability above 1."""
    points = make_points()
    points[4] |= {"nll": [1.0, 40.0], "text_tokens": [20, 20]}
    found = front_of(points)["points"][4]["perplexity"]
    assert (found["mean"], found["low"]) == (pytest.approx(np.exp(41 / 40)), 1.0) and found["high"] > np.exp(2.0)


def test_one_text_has_a_perplexity_without_an_interval(make_points):
    points = make_points()
    points[4] |= {"nll": [12.0], "text_tokens": [10]}
    expected = {"mean": pytest.approx(np.exp(1.2), rel=1e-14), "low": None, "high": None}
    assert front_of(points)["points"][4]["perplexity"] == expected


def test_one_prompt_has_numbers_and_no_intervals(make_points, tmp_path):
    points = make_points(prompts=1)
    for point in points:
        point |= {"kl": [0.1 * (1 + (point["id"] + 1) % 4)], "nll": [3.0], "text_tokens": [2]}
        scores = np.stack([point["scores"], point["scores"] + 1], axis=1)
        texts, ids = [["a b", "c"]], [[[1, 2, 9], [3, 9]]]
        point["behaviour"] = Behaviour.of(texts, ids, scores, max_new_tokens=6, end_tokens=[9])
    front = front_of(points)
    assert list(faults(front)) == []
    means = np.array([point["scores"][0] for point in points])
    for point, row in zip(front["points"], means, strict=True):
        for k, reward in enumerate("ab"):
            assert point["scores"][reward] == {"mean": row[k], "low": None, "high": None}
        assert point["kl"] == {"mean": 0.1 * (1 + (point["id"] + 1) % 4), "low": None, "high": None}
    volume = hypervolume(means[6:], front["reference_point"])
    lines, (comparison,) = front["fronts"]["lines"], front["comparisons"]
    assert lines["hypervolume"] == {"value": volume, "corrected": volume, "low": None, "high": None}
    assert comparison["verdict"] == "undecided"
    for name in ("hypervolume", "expected_utility", "equal_kl"):
        difference = comparison[f"{name}_difference"]
        assert difference["value"] == difference["corrected"] != 0.0
        assert [difference[key] for key in ("low", "high", "p_value", "adjusted_p_value")] == [None] * 4
    # It is written, and shown.
    assert read_front(write_front(tmp_path, front).parent) == front
    table = front_table(front)
    assert "[" not in table and "None" not in table and "nan" not in table and "What to look at" not in table
    for draw in (plot_front, plot_forgetting):
        assert draw(front, tmp_path / f"{draw.__name__}.png").stat().st_size > 0


def test_a_reward_on_which_all_points_agree_says_nothing(make_points):
    points = make_points()
    for point in points:
        point["scores"][:, 1] = points[0]["scores"][:, 1]
    front = front_of(points)
    best = max(front["points"][6:], key=lambda point: point["scores"]["a"]["mean"])
    assert front["fronts"]["lines"]["hull"] == [best["id"]]
    # The best point counts in one reward, whose mean weight is 1/2; its utility there is 1 at the best single policy.
    a = [front["points"][i]["scores"]["a"]["mean"] for i in (0, 1, 5)]
    utility = (best["scores"]["a"]["mean"] - min(a) + 0.1 * (max(a) - min(a))) / (1.1 * (max(a) - min(a)))
    assert front["fronts"]["lines"]["expected_utility"]["value"] == pytest.approx(0.5 * utility, rel=1e-12)
    json.dumps(front, allow_nan=False)


def test_points_that_all_agree_have_a_front_without_size(make_points):
    points = [{**point, "scores": make_points()[0]["scores"]} for point in make_points()]
    front = front_of(points)
    for group, ids in (("rewarded_soup", [1, 2, 3, 4, 5]), ("lines", [6, 7, 8, 9, 10])):
        entry = front["fronts"][group]
        assert entry["nondominated"] == ids and entry["hull"] == ids[:1]
        # They are the reference point, where luck alone adds to a hypervolume: nothing is left, and no interval given.
        assert entry["expected_utility"] == {"value": 0.0, "corrected": 0.0, "low": None, "high": None}
        volume = entry["hypervolume"]
        assert (volume["value"], volume["low"], volume["high"]) == (0.0, None, None) and volume["corrected"] <= 0.0
    for measure in ("hypervolume", "expected_utility"):
        difference = front["comparisons"][0][f"{measure}_difference"]
        assert difference["probability_positive"] == 0.5
        assert [difference[key] for key in ("corrected", "low", "high", "p_value")] == [0.0, 0.0, 0.0, 1.0]
    json.dumps(front, allow_nan=False)


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


def test_all_groups_with_a_front_are_compared_and_lines_with_rewarded_soup_comes_first(make_points):
    points = make_points()
    for group in ("reversed", "averaged"):
        for point in make_points()[1:3]:
            points.append({**point, "id": len(points), "group": group})
    pairs = [(entry["a"], entry["b"]) for entry in front_of(points)["comparisons"]]
    assert pairs == [
        *(("lines", "rewarded_soup"), ("lines", "averaged"), ("lines", "reversed")),
        *(("rewarded_soup", "averaged"), ("rewarded_soup", "reversed"), ("averaged", "reversed")),
    ]
    without_lines = front_of([point for point in points if point["group"] in ("sft", "reversed", "averaged")])
    assert [(entry["a"], entry["b"]) for entry in without_lines["comparisons"]] == [("averaged", "reversed")]


@pytest.mark.parametrize(
    ("soup", "lines", "reason"),
    [
        (None, None, "no KL: it was not measured at every point"),
        ("ratio", "ratio", "no KL: the text is greedy, or drawn with top_p or top_k"),
        (
            (1.0, 4.5),
            (5.0, 7.0),
            "no common KL: LiNeS takes longer steps, from 5.00 nats on, where rewarded soup ends at 4.50",
        ),
        (
            (3.0, 9.0),
            (0.5, 2.25),
            "no common KL: rewarded soup takes longer steps, from 3.00 nats on, where LiNeS ends at 2.25",
        ),
        ((1.0, 5.0), (3.0, 3.0), "no common KL: all of LiNeS is at 3.00 nats"),
        ((1.0, 5.0), (3.0, 7.0), None),
    ],
)
def test_no_group_is_better_that_is_not_compared_at_equal_kl(make_points, soup, lines, reason):
    points = make_points()
    for point in points:
        ends = {"rewarded_soup": soup, "lines": lines}.get(point["group"])
        point["kl"] = None
        if ends == "ratio":
            point["metrics"] = {"log_ratio": np.ones(40)}
        elif ends is not None:
            share = point["spec"]["weights"][0]
            point["kl"] = np.full(40, (1 - share) * ends[0] + share * ends[1])
    (comparison,) = front_of(points)["comparisons"]
    assert comparison["no_equal_kl"] == reason
    for measure in ("hypervolume", "expected_utility"):
        difference = comparison[f"{measure}_difference"]
        assert difference["corrected"] > 0 and difference["adjusted_p_value"] < 0.01
    if reason is None:
        assert comparison["equal_kl_difference"] is not None and comparison["verdict"] in ("better", "mixed")
    else:
        assert (comparison["equal_kl_difference"], comparison["verdict"]) == (None, "higher")


@pytest.mark.parametrize("step", [1, -1])
def test_identical_groups_do_not_differ(make_points, step):
    """Whatever the order of their points, which rounds otherwise."""
    generator, points = np.random.default_rng(0), make_points()[:6]
    for point in points:
        point["kl"] = generator.gamma(2.0, size=40)
    points += [{**point, "id": 6 + i, "group": "lines"} for i, point in enumerate(points[1:][::step])]
    (comparison,) = front_of(points)["comparisons"]
    assert comparison["equal_kl_hypervolumes"][0] == pytest.approx(comparison["equal_kl_hypervolumes"][1], rel=1e-12)
    for measure in ("hypervolume", "expected_utility", "equal_kl"):
        difference = comparison[f"{measure}_difference"]
        assert difference == {
            **{"value": 0.0, "corrected": 0.0, "low": 0.0, "high": 0.0, "probability_positive": 0.5},
            **{"p_value": 1.0, "adjusted_p_value": 1.0},
        }
    assert comparison["verdict"] == "undecided"


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
    for nll, tokens in (([1.0], None), (None, [1]), ([1.0, 2.0], [1]), ([np.nan], [1]), ([1.0], [0]), ([], [])):
        with pytest.raises(ValueError, match="point 2 has nll of shape"):
            front_of([*points[:2], {**points[2], "nll": nll, "text_tokens": tokens}])
    points[2]["scores"][5, 1] = np.nan
    with pytest.raises(ValueError, match="point 2 has score nan for reward 'b' on prompt 5"):
        front_of(points)


def test_a_front_is_read_as_it_was_written(make_points, tmp_path):
    front = front_of(make_points())
    path = write_front(tmp_path, front)
    assert path == tmp_path / "front.json"
    assert read_front(tmp_path) == front
    assert [file.name for file in tmp_path.iterdir()] == ["front.json"]


def test_what_an_earlier_version_did_not_write_is_empty(make_points, tmp_path):
    front = front_of(make_points())
    write_front(tmp_path, front)
    earlier = json.loads((tmp_path / "front.json").read_text())
    del earlier["benchmarks"], earlier["answers"]
    for point in earlier["points"]:
        del point["benchmark_changes"]
    write_front(tmp_path, earlier)
    assert front["answers"] == [] and read_front(tmp_path) == {**front, "answers": None}


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


def test_a_missing_or_foreign_front_is_named(make_points, tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with: rlhf-lines front"):
        read_front(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_front(tmp_path / "absent", {})
    (tmp_path / "front.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="has format 2; expected 1"):
        read_front(tmp_path)
    (tmp_path / "front.json").write_text('{"format": 1, "rewards": []}')
    with pytest.raises(ValueError, match=r"has no objectives, metrics, split, .*; make it again with: rlhf"):
        read_front(tmp_path)
    front = front_of(make_points())
    for point in front["points"]:  # as of an older version
        del point["label"], point["merge_arguments"]
    write_front(tmp_path, front)
    with pytest.raises(ValueError, match=r"has no points\[\]\.label, points\[\]\.merge_arguments; make it again with"):
        read_front(tmp_path)
    write_front(tmp_path, {**front_of(make_points()), "seed": "seven"})
    with pytest.raises(ValueError, match="has a wrong value for seed; make it again with: rlhf-lines front"):
        read_front(tmp_path)
    write_front(tmp_path, {**front_of(make_points()), "of a later version": 1})
    assert read_front(tmp_path)["of a later version"] == 1
    (tmp_path / "front.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_front(tmp_path)


def test_the_preference_of_a_point_is_that_of_its_spec_unless_it_is_given(make_points):
    points = make_points()
    points[1]["preference"] = (0.7, 0.3)
    points[2]["spec"]["weights"] = [0.25, 0.5]  # a step towards the policies
    points[3]["group"] = "morlhf"
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    found = [point["preference"] for point in front["points"]]
    assert found[:4] == [None, [0.7, 0.3], None, None] and found[4] == points[4]["spec"]["weights"]
