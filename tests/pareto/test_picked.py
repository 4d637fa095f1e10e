"""Picking against a loop over the points, and every way to ask for what cannot be picked; what is told about a point.

The printed command is read by the project's own parser, and gives back the spec of the point.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.stage import merge_of
from rlhf_lines.pareto import Worth, build_front, merge_arguments, named_elsewhere, pick, pick_point, picked_text
from rlhf_lines.pareto.schema import label
from rlhf_lines.stages import read_stage


SOURCES = {"sft_model": "my models/sft", "policies": ["policies/brief", "it's/here", "runs/morlhf $HOME"]}


def front_of(means, groups=None):
    spec = MergeSpec("linear", (0.5, 0.5)).to_dict()
    points = [
        {"id": 10 + i, "group": groups[i] if groups else "lines", "spec": spec, "scores": [row] * 3}
        for i, row in enumerate(means)
    ]
    rewards = [f"r{k + 1}" for k in range(len(means[0]))]
    return build_front(rewards=rewards, split="test", seed=0, points=points, resamples=5)


@pytest.mark.parametrize("rewards", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_preference_picks_the_best_of_all_groups(rewards, seed):
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(20, rewards)) * ([1.0, 10.0] * 2)[:rewards]
    front = front_of(means.tolist(), groups=["sft", *["lines"] * 9, *["ties"] * 10])
    low, high = means.min(axis=0), means.max(axis=0)
    for preference in generator.dirichlet(np.ones(rewards), size=5).tolist():
        raw = max(range(20), key=lambda i: sum(w * s for w, s in zip(preference, means[i], strict=True)))
        assert pick_point(front, preference=preference)["id"] == 10 + raw
        # Any sum will do, and a constant added to a reward moves no one ahead.
        assert pick_point(front, preference=[50 * w for w in preference])["id"] == 10 + raw
        shares = (means - low) / (1.1 * (high - low))
        ranged = max(range(20), key=lambda i: sum(w * s for w, s in zip(preference, shares[i], strict=True)))
        assert pick_point(front, preference=preference, scale="range")["id"] == 10 + ranged


def test_the_two_scales_can_differ():
    front = front_of([[0.0, 100.0], [1.0, 0.0], [0.9, 50.0]])
    assert pick_point(front, preference=[0.5, 0.5])["id"] == 10
    assert pick_point(front, preference=[0.5, 0.5], scale="range")["id"] == 12


@pytest.mark.parametrize("seed", range(5))
def test_a_minimum_picks_the_best_of_those_above_it(seed):
    means = np.random.default_rng(seed).normal(size=(15, 3)).tolist()
    front = front_of(means)
    for low in (-0.5, 0.0, 0.5):
        for minimum in ({"r2": low}, {"r2": low, "r3": -0.5}):
            columns = {"r2": 1, "r3": 2}
            allowed = [i for i in range(15) if all(means[i][columns[name]] >= at for name, at in minimum.items())]
            best = max(allowed, key=lambda i: means[i][0])
            assert pick_point(front, minimum=minimum, maximize="r1")["id"] == 10 + best


def test_a_score_equal_to_the_minimum_reaches_it():
    front = front_of([[0.1, 0.7], [0.9, 0.3]])
    assert pick_point(front, minimum={"r2": front["points"][0]["scores"]["r2"]["mean"]}, maximize="r1")["id"] == 10


def test_what_is_picked_is_not_dominated_and_ties_go_to_the_lowest_id():
    # 10 ties with 11 and 12 in r1, but 11 and 12 have more of r2; they are equal.
    front = front_of([[2.0, 0.0], [2.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert pick_point(front, preference=[1, 0])["id"] == 11
    assert pick_point(front, minimum={"r2": 0.0}, maximize="r1")["id"] == 11
    front["points"].reverse()
    assert pick_point(front, preference=[1, 0])["id"] == 11
    # Equal worth at different places: 0.5 * 2 + 0.5 * 1 = 0.5 * 0 + 0.5 * 3.
    assert pick_point(front, preference=[1, 1])["id"] == 11


def test_a_reward_without_range_does_not_decide():
    front = front_of([[0.0, 5.0], [1.0, 5.0]])
    assert pick_point(front, preference=[0.1, 0.9], scale="range")["id"] == 11


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "picked by a preference"),
        ({"maximize": "r1"}, "picked by a preference"),
        ({"minimum": {"r2": 0.0}}, "by a minimum or maximum and what to maximize or minimize"),
        ({"maximum": {"r2": 0.0}}, "by a minimum or maximum and what to maximize or minimize"),
        ({"minimize": "r1"}, "picked by a preference"),
        ({"minimum": {"r2": 0}, "maximize": "r1", "minimize": "r2"}, "both r1 to maximize and r2 to minimize"),
        ({"preference": [1, 1], "maximum": {"r1": 0.0}}, "both a preference and bounds are given; pick by one"),
        ({"preference": [1, 1], "minimize": "r1"}, "pick by one of them"),
        ({"maximum": {"r1": float("inf")}, "minimize": "r2"}, "maximum of r1 is inf; expected a finite number"),
        ({"maximum": {"r2": -1}, "maximize": "r1"},
         r"no point has a mean r2 of at most -1: the lowest is 0.0 \(point 10\); allow at least that"),
        ({"minimum": {"r2": 1}, "maximum": {"r1": -1}, "maximize": "r1"},
         r"r1 of at most -1 among the points with r2 of at least 1: the lowest is 0.0 \(point 13\); allow at least"),
        ({"maximum": {"kl": 1}, "maximize": "r1"}, "unknown score 'kl'; known: r1, r2"),  # none was measured
        ({"minimum": {}, "maximize": "r1"}, "picked by a preference"),
        ({"preference": [1, 1], "maximize": "r1"}, "pick by one of them"),
        ({"preference": [1, 1], "minimum": {"r1": 0.0}}, "pick by one of them"),
        ({"preference": [1, 1, 1]}, "has 3 numbers; expected 2, one for each of r1, r2"),
        ({"preference": [0.5]}, "has 1 number; expected 2"),
        ({"preference": [0, 0]}, "at least 0, not all 0"),
        ({"preference": [1, -0.1]}, r"\[1.0, -0.1\]; expected finite numbers of at least 0"),
        ({"preference": [1, float("nan")]}, "expected finite numbers"),
        ({"preference": [1, float("inf")]}, "expected finite numbers"),
        ({"preference": [1e308, 1]}, r"\[1e\+308, 1.0\]; expected numbers of at most 1e\+100: only their ratios count"),
        ({"preference": [1, 1], "scale": "rang"}, "unknown scale 'rang'; known: range, raw; did you mean 'range'?"),
        ({"minimum": {"r3": 0.0}, "maximize": "r1"}, "unknown score 'r3'; known: r1, r2"),
        ({"minimum": {"r1": 0.0}, "maximize": "R2"}, "unknown score 'R2'"),
        ({"minimum": {"r1": float("nan")}, "maximize": "r2"}, "minimum of r1 is nan; expected a finite number"),
        ({"minimum": {"r2": 4}, "maximize": "r1"},
         r"no point has a mean r2 of at least 4: the highest is 3.0 \(point 13\); ask for at most that"),
        ({"minimum": {"r2": 2, "r1": 1}, "maximize": "r1"},
         r"at least 1 among the points with r2 of at least 2: the highest is 0.0 \(point 13\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_picked_is_one_sentence(question, words):
    front = front_of([[2.0, 0.0], [2.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match=words) as error:
        pick_point(front, **question)
    assert "\n" not in str(error.value)


@pytest.fixture
def make_front(make_points):
    """Returns a maker of fronts, in which a point of an id has another spec or perplexity."""

    def make(changes=(), **sources):
        points = make_points()
        for i, more in dict(changes).items():
            points[i] |= more
        return build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20, **sources)

    return make


@pytest.fixture
def front(make_front):
    return make_front(**SOURCES)


def parsed(line):
    program, verb, *arguments = shlex.split(line)
    assert (program, verb) == ("rlhf-lines", "merge")
    _, (_, config), _ = read_stage("merge", arguments)
    return config


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec("linear", (0.30000000000000004, 0.7), beta=0.5),
        MergeSpec("linear", (1 / 3, 2 / 3), alpha=0.1 + 0.2, beta=1e-7, schedule="sqrt"),
        MergeSpec("linear", (0.0, 0.0, 1.0)),
        MergeSpec("sum", (-1e-5, 1e22), alpha=-0.25, beta=-1e-9, schedule="reversed"),
        MergeSpec("ties", (0.5, 0.5), alpha="auto", beta=0.3, options={"density": 0.2, "reduction": "sum"}),
        MergeSpec("dare", (0.5, 0.5), schedule="quadratic", options={"seed": 3, "then": "ties"}),
        MergeSpec("peft_linear", (0.5, 0.5)),
    ],
    ids=lambda spec: spec.rule,
)
def test_the_command_is_the_merge_of_the_point(make_front, spec):
    front = make_front({3: {"spec": spec.to_dict()}}, **SOURCES)
    point = front["points"][3]
    config = parsed(picked_text(front, point, "runs/my sweep").splitlines()[-1])
    assert merge_of(config).spec == spec
    assert config.sft_model == "my models/sft"
    assert config.policies == SOURCES["policies"][: len(spec.weights)]
    assert config.save == ("adapter" if RULES[spec.rule].makes_adapter else "dense")
    assert config.output_dir == "runs/my sweep/point_3"
    # Every setting is written: nothing rests on the defaults of another version.
    arguments = merge_arguments(front, point, "out")
    assert {"--rule", "--alpha", "--beta", "--schedule", "--save"} <= set(arguments)


def test_the_text_has_scores_with_intervals_and_what_else_is_known(front):
    lines = picked_text(front, front["points"][9], "run").splitlines()
    spec = front["points"][9]["spec"]
    assert lines[0] == "point 9: LiNeS, linear, weights 0.75 / 0.25, alpha 1, beta 1, schedule linear"
    assert spec["weights"] == [0.75, 0.25]
    assert lines[2].startswith("  b   ") and lines[3].startswith("  KL  ")
    assert lines[4] == "  mean [95 % interval] over 40 test prompts"
    front["points"][9]["perplexity"] = {"mean": 12.5, "low": 11.0, "high": 13.25}
    assert "  perplexity  12.5 [11.0, 13.2]" in picked_text(front, front["points"][9], "run").splitlines()


@pytest.mark.parametrize(
    ("mean", "low", "high", "said"),
    [
        (0.51234, 0.31, 0.72, "0.51 [0.31, 0.72]"),
        (0.51234, 0.506, 0.518, "0.512 [0.506, 0.518]"),
        (33.5123, 30.21, 36.88, "33.5 [30.2, 36.9]"),
        (133.51, 92.4, 171.2, "134 [92, 171]"),
        (0.51234, 0.5123, 0.5124, "0.512 [0.512, 0.512]"),  # no more than tables have
        (0.51234, 0.51234, 0.51234, "0.512 [0.512, 0.512]"),
        (0.51234, None, None, "0.512"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(front, mean, low, high, said):
    front["points"][9]["scores"]["b"] = {"mean": mean, "low": low, "high": high}
    assert picked_text(front, front["points"][9], "run").splitlines()[2].split(maxsplit=1)[1] == said


def test_the_sft_model_needs_no_merge(front):
    text = picked_text(front, front["points"][0], "run")
    assert text.splitlines()[-1] == "It is the SFT model itself, no merge is needed: my models/sft"
    assert "rlhf-lines merge" not in text
    with pytest.raises(ValueError, match="point 0 is the SFT model itself, my models/sft; there is nothing to merge"):
        merge_arguments(front, front["points"][0], "out")


def test_a_single_policy_is_named_beside_its_command(make_front, front):
    text = picked_text(front, front["points"][1], "run")
    assert "  it is one policy as it was trained: it's/here" in text.splitlines()
    assert parsed(text.splitlines()[-1]).weights == [0.0, 1.0]
    # A mixture; one policy, scaled; two times one policy.
    twice = MergeSpec("sum", (0.0, 1.0))
    front = make_front({1: {"spec": twice.to_dict()}}, **SOURCES)
    for i in (2, 6, 1):
        assert "one policy" not in picked_text(front, front["points"][i], "run")
    text = picked_text(front, front["points"][1], "run")
    assert text.startswith("point 1: rewarded soup, sum, weights 0 / 1, alpha 1, beta 0, schedule linear\n")
    assert merge_of(parsed(text.splitlines()[-1])).spec == twice


def test_a_command_that_is_for_another_folder_says_so(make_front, tmp_path, monkeypatch):
    """Models are named from where the sweep ran, and no path of that machine is stored."""
    front = make_front({3: {"spec": MergeSpec("linear", (0.5, 0.5)).to_dict()}}, **SOURCES)
    ran, other = tmp_path / "ran", tmp_path / "other"
    for name in (SOURCES["sft_model"], *SOURCES["policies"][:2]):
        (ran / name).mkdir(parents=True)
    other.mkdir()
    monkeypatch.chdir(ran)
    assert named_elsewhere(front, front["points"][3]) == []
    monkeypatch.chdir(other)
    elsewhere = named_elsewhere(front, front["points"][3])
    assert elsewhere == ["my models/sft", "policies/brief", "it's/here"]  # the MORLHF run is not merged
    assert named_elsewhere(front, front["points"][0]) == []  # the SFT model needs no merge
    lines = picked_text(front, front["points"][3], "../ran/sweep", elsewhere=elsewhere).splitlines()
    assert lines[-3] == (
        "  neither this folder nor the Hub's cache has my models/sft, policies/brief or it's/here: run the merge where "
        "the sweep ran"
    )
    assert parsed(lines[-1]).output_dir == str(ran.resolve() / "sweep" / "point_3")
    moved = make_front(**SOURCES | {"sft_model": "/no/such/sft", "policies": [str(ran)] * 3})
    assert named_elsewhere(moved, moved["points"][3]) == []  # no other folder would help


@pytest.mark.parametrize("key", ["policies", "sft_model"])
def test_a_front_that_does_not_know_its_policies_says_what_to_do(make_front, key):
    front = make_front(**{name: value for name, value in SOURCES.items() if name != key})
    for point in front["points"][:2]:
        with pytest.raises(ValueError, match="run it again with: rlhf-lines front runs/x"):
            picked_text(front, point, "runs/x")
        with pytest.raises(ValueError, match="run it again with: rlhf-lines front RUN_DIR"):
            merge_arguments(front, point, "out")


def test_picking_imports_no_torch():
    script = (
        "import sys, rlhf_lines.pareto, rlhf_lines.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- groups, KL, metrics, ids ---


@pytest.fixture
def many(make_points):
    """Points with KL and two metrics; the controls are the best of all, and one group has no metric."""
    points = make_points()
    for group, gain in (("scaled", 3.0), ("reversed", 2.0), ("ties", 0.2)):
        for point in make_points()[6:8]:
            points.append({**point, "id": len(points), "group": group, "scores": point["scores"] + gain})
    for point in points:
        point["kl"] = [(17 - point["id"]) / 10] * 40
        if point["group"] != "ties":
            point["metrics"] = {"humor": [-abs(point["id"] - 8.0)] * 40, "share_empty": [point["id"] / 20] * 40}
    points[11]["kl"] = None
    return build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20, **SOURCES)


def best(front, worth, allowed):
    return max((p for p in front["points"] if allowed(p)), key=lambda p: (worth(p), -p["id"]))["id"]


def a_and_b(point):
    return 0.6 * point["scores"]["a"]["mean"] + 0.4 * point["scores"]["b"]["mean"]


CONTROLS = ("scaled", "reversed")


def test_controls_are_left_out_unless_one_is_asked_for(many):
    picked = pick(many, preference=[0.6, 0.4])
    assert picked.left_out == ["scaled", "reversed"]
    assert picked.point["id"] == best(many, a_and_b, lambda p: p["group"] not in CONTROLS)
    assert picked.among == [p["id"] for p in many["points"] if p["group"] not in CONTROLS]
    assert picked.factors == {"a": 0.6, "b": 0.4}
    for group in (*CONTROLS, "lines", "sft"):
        picked = pick(many, preference=[0.6, 0.4], group=group)
        assert picked.point["id"] == best(many, a_and_b, lambda p, group=group: p["group"] == group)
        assert picked.left_out == []
    text = picked_text(many, picked.point, "run", picked=picked._replace(left_out=CONTROLS))
    controls = "even scaling (--group scaled), reversed LiNeS (--group reversed)"
    assert f"  not looked at, as controls: {controls}" in text.splitlines()


def test_a_limit_of_kl_holds_and_is_met_where_it_is_reached(many):
    kl = {p["id"]: p["kl"]["mean"] for p in many["points"] if p["kl"]}
    for limit in (0.2, 0.75, kl[9], 1.5, 9.0):
        picked = pick(many, preference=[0.6, 0.4], max_kl=limit)
        assert picked.point["id"] == best(
            many, a_and_b, lambda p, limit=limit: p["group"] not in CONTROLS and kl.get(p["id"], 99.0) <= limit
        )
    assert 9 in pick(many, preference=[1, 1], max_kl=kl[9]).among
    assert pick(many, preference=[1, 1], group="scaled", max_kl=9.0).among == [12]  # the other has no KL


def test_a_point_that_only_left_out_ones_dominate_can_be_picked(many):
    """Within a limit, the best of what is left: domination by a point beyond it does not count."""
    sft = pick(many, preference=[0.6, 0.4], group="sft").point
    assert sft["group"] == "sft"
    assert any(p["scores"][k]["mean"] > sft["scores"][k]["mean"] for p in many["points"] for k in "ab")


def test_metrics_can_be_bounded_and_maximized(many):
    assert pick(many, minimum={"a": 0.0}, maximize="humor").point["id"] == 8  # which is dominated in a and b
    assert 8 not in many["fronts"]["lines"]["nondominated"]
    picked = pick(many, minimum={"share_empty": 0.3, "humor": -2.0}, maximize="a")
    allowed = lambda p: 6 <= p["id"] <= 10 and p["group"] == "lines"  # noqa: E731
    assert picked.point["id"] == best(many, lambda p: p["scores"]["a"]["mean"], allowed)
    assert picked.among == [6, 7, 8, 9, 10]
    text = picked_text(many, picked.point, "run")
    # The same of every prompt: no interval would hold.
    assert f"  humor  {-abs(picked.point['id'] - 8.0):.3f}\n" in text and "  empty  " in text


@pytest.mark.parametrize(
    ("minimum", "maximum", "maximize", "minimize"),
    [
        (None, {"kl": 1.0}, "a", None),
        (None, {"share_empty": 0.4, "perplexity": 19.0}, "b", None),
        ({"a": 0.0}, None, None, "kl"),
        ({"a": 0.0}, {"humor": -1.0}, None, "share_empty"),
        ({"kl": 0.5}, None, None, "perplexity"),
        ({"perplexity": 18.0}, None, "kl", None),
        ({"b": 0.0}, None, None, "a"),
    ],
)
def test_bounds_from_above_and_what_is_to_be_least(many, minimum, maximum, maximize, minimize):
    """Also of kl and perplexity, against a loop over the points."""
    for point in many["points"]:
        point["perplexity"] = {"mean": 20.0 - point["id"] ** 1.5 / 10, "low": None, "high": None}

    def mean(point, name):
        found = point[name] if name in ("kl", "perplexity") else {**point["metrics"], **point["scores"]}[name]
        return None if found is None else found["mean"]

    sought, sign = (maximize, 1) if minimize is None else (minimize, -1)
    allowed = [
        point
        for point in many["points"]
        if point["group"] not in CONTROLS
        and mean(point, sought) is not None
        and all(mean(point, name) is not None and mean(point, name) >= low for name, low in (minimum or {}).items())
        and all(mean(point, name) is not None and mean(point, name) <= high for name, high in (maximum or {}).items())
    ]
    picked = pick(many, minimum=minimum, maximum=maximum, maximize=maximize, minimize=minimize)
    assert 1 < len(allowed) < len(many["points"]) and picked.among == [point["id"] for point in allowed]
    best = max(sign * mean(point, sought) for point in allowed)
    assert sign * mean(picked.point, sought) == best and picked.factors == {sought: sign}
    assert picked.asked.startswith(f"the {'most' if maximize else 'least'} {sought} with ")


def test_what_is_least_is_not_dominated_either():
    """11 has as little of r1 as 10, and more of r2."""
    front = front_of([[0.0, 1.0], [0.0, 2.0], [3.0, 3.0]])
    assert pick_point(front, maximum={"r2": 2.5}, minimize="r1")["id"] == 11


@pytest.mark.parametrize("name", ["share_empty", "perplexity", "quiz/loss"])
def test_damage_is_not_maximized(many, name):
    for point in many["points"]:
        point["perplexity"] = {"mean": 20.0, "low": None, "high": None}
        point["metrics"]["quiz/loss"] = {"mean": float(point["id"]), "low": None, "high": None}
    many["benchmarks"] = {"quiz": {"metrics": {"quiz/loss": False}}}
    words = f"maximize is {name}, of which more is worse: minimize it (--minimize {name})"
    with pytest.raises(ValueError, match=re.escape(words)):
        pick(many, minimum={"a": 0.0}, maximize=name)
    assert (
        pick(many, minimum={"a": 0.0}, minimize=name).point["id"] in pick(many, minimum={"a": 0.0}, maximize="b").among
    )


def test_a_score_of_an_earlier_run_may_have_the_name_of_damage():
    front = front_of([[0.0, 1.0], [0.0, 2.0], [3.0, 1.5]])
    renamed = json.loads(json.dumps(front).replace('"r1"', '"perplexity"'))
    assert pick_point(renamed, minimum={"r2": 1.0}, maximize="perplexity")["id"] == 12


def test_the_scale_counts_in_units_of_the_range(many):
    picked = pick(many, preference=[0.6, 0.4], scale="range")
    span = np.subtract(many["ideal_point"], many["reference_point"])
    assert picked.factors == pytest.approx({"a": 0.6 / span[0], "b": 0.4 / span[1]}, rel=1e-12)
    at = {"reference_point": picked.constant, "ideal_point": picked.constant}
    for point in at:
        at[point] += sum(factor * many[point]["ab".index(name)] for name, factor in picked.factors.items())
    assert at == pytest.approx({"reference_point": 0.0, "ideal_point": 1.0}, abs=1e-12)


def test_a_point_can_be_asked_for(many):
    for i in (0, 3, 12):
        assert pick(many, point=i) == (many["points"][i], [], {}, 0.0, [], "", None)
    assert picked_text(many, many["points"][3], "run").startswith("point 3: ")


def test_what_it_was_picked_by_is_told_with_the_runner_up(many):
    picked = pick(many, preference=[0.6, 0.4], max_kl=9.0)
    worths = sorted((a_and_b(p) for p in many["points"] if p["id"] in picked.among), reverse=True)
    runner_up, less = picked.runner_up
    assert a_and_b(many["points"][runner_up]) == worths[1] and less == pytest.approx(worths[0] - worths[1], rel=1e-9)
    lines = picked_text(many, picked.point, "run", picked=picked).splitlines()
    asked = "0.6 a + 0.4 b, scores in their own units (--scale raw); at most 9 nats of KL"
    assert f"  picked by {asked}, among {len(picked.among)} points" in lines
    assert (
        f"  next best: point {runner_up} ({label(many['points'][runner_up]['group'])}), worth {less:.2g} less" in lines
    )

    picked = pick(many, minimum={"share_empty": 0.3, "humor": -2.0}, maximize="a")
    lines = picked_text(many, picked.point, "run", picked=picked).splitlines()
    floors = "share_empty of at least 0.3 and humor of at least -2"
    assert f"  picked by the most a with {floors}, among 5 points" in lines


def test_alone_it_has_no_runner_up(many):
    picked = pick(many, preference=[0.6, 0.4], group="sft")
    assert picked.runner_up is None
    text = picked_text(many, picked.point, "run", picked=picked)
    assert ", among 1 point\n" in text and "next best" not in text


def test_what_is_known_of_the_choice_is_told(many):
    worth = Worth(1.25, {"value": 1.125, "low": 1.0, "high": 1.25}, [4, 7])
    lines = picked_text(many, many["points"][3], "run", worth=worth).splitlines()
    assert "  worth 1.25 as measured, 1.12 [1.00, 1.25] corrected for having been picked" in lines
    assert "  points that cannot be told apart from it: 4, 7" in lines
    worth = Worth(1.25, {"value": 1.125, "low": None, "high": None}, [])
    lines = picked_text(many, many["points"][3], "run", worth=worth).splitlines()
    assert "  worth 1.250 as measured, 1.125 corrected for having been picked" in lines
    assert "  points that cannot be told apart from it: none" in lines


def test_the_prompts_that_lost_most_are_told_and_few_of_them(many):
    lost = [{"prompt": 7 + k, "loss": 2.0 - k, "differences": {"a": -1.5, "b": 0.25}} for k in range(5)]
    point = {**many["points"][3], "lost_most": lost}
    asked = "What\nis\x1b[31m " + "x" * 90
    lines = picked_text(many, point, "run", prompts={7: asked}).splitlines()
    start = lines.index("  lost most against the SFT model, mean score less its own:")
    assert lines[start + 1] == f"    prompt 7 (What is[31m {'x' * 46}…): a -1.500, b +0.250"
    assert lines[start + 2 : start + 4] == [f"    prompt {k}: a -1.500, b +0.250" for k in (8, 9)]
    assert lines[start + 4] == ""
    for lost in ([], None):
        assert "lost most" not in picked_text(many, {**point, "lost_most": lost}, "run")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"preference": [1, 1], "group": "line"}, "unknown group 'line'; known: .* did you mean 'lines'?"),
        ({"group": "lines"}, "a point is picked by a preference"),
        (
            {"preference": [1, 1], "max_kl": 0.05},
            r"KL of at most 0.05 nats: the lowest is 0.1 \(point 16\)",
        ),
        ({"preference": [1, 1], "max_kl": -1.0}, "max_kl is -1.0; expected a number of at least 0"),
        ({"preference": [1, 1], "max_kl": float("nan")}, "max_kl is nan; expected a number of at least 0"),
        ({"point": 99}, "the front has no point 99; its points are 0 to 16"),
        ({"point": 3, "preference": [1, 1]}, "point 3 is asked for by its id; leave out what else"),
        ({"point": 3, "group": "lines"}, "point 3 is asked for by its id; leave out what else"),
        (
            {"minimum": {"humor": 0.5}, "maximize": "a"},
            "no point has a mean humor of at least 0.5: the highest is 0",
        ),
        ({"minimum": {"humor": -9}, "maximize": "a", "group": "ties"}, "no point that is looked at has a humor"),
        ({"minimum": {"a": -9}, "maximize": "humor", "group": "ties"}, "no point that is left has a humor"),
        ({"minimum": {"a": -9}, "maximize": "humour"}, "unknown score 'humour'; known: .* did you mean 'humor'?"),
    ],
)
def test_limits_that_nothing_is_within_are_one_sentence(many, question, words):
    with pytest.raises(ValueError, match=words) as error:
        pick(many, **question)
    assert "\n" not in str(error.value)


def test_a_front_without_kl_has_no_limit_of_it(make_front):
    front = make_front()
    with pytest.raises(ValueError, match="max_kl is given, but no point that is looked at has a KL"):
        pick(front, preference=[1, 1], group="rewarded_soup", max_kl=1.0)


def test_one_objective_is_picked_by_one_number():
    front = front_of([[0.0], [2.0], [1.0]])
    assert pick_point(front, preference=[1])["id"] == 11
    assert pick_point(front, preference=[3], scale="range")["id"] == 11
    assert pick_point(front, minimum={"r1": 0.5}, maximize="r1")["id"] == 11


def test_an_objective_may_be_called_mean(make_points):
    """What completions have by objective is no mean itself, whatever an objective is called."""
    front = build_front(rewards=["mean", "b"], split="test", seed=0, points=make_points(), resamples=5, **SOURCES)
    correlation = {"mean": 0.25, "low": 0.0, "high": 0.5}
    for point in front["points"]:
        point["metrics"] |= {"length_correlation": {"mean": correlation, "b": None}, "tokens": correlation}
    picked = pick(front, preference=[1, 1])
    text = picked_text(front, picked.point, "run", picked=picked)
    assert "  tokens  0.25 [0.00, 0.50]" in text and "correlation" not in text
    with pytest.raises(ValueError, match="unknown score 'length_correlation'; known: b, kl, mean, tokens"):
        pick(front, minimum={"b": 0.0}, maximize="length_correlation")
