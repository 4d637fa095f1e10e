"""What a config of a sweep may say, and the one sentence about what it may not."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
import yaml

from rlhf_lines.arguments import parse
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.choices import GroupEntry, Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.policy_sets import PolicySet
from rlhf_lines.task_rewards import RewardEntry


NEEDED = {"sft_model": "sft", "policies": ["a", "b"], "rewards": ["rule:length", "m:f"], "output_dir": "out"}


def config(**changes) -> SweepConfig:
    return SweepConfig(**{**NEEDED, **changes})


# --- scalings ---


def test_the_grid_is_every_alpha_with_every_beta_and_schedule_of_which_beta_0_has_none():
    assert config(alphas=["0.5", 1], betas=[0.0, 2.0], schedules=["linear", "sqrt"]).candidates == [
        Scaling(0.5, 0.0, "linear"),
        Scaling(0.5, 2.0, "linear"),
        Scaling(0.5, 2.0, "sqrt"),
        Scaling(1.0, 0.0, "linear"),
        Scaling(1.0, 2.0, "linear"),
        Scaling(1.0, 2.0, "sqrt"),
    ]


def test_alpha_may_be_auto():
    assert config(alphas=["auto", "1"], betas=[0.5]).candidates == [Scaling("auto", 0.5), Scaling(1.0, 0.5)]
    assert config(scalings=["auto 1"], alphas=[], betas=[], schedules=[]).candidates == [Scaling("auto", 1.0)]


def test_a_list_takes_the_place_of_the_grid():
    listed = ["1 0.5", "0.25 2 sqrt", ["auto", 1], [1, 1.5, "quadratic"]]
    assert config(scalings=listed, alphas=["7"], betas=[7.0]).candidates == [
        Scaling(1.0, 0.5),
        Scaling(0.25, 2.0, "sqrt"),
        Scaling("auto", 1.0),
        Scaling(1.0, 1.5, "quadratic"),
    ]


def test_one_merge_is_one_candidate_with_one_form():
    assert config(scalings=["1 0 sqrt", "1 0", "1 1 sqrt", "auto 0 sqrt"]).candidates == [
        Scaling(1.0, 0.0, "sqrt"),
        Scaling(1.0, 1.0, "sqrt"),
        Scaling("auto", 0.0, "sqrt"),
    ]
    entry = GroupEntry.of({"name": "sum", "rule": "sum", "alpha": 1, "betas": [0, 1], "schedules": ["sqrt", "linear"]})
    assert entry.candidates(()) == [Scaling(1.0, b, s) for b, s in ((0.0, "sqrt"), (1.0, "sqrt"), (1.0, "linear"))]
    specs = [entry.spec((0.5, 0.5), scaling) for scaling in entry.candidates(())]
    assert [(spec.beta, spec.schedule) for spec in specs] == [(0.0, "linear"), (1.0, "sqrt"), (1.0, "linear")]


def test_the_default_grid():
    assert config().candidates == [Scaling(a, b) for a in (0.5, 1.0) for b in (0.5, 1.0)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alphas": ["high"]}, "alphas or scalings hold alpha 'high', expected finite numbers or auto"),
        ({"alphas": ["nan"]}, "alphas or scalings hold alpha 'nan', expected finite numbers or auto"),
        ({"alphas": []}, "alphas is empty, expected one value or more"),
        ({"betas": []}, "betas is empty, expected one value or more"),
        ({"schedules": []}, "schedules is empty, expected one value or more"),
        ({"alphas": ["1", "1.0"]}, "alphas is [1.0, 1.0], expected every value once"),
        ({"betas": [0.5, 0.5]}, "betas is [0.5, 0.5], expected every value once"),
        ({"schedules": ["sqrt", "sqrt"]}, "schedules is ['sqrt', 'sqrt'], expected every value once"),
        ({"betas": [float("inf")]}, "betas or scalings hold beta inf, expected finite numbers"),
        ({"schedules": ["square"]}, "unknown schedule 'square'"),
        ({"scalings": ["1"]}, "scalings holds '1', expected alpha, beta and, if not linear, a schedule"),
        ({"scalings": ["1 1 sqrt 2"]}, "scalings holds '1 1 sqrt 2', expected alpha, beta and"),
        ({"scalings": [1.0]}, "scalings holds 1.0, expected alpha, beta and"),
        ({"scalings": ["1 one"]}, "betas or scalings hold beta 'one', expected finite numbers"),
        ({"scalings": ["1 1", "1.0 1.0 linear"]}, "expected every one once"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistakes_in_scalings(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        config(**changes)
    assert "\n" not in str(error.value)


# --- weights ---


def test_weights_are_texts_or_lists():
    expected = [(0.3, 0.7), (1.0, 0.0), (0.5, 0.5), (1.5, -0.5)]
    assert config(sampler="list", weights=["0.3 0.7", "1,0", [0.5, 0.5], (1.5, -0.5)]).weights == expected


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["0.3 0.7 0"], "weights holds '0.3 0.7 0', expected 2 numbers, one per policy"),
        (["0.3"], "weights holds '0.3', expected 2 numbers"),
        (["a b"], "weights holds 'a b', expected 2 numbers"),
        ([["0.3", None]], "expected 2 numbers"),
        ([0.3, 0.7], "weights holds 0.3, expected 2 numbers"),
        (["nan 1"], "weights holds 'nan 1', expected 2 numbers"),
        ([[float("inf"), 1]], "expected 2 numbers"),
        (["0.3 0.7", [0.3, 0.7]], "weights holds [0.3, 0.7] twice: give every point once"),
    ],
)
def test_mistakes_in_weights(items, sentence):
    with pytest.raises(ValueError, match="weights holds") as error:
        config(sampler="list", weights=items)
    assert sentence in str(error.value) and "\n" not in str(error.value)


AUTO = {"alphas": ["auto"], "betas": [1.0], "controls": False}
TIES_AUTO = {"name": "t", "rule": "ties", "alphas": ["auto", 1.0]}
SET = {"name": "s", "policies": ["c", "d"]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (AUTO, "LiNeS"),
        ({"scalings": ["auto 1", "1 0"], "controls": False}, "LiNeS"),
        ({"alphas": ["auto", 1.0]}, "LiNeS, even scaling"),
        ({"scaled_alphas": ["auto", 1.0]}, "even scaling"),
        ({"groups": [TIES_AUTO]}, "t"),
        ({"groups": [{"name": "t", "rule": "ties", "alpha": "auto"}]}, "t"),
        ({"policy_sets": [SET | {"alpha": "auto"}], **AUTO}, "LiNeS, s"),
        ({"policy_sets": [SET], "scaled_alphas": ["auto", 1.0], "controls": False}, "s"),
    ],
)
def test_no_alpha_is_measured_on_weights_of_zero(changes, names):
    """A sweep stopped at these after all work on validation prompts."""
    with pytest.raises(ValueError, match="weights holds") as error:
        config(sampler="list", weights=["1 0", "0 -0.0"], **changes)
    assert str(error.value) == (
        f"weights holds '0 -0.0', which merge nothing on which alpha auto of {names} could be measured: leave the "
        "point out, as the SFT model is a point anyway, or give alpha as a number"
    )
    assert config(sampler="list", weights=["1 -1"], **changes).weights == [(1.0, -1.0)]


def test_weights_of_zero_are_a_point_where_alpha_is_a_number():
    """Nor does a rule on factors, which has no residual to measure, take `auto` from the factors."""
    entry = {"name": "f", "rule": "factor_average"}
    own = {"scaled_alphas": ["auto", 0.5, 1.0], "controls": False, "groups": [entry]}
    for changes in ({}, own):
        assert config(sampler="list", weights=["0 0"], **changes).weights == [(0.0, 0.0)]


# --- groups ---


def test_a_group_is_a_mapping_or_json():
    given = {"name": "sparse", "rule": "ties", "options": {"density": 0.3}, "alpha": "auto", "beta": 1.0}
    (one,) = config(groups=[given]).groups
    assert config(groups=[json.dumps(given)]).groups == [one]
    (scaling,) = one.candidates([0.5, 1.0])  # a given alpha stays
    assert one.spec((0.2, 0.8), scaling) == MergeSpec("ties", (0.2, 0.8), "auto", 1.0, options={"density": 0.3})
    (plain,) = config(groups=[{"name": "plain", "schedule": "sqrt", "beta": 2}]).groups
    assert plain == GroupEntry("plain", beta=2, schedule="sqrt")
    (fisher,) = config(groups=[{"name": "f", "rule": "fisher", "statistics": ["x", "y"]}]).groups
    assert fisher.statistics == ("x", "y")
    (text,) = config(groups=[{"name": "text", "alpha": "0.5"}]).groups  # as a merge takes it
    assert text.candidates([1.0, 2.0]) == [Scaling(0.5, 0.0)]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["ties"], "groups holds 'ties', which is no valid JSON"),
        (["[1]"], "groups holds [1], expected a mapping with the key name"),
        ([{"rule": "ties"}], "expected a mapping with the key name"),
        (
            [{"name": "a", "rul": "ties"}],
            "groups: a: unknown key 'rul'; known: alpha, alphas, beta, betas, lines, name, ",
        ),
        ([{"name": "a", "rule": "tees"}], "groups: a: unknown rule 'tees'"),
        ([{"name": "a", "rule": "ties", "options": {"densty": 0.3}}], "groups: a: "),
        ([{"name": "a", "alpha": "much"}], "groups: a: alpha is 'much'"),
        ([{"name": "a", "options": None}], "groups: a: options is None, expected a mapping"),
        ([{"name": "a", "statistics": 3}], "groups: a: statistics is 3, expected a list of folders, one per policy"),
        ([{"name": "a", "statistics": "x"}], "groups: a: statistics is 'x', expected a list of folders"),
        (
            [{"name": "a", "statistics": ["x", "y"]}],
            "groups: a: statistics are given, but rule 'linear' uses none; leave",
        ),
        ([{"name": "a", "statistics": ["x", 3]}], "groups: a: statistics is ['x', 3], expected a list of folders"),
        ([{"name": "a", "schedule": "square"}], "groups: a: unknown schedule 'square'"),
        ([{"name": "a", "alpha": 1.0, "scalings": ["1 1"]}], "groups: a: alpha and scalings are given: keep one"),
        ([{"name": "a", "alpha": 2, "alphas": [1]}], "groups: a: alpha and alphas are given: keep one"),
        ([{"name": "a", "betas": [1], "scalings": ["1 1"]}], "groups: a: betas and scalings are given: keep one"),
        ([{"name": "a", "alphas": "1 2"}], "groups: a: alphas is '1 2', expected a list"),
        ([{"name": "a", "betas": ["much"]}], "groups: a: betas or scalings hold beta 'much', expected finite numbers"),
        ([{"name": "a", "betas": [1, 1.0]}], "groups: a: betas is [1.0, 1.0], expected every value once"),
        ([{"name": "a", "schedules": ["square"]}], "groups: a: unknown schedule 'square'"),
        ([{"name": "lines"}], "groups: 'lines' is the name of a group that a sweep has anyway: choose another one"),
        ([{"name": "SFT"}], "groups: 'SFT' is the name of a group that a sweep has anyway: choose another one"),
        ([{"name": " a "}], "groups has name ' a ', expected a text without line breaks, and without blanks around it"),
        ([{"name": "scaled"}], "groups: 'scaled' is the name of a group that a sweep has anyway"),
        (
            [{"name": "a"}, {"name": "a", "rule": "ties"}],
            "groups: 'a' occurs twice: give every group a name of its own",
        ),
        (
            [{"name": n, "rule": "fisher", "statistics": [n, "y"]} for n in "ab"],
            "groups: rule 'fisher' has different statistics: give all of its groups the same",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_in_groups(items, sentence):
    with pytest.raises(ValueError, match="groups") as error:
        config(groups=items)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_an_alpha_that_is_left_out_is_chosen_among_the_factors_of_scaled():
    """Where there are several; one is no choice, and leaves the merge as its rule has it."""
    factors = [0.5, "auto", 1.5]
    left_out = [GroupEntry("plain", "ties"), PolicySet("slow", ("c", "d"))]
    for entry in left_out:
        assert entry.leaves_alpha_out and entry.is_tuned(factors) and not entry.is_tuned([1.25])
        assert entry.candidates(factors) == [Scaling(alpha, 0.0) for alpha in factors]
        assert entry.candidates([1.25]) == [Scaling(1.0, 0.0)]
    grown = GroupEntry("grown", betas=(0.0, 1.0), schedule="sqrt")  # as betas of LiNeS leave its alphas
    assert grown.candidates([0.5, 2.0]) == [Scaling(a, b, "sqrt") for a in (0.5, 2.0) for b in (0.0, 1.0)]
    for entry in (GroupEntry("given", alpha="1"), PolicySet("given", ("c", "d"), alpha=1)):
        assert not (entry.leaves_alpha_out or entry.is_tuned(factors))
        assert entry.candidates(factors) == [Scaling(1.0, 0.0)]
    for entry in (GroupEntry("own", alphas=("2", 3)), PolicySet("own", ("c", "d"), alphas=("2", 3))):
        assert entry.is_tuned([1.25]) and not entry.leaves_alpha_out
        assert entry.candidates(factors) == [Scaling(2.0, 0.0), Scaling(3.0, 0.0)]


@pytest.mark.parametrize("rule", ["factor_average", "peft_linear"])
def test_a_rule_on_factors_leaves_out_auto_which_it_cannot_measure(rule):
    entry = GroupEntry("code", rule)
    assert entry.candidates(["auto", 0.5, 1.5]) == [Scaling(0.5, 0.0), Scaling(1.5, 0.0)]
    assert not entry.is_tuned(["auto", 1.5]) and entry.candidates(["auto", 1.5]) == [Scaling(1.0, 0.0)]
    groups = [{"name": "code", "rule": rule}, {"name": "sum", "rule": "sum"}]
    counts = config(alphas=["auto", 1], betas=[0.5, 1], groups=groups).candidate_counts
    assert counts == {"lines": 4, "scaled": 4, "reversed": 4, "code": 3, "sum": 4}
    counts = config(scaled_alphas=["auto", 1], groups=groups).candidate_counts
    assert counts == {"lines": 4, "scaled": 2, "reversed": 4, "sum": 2}


def test_a_group_with_lines_before_its_rule_leaves_out_auto_which_it_cannot_measure():
    entry = GroupEntry("trimmed alike", "ties", betas=(0.5, 1.0), lines="before")
    assert entry.candidates(["auto", 0.5, 1.5]) == [Scaling(a, b) for a in (0.5, 1.5) for b in (0.5, 1.0)]
    assert entry.spec((0.5, 0.5), Scaling(0.5, 1.0)) == MergeSpec("ties", (0.5, 0.5), 0.5, 1.0, lines="before")


def test_factors_without_controls_are_those_of_groups_and_sets():
    for further in ({"groups": [{"name": "a"}]}, {"policy_sets": [{"name": "a", "policies": ["c", "d"]}]}):
        found = config(scaled_alphas=[1, 2], controls=False, **further)
        assert found.candidate_counts == {"lines": 4, "a": 2}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": " "}, "groups has name ' ', expected a text"),
        ({"name": "a", "rule": "tees"}, "groups: a: unknown rule 'tees'"),
        (
            {"name": "a", "lines": "before"},
            "groups: a: lines is 'before', but rule 'linear' gives the same merge",
        ),
        ({"name": "a", "rule": "ties", "lines": "bevor"}, "groups: a: unknown lines 'bevor'; known: after, before"),
        ({"name": "a", "rule": "ties", "lines": "before", "alpha": "auto"}, "groups: a: alpha is 'auto', which is"),
        ({"name": "a", "statistics": "x"}, "groups: a: statistics is 'x', expected a list of folders"),
        ({"name": "a", "statistics": (3, "y")}, "groups: a: statistics is (3, 'y'), expected a list of folders"),
    ],
)
def test_a_group_checks_itself(settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        GroupEntry(**settings)


# --- from files and flags ---


def test_flags_and_files_say_the_same(tmp_path):
    content = {
        **NEEDED,
        "sampler": "list",
        "weights": [[0.3, 0.7], "0.5 0.5"],
        "scalings": [[1.0, 0.5, "sqrt"], "auto 1"],
        "groups": [{"name": "sum", "rule": "sum", "alpha": 0.5}],
        "controls": False,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    (from_file,), given = parse((SweepConfig,), ["--config", str(path)], prog="sweep")
    flags = "--sft_model sft --policies a b --rewards rule:length m:f --output_dir out --sampler list --controls false"
    listed = ["--weights", "0.3 0.7", "0.5 0.5", "--scalings", "1.0 0.5 sqrt", "auto 1"]
    group = ["--groups", '{"name": "sum", "rule": "sum", "alpha": 0.5}']
    (from_flags,), _ = parse((SweepConfig,), [*flags.split(), *listed, *group], prog="sweep")
    for found in (from_file, from_flags):
        assert found.weights == [(0.3, 0.7), (0.5, 0.5)]
        assert found.candidates == found.scalings == [Scaling(1.0, 0.5, "sqrt"), Scaling("auto", 1.0)]
        assert found.groups == [GroupEntry("sum", "sum", alpha=0.5)]
        assert found.rewards == [RewardEntry("rule:length"), RewardEntry("m:f")]
        assert found.controls is False
    assert given == content
    config_of_numbers = tmp_path / "numbers.yaml"
    config_of_numbers.write_text(yaml.safe_dump({**NEEDED, "alphas": [0.5, "auto"], "vllm": {"tensor_parallel_size": 2},
                                                 "engine": "vllm"}))  # fmt: skip
    (found,), _ = parse((SweepConfig,), ["--config", str(config_of_numbers)], prog="sweep")
    assert [scaling.alpha for scaling in found.candidates] == [0.5, 0.5, "auto", "auto"]
    assert found.vllm == {"tensor_parallel_size": 2}
    (found,), _ = parse(
        (SweepConfig,),
        [*flags.replace(" --sampler list", "").split(), "--engine", "vllm", "--vllm", '{"tensor_parallel_size": 2}'],
        prog="sweep",
    )
    assert found.vllm == {"tensor_parallel_size": 2}


def test_what_the_run_store_keeps_is_what_was_written(tmp_path):
    """A sweep that another version began goes on only where the facts in its store are these, letter by letter."""
    written = {
        "sampler": "list",
        "weights": [[0.3, 0.7], "0.5 0.5"],
        "scalings": [[1.0, 0.5, "sqrt"], "auto 1"],
        "groups": [{"name": "sum", "rule": "sum"}, '{"name": "t", "rule": "ties"}'],
        "rewards": ["rule:length", {"model": "m:f", "name": "f"}],
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**NEEDED, **written, "morlhf": "c", "temperature": 1}))
    (found,), _ = parse((SweepConfig,), ["--config", str(path)], prog="sweep")
    assert {key: found.given[key] for key in written} == written
    defaults = {"alphas": ["0.5", "1.0"], "betas": [0.5, 1.0], "schedules": ["linear"], "vllm": None}
    assert found.given.items() >= {"morlhf": ["c"], "temperature": 1.0, "batch_size": None, **defaults}.items()
    assert found.given.keys() == {entry.name for entry in fields(SweepConfig)} - {"given"}


# --- what does not go together ---

TIES = {"name": "t", "rule": "ties"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"engine": "vlm"}, "engine is 'vlm', expected local or vllm"),
        ({"sampler": "random"}, "sampler is 'random', expected grid, list, dirichlet, map or search"),
        ({"dtype": "int8"}, "dtype is 'int8', expected float32, bfloat16 or float16"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_8bit and load_in_4bit are both given: keep one"),
        ({"sampler": "list"}, "sampler is list, but no weights are given"),
        ({"weights": ["1 0"]}, "weights are given, but sampler is grid: use sampler list, or leave them out"),
        (
            {"sampler": "dirichlet", "num_weights": 1, "wise_ft": True},
            "num_weights is 1, but wise_ft goes from the SFT model to each policy in as many steps: give 2 or more, or",
        ),
        ({"map_points": 5}, "map_points is given, but sampler is grid: use sampler map, or leave it out"),
        ({"search_points": 5}, "search_points is given, but sampler is grid: use sampler search, or leave it out"),
        ({"sampler": "map", "search_gain": 0.1}, "search_gain is given, but sampler is map: use sampler search"),
        ({"sampler": "search", "groups": [{"name": "search", "rule": "sum"}]}, "'search' is the name of the group of"),
        ({"sampler": "search", "search_gain": -1}, "search_gain is -1, expected a number of at least 0"),
        ({"vllm": "{}"}, "vllm is given, but engine is local: leave it out, or use engine vllm"),
        ({"engine": "vllm", "vllm": "[2]"}, "vllm holds [2], expected a mapping"),
        ({"engine": "vllm", "vllm": "{2"}, "vllm holds '{2', which is no valid JSON"),
        ({"engine": "vllm", "load_in_8bit": True}, "load_in_8bit and load_in_4bit are of engine local"),
        ({"engine": "vllm", "groups": [TIES]}, "group t has rule ties, which no adapter holds: use engine local"),
        ({"load_in_8bit": True, "groups": [TIES]}, "group t has rule ties, which needs the weights of the SFT model"),
        ({"load_in_4bit": True, "groups": [TIES]}, "leave out load_in_8bit and load_in_4bit, or the group"),
        ({"policies": []}, "policies is empty, expected one or more"),
        ({"rewards": []}, "rewards is empty, expected one or more"),
        ({"policies": ["a"], "sampler": "map"}, "sampler is map, but a single policy has no mixtures: use grid"),
        ({"policies": ["a"], "sampler": "dirichlet"}, "sampler is dirichlet, but a single policy has no mixtures"),
        ({"policies": ["a"], "groups": [{"name": "wise_ft"}]}, "groups: 'wise_ft' is the name of a group of wise_ft"),
        ({"wise_ft": True, "groups": [{"name": "wise_ft b"}]}, "groups: 'wise_ft b' is the name of a group of wise_ft"),
        ({"scaled_alphas": [1, "1.0"]}, "scaled_alphas is [1.0, 1.0], expected every value once"),
        ({"scaled_alphas": [1], "controls": False}, "scaled_alphas is given, but controls is false: leave it out"),
        (
            {"scaled_alphas": [1], "controls": False, "groups": [{"name": "a", "alpha": 1}]},
            "scaled_alphas is given, but controls is false: leave it out",
        ),
        ({"max_kl": 0.0}, "max_kl is 0.0, expected a number above 0"),
        ({"max_kl": 1.0, "temperature": 0.0}, "max_kl needs completions drawn from the policy"),
        ({"max_kl": 1.0, "top_k": 5}, "max_kl needs completions drawn from the policy"),
        ({"max_forgetting": float("nan"), "control": "c"}, "max_forgetting is nan, expected a number above 0"),
        ({"max_forgetting": 1.1}, "max_forgetting is given, but no control: name texts outside the task there"),
        ({"minimum": ["harmless"]}, "minimum holds ['harmless'], expected a mapping from names of scores"),
        ({"minimum": "harmless=1"}, "minimum holds 'harmless=1', which is no valid JSON"),
        ({"minimum": {"harmless": float("nan")}}, "minimum of harmless is nan, expected a finite number"),
        ({"minimum": '{"harmless": true}'}, "minimum of harmless is True, expected a finite number"),
        ({"policies": [*"abcdefghijkl"]}, "num_weights 11 with 12 policies makes 352,716 points, expected at most 100"),
        ({"validation_weights": 500, "policies": [*"abc"]}, "validation_weights 500 with 3 policies makes 125,250"),
        ({"groups": [{"name": "a", "rule": ["ties"]}]}, "groups: a: unknown rule ['ties']; known: "),
        ({"groups": [{"name": "a", "schedule": ["sqrt"]}]}, "groups: a: unknown schedule ['sqrt']; known: "),
        ({"groups": [{"name": "a", "lines": {"after": 1}}]}, "a: unknown lines {'after': 1}; known: after, before"),
        ({"scalings": [[1, 2, [3]]]}, "unknown schedule [3]; known: "),
        ({"policy_sets": [{"name": "a", "policies": 3}]}, "policy_sets: a: policies is 3, expected a list of folders"),
        ({"policy_sets": [{"name": "a", "policies": {"b": 1}}]}, "policies is {'b': 1}, expected a list of folders"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5, expected a number above 0 and at most 1"),
        ({"top_p": 0.9, "temperature": 0.0}, "top_p is given, but temperature 0 takes the most likely token"),
        ({"top_k": 9, "temperature": 0.0}, "top_k is given, but temperature 0 takes the most likely token"),
        ({"stop": ["a", ""]}, "stop is ['a', ''], expected texts that are not empty"),
        ({"temperature": -1.0}, "temperature is -1.0, expected a number >= 0"),
        *(
            ({name: least - 1}, f"{name} is {least - 1}, expected at least {least}")
            for name, least in {
                "num_weights": 2, "map_points": 1, "search_points": 1, "control_texts": 2, "control_tokens": 2,
                "validation_weights": 2, "validation_prompts": 2, "test_prompts": 2, "samples_per_prompt": 1,
                "max_new_tokens": 1, "batch_size": 1, "edge_extensions": 0, "top_k": 1,
            }.items()
        ),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_does_not_go_together(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        config(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["control_texts", "control_tokens"])
def test_texts_that_are_not_named_have_no_size(name):
    with pytest.raises(ValueError, match=f"^{name} is given, but no control: name texts outside the task there, or"):
        config(**{name: 7})
    assert getattr(config(**{name: 7}, control="texts.txt"), name) == 7


ONE = {"scalings": ["1 1"], "controls": False}
IDLE = "schedule {} has no effect: beta is 0, so every layer has the factor alpha"
NO_CHOICE = "no effect: no group has several scalings to choose from, and there is no limit to keep"


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"sampler": "list", "weights": ["0.3 0.7"]}, []),
        (
            {"sampler": "list", "weights": ["0.3 0.7"], "num_weights": 5},
            ["num_weights 5 has no effect: sampler list has the weights that are given"],
        ),
        ({"sampler": "list", "weights": ["0.3 0.7"], "num_weights": 5, "wise_ft": True}, []),
        ({"sampler": "list", "weights": ["2"], "policies": ["a"], "num_weights": 5}, []),
        ({"num_weights": 5, "validation_weights": 3, "validation_prompts": 9}, []),
        (ONE, []),
        (ONE | {"validation_prompts": 9}, [f"validation_prompts has {NO_CHOICE}"]),
        (
            ONE | {"validation_prompts": 9, "validation_weights": 3},
            [f"validation_weights and validation_prompts have {NO_CHOICE}"],
        ),
        (ONE | {"validation_prompts": 9, "max_kl": 3.0}, []),
        (ONE | {"validation_prompts": 9, "sampler": "search"}, []),
        (ONE | {"validation_prompts": 9, "groups": [{"name": "t", "rule": "ties", "alphas": [1, 2]}]}, []),
        ({"betas": [0], "schedules": ["linear", "sqrt"]}, [IDLE.format("sqrt")]),
        ({"betas": [0, 1], "schedules": ["linear", "sqrt"]}, []),
        ({"scalings": ["1 0 sqrt", "2 0 quadratic"]}, [IDLE.format("sqrt"), IDLE.format("quadratic")]),
        ({"scalings": ["1 0 sqrt", "1 1"]}, []),  # beyond the edge of beta 0 it shapes the next candidate
        (
            {"groups": [{"name": "t", "alpha": 1, "schedule": "sqrt"}, {"name": "u", "betas": [0, 1]}]},
            [f"groups: t: {IDLE.format('sqrt')}"],
        ),
        ({"groups": [{"name": "t", "rule": "ties", "alpha": 1, "beta": 0.5, "schedule": "sqrt"}]}, []),
    ],
)
def test_what_is_given_and_has_no_effect_is_told(changes, sentences):
    assert config(**changes).without_effect == sentences


def test_all_problems_are_told_at_once():
    told = (
        r"4 problems: \(1\) num_weights is 1.*; \(2\) temperature is -1.*; \(3\) engine is 'x'.*; \(4\) policies is em"
    )
    with pytest.raises(ValueError, match=told):
        config(num_weights=1, temperature=-1.0, engine="x", policies=[])


def test_mistakes_of_several_keys_are_told_at_once():
    with pytest.raises(ValueError, match=r"4 problems: \(1\) num_weights is 1.*'high'.*\(3\) groups holds.*vllm holds"):
        config(num_weights=1, alphas=["high"], groups=["x"], engine="vllm", vllm="[2]")
    with pytest.raises(ValueError, match=r"2 problems: \(1\) alphas is \[1.0, 1.0\].*; \(2\) groups: 'lines' is"):
        config(alphas=["1", "1.0"], groups=[{"name": "lines"}])
    with pytest.raises(ValueError, match=r"^betas is empty, expected a value$"):
        config(betas=None)


def test_linear_groups_go_with_everything():
    for changes in ({"engine": "vllm"}, {"load_in_8bit": True}):
        assert config(groups=[{"name": "sum", "rule": "sum"}], **changes).groups
