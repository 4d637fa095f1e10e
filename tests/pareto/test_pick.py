"""Picking against a loop over the points, and every way to ask for what cannot be picked; what is told about a point.

The printed command is read by the project's own parser, and gives back the spec of the point.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

import numpy as np
import pytest

from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.pareto import build_front, merge_arguments, pick_point, picked_text
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
        ({"minimum": {"r2": 0.0}}, "and the reward to maximize"),
        ({"minimum": {}, "maximize": "r1"}, "picked by a preference"),
        ({"preference": [1, 1], "maximize": "r1"}, "pick by one of them"),
        ({"preference": [1, 1], "minimum": {"r1": 0.0}}, "pick by one of them"),
        ({"preference": [1, 1, 1]}, "has 3 numbers; expected 2, one for each of r1, r2"),
        ({"preference": [0.5]}, "has 1 numbers; expected 2"),
        ({"preference": [0, 0]}, "at least 0, not all 0"),
        ({"preference": [1, -0.1]}, r"\[1.0, -0.1\]; expected finite numbers of at least 0"),
        ({"preference": [1, float("nan")]}, "expected finite numbers"),
        ({"preference": [1, float("inf")]}, "expected finite numbers"),
        ({"preference": [1, 1], "scale": "rang"}, "unknown scale 'rang'; known: range, raw; did you mean 'range'?"),
        ({"minimum": {"r3": 0.0}, "maximize": "r1"}, "unknown reward 'r3'; known: r1, r2"),
        ({"minimum": {"r1": 0.0}, "maximize": "R2"}, "unknown reward 'R2'"),
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
    assert config.merge().spec == spec
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
    assert lines[0] == "point 9: lines, linear, weights 0.75 0.25, alpha 1, beta 1, schedule linear"
    assert spec["weights"] == [0.75, 0.25]
    score, kl = front["points"][9]["scores"]["b"], front["points"][9]["kl"]
    assert lines[2] == f"  b   {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert lines[3] == f"  kl  {kl['mean']:.3f} [{kl['low']:.3f}, {kl['high']:.3f}]"
    assert lines[4] == "  mean [95 % interval] over 40 test prompts"
    front["points"][9]["perplexity"] = {"mean": 12.5, "low": 11.0, "high": 13.25}
    assert "  perplexity  12.50 [11.00, 13.25]" in picked_text(front, front["points"][9], "run").splitlines()


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
    assert text.startswith("point 1: rewarded_soup, sum, weights 0 1, alpha 1, beta 0, schedule linear\n")
    assert parsed(text.splitlines()[-1]).merge().spec == twice


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
