"""What a group serves is its own merge at other weights, or a point that pick gives."""

from __future__ import annotations

import pytest

from rlhf_lines.cli import main
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import pick, read_front
from rlhf_lines.serve.mixed import mix_of_point
from rlhf_lines.serve.served import read_served
from rlhf_lines.sweep.store import Store
from tests.serve.conftest import BY_LAYER, GROUPS, LINES


@pytest.mark.parametrize(
    ("group", "name", "spec"),
    [
        ("lines", "mix/helpful=0.3,harmless=0.7", MergeSpec("linear", (0.3, 0.7), **LINES)),
        ("rewarded_soup", "mix/harmless=1", MergeSpec("linear", (0.0, 1.0))),
        ("by layer", "mix/helpful=0.999,harmless=.001", MergeSpec("layerwise", (0.999, 0.001), options=BY_LAYER)),
        ("others", "mix/third=0.4,harmless=0.6", MergeSpec("linear", (0.6, 0.4), 0.7)),  # policies of their own
    ],
)
def test_weights_are_those_of_the_groups_policies(group, name, spec, run):
    assert read_served(run, group).spec(name) == spec


@pytest.mark.parametrize("preference", [(1.0, 0.0), (0.7, 0.3), (0.0, 1.0)])
@pytest.mark.parametrize("group", ["lines", "others"])
@pytest.mark.parametrize("scale", ["raw", "range"])
def test_a_preference_is_the_point_that_pick_gives(scale, group, preference, run):
    served = read_served(run, group, scale)
    point = pick(read_front(run), preference=preference, scale=scale, group=group).point
    found = served.spec(f"mix/preference={preference[0]},{preference[1]}")
    places = {"lines": (0, 1), "others": (1, 3)}[group]  # of harmless and third, among all policies
    assert found.weights == tuple(point["spec"]["weights"][place] for place in places)
    assert (found.alpha, found.beta) == (point["spec"]["alpha"], point["spec"]["beta"])


def test_a_point_has_the_name_of_the_mix_that_is_the_same_merge(run):
    front = read_front(run)
    named = {point["id"]: mix_of_point(front, point) for point in front["points"]}
    groups = {point["group"] for point in front["points"] if named[point["id"]] is not None}
    assert groups == {"rewarded_soup", "lines", "by layer", "others"}
    for point in (point for point in front["points"] if named[point["id"]] is not None):
        spec, served = MergeSpec.from_dict(point["spec"]), read_served(run, point["group"])
        found = served.spec(named[point["id"]])
        assert (found.rule, found.alpha, found.beta, found.options) == (spec.rule, spec.alpha, spec.beta, spec.options)
        by_policy = dict(zip(served.places, found.weights, strict=True))
        assert [by_policy.get(k, 0.0) for k in range(len(spec.weights))] == list(spec.weights)


@pytest.mark.parametrize("weights", [(1 / 3, 2 / 3), (-0.5, 1.5), (2.0, -1.0), (0.0, 0.0)])
def test_what_no_request_can_name_is_no_mix(weights, run):
    front = read_front(run)
    point = next(point for point in front["points"] if point["group"] == "lines")
    point["spec"]["weights"] = list(weights)
    assert mix_of_point(front, point) is None


def test_a_front_that_does_not_know_its_policies_names_no_mix(run):
    front = read_front(run)
    point = next(point for point in front["points"] if point["group"] == "lines")
    assert mix_of_point(front | {"policies": []}, point) is None
    without_sft = [each for each in front["points"] if each["group"] != "sft"]
    assert mix_of_point(front | {"points": without_sft}, point) == mix_of_point(front, point)


def test_pick_tells_the_name_of_the_mix(run, capsys):
    assert main(["pick", str(run), "--preference", "0.5", "0.5", "--group", "others"]) == 0
    told = capsys.readouterr().out
    found = next(line for line in told.splitlines() if "to ask a server for it" in line)
    point = pick(read_front(run), preference=(0.5, 0.5), group="others").point
    counts = {name: point["spec"]["weights"][place] for name, place in (("harmless", 1), ("third", 3))}
    mix = ",".join(f"{name}={weight:g}" for name, weight in counts.items() if weight)
    assert f"rlhf-lines serve {run} --group others, and" in found and found.endswith(f'"model": "mix/{mix}"')
    assert main(["pick", str(run), "--preference", "0.5", "0.5", "--group", "ties"]) == 0
    assert "to ask a server for it" not in capsys.readouterr().out


def test_the_policies_are_those_of_the_group(run, models):
    assert read_served(run, "lines").swept.policies == [models / "helpful", models / "harmless"]
    assert read_served(run, "others").swept.policies == [models / "harmless", models / "third"]
    assert [adapter.path for adapter in read_served(run, "others").swept.load()] == [
        str(models / name) for name in ("harmless", "third")
    ]


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("line", "unknown group 'line'; known: by layer, lines, morlhf"),
        ("sft", "group sft is the SFT model, which is no merge"),
        ("morlhf", "group morlhf is no mix of policies"),
        ("ties", "group ties has rule ties, of which no adapter is exactly the merge"),
        ("routed", "group routed has weights that a router chooses for every prompt, so that no one adapter is its"),
        ("search", "the points of group search have scalings of their own"),
        ("wise_ft", "the weights of group wise_ft do not sum to 1"),
    ],
)
def test_groups_that_are_no_mix_are_refused(group, told, run):
    assert group == "line" or group in GROUPS["test"]
    with pytest.raises(ValueError, match=told):
        read_served(run, group)


def test_models_that_have_changed_are_refused(run, changed):
    with Store(run, reading=True) as store:
        kept = store.recall("inputs_sha256")
    run = changed(inputs_sha256={name: {**parts, "weights": "0" * 64} for name, parts in kept.items()})
    with pytest.raises(ValueError) as refused:
        read_served(run, "lines")
    assert f"SFT model sft has changed since the sweep in {run} (weights)" in str(refused.value)
    assert f"policy 2 (harmless) has changed since the sweep in {run} (weights)" in str(refused.value)


def test_policies_that_are_gone_are_named(changed, models):
    with pytest.raises(FileNotFoundError, match=r"policy \./gone does not exist"):
        read_served(changed([models / "helpful", "./gone"]), "lines")


@pytest.mark.parametrize("name", ["a,b", "a=b"])
def test_policies_whose_names_part_a_mix_are_refused(name, changed):
    with pytest.raises(ValueError, match=f"policies are called {name}, harmless .* rename the folders"):
        read_served(changed([f"./{name}"]), "lines")


def test_a_sweep_that_has_not_finished_is_refused(changed):
    run = changed()
    (run / "rlhf_lines.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        read_served(run, "lines")
