"""Which points are one policy as it was trained, and what people read for them."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.origin import arguments_to_merge


SPEC = {"rule": "linear", "weights": [0.0, 1.0], "alpha": 1.0, "beta": 0.0, "schedule": "linear", "options": {}}


@pytest.mark.parametrize(
    ("changes", "single", "label"),
    [
        ({}, 1, "harmless"),
        ({"weights": [0.0, 0.0, 1.0]}, 2, "both"),  # a MORLHF run
        ({"schedule": "sqrt"}, 1, "harmless"),  # of beta 0
        ({"weights": []}, None, ""),
        ({"weights": [0.0, 0.0]}, None, "0 / 0"),
        ({"weights": [0.25, 0.75]}, None, "0.25 / 0.75"),
        ({"weights": [0.0, 2.0]}, None, "0 / 2"),
        ({"weights": [0.0, 1.0, 1.0]}, None, "0 / 1 / 1"),
        ({"alpha": 0.5}, None, "0 / 1"),
        ({"alpha": "auto"}, None, "0 / 1"),
        ({"beta": 1.0}, None, "0 / 1"),
        ({"rule": "sum"}, None, "0 / 1"),  # two times the policy
        ({"rule": "ties"}, None, "0 / 1"),
        ({"weights": [0.0, 0.0, 0.0, 1.0]}, None, "0 / 0 / 0 / 1"),  # of a policy that is not known
    ],
)
def test_one_policy_as_it_was_trained_has_its_name(changes, single, label):
    point = {"id": 0, "group": "any", "spec": {**SPEC, **changes}, "scores": [[0.0, 1.0]]}
    about = {"rewards": ["a", "b"], "split": "test", "seed": 0, "points": [point], "resamples": 5}
    front = build_front(**about, policies=["runs/helpful", "runs/harmless", "runs/both"])
    assert (front["points"][0]["single_policy"], front["points"][0]["label"]) == (single, label)
    (unknown,) = build_front(**about)["points"]
    assert (unknown["single_policy"], unknown["merge_arguments"]) == (None, None)
    assert unknown["label"] == " / ".join(f"{weight:g}" for weight in point["spec"]["weights"])


def test_a_merge_with_lines_before_its_rule_is_made_so_where_lines_scales_anything():
    spec = {**SPEC, "rule": "ties", "beta": 0.5, "lines": "before"}
    arguments = arguments_to_merge(spec, "sft", ["a", "b"])
    assert arguments[arguments.index("--schedule") :] == [
        "--schedule",
        "linear",
        "--lines",
        "before",
        "--save",
        "dense",
    ]
    assert "--lines" not in arguments_to_merge({**spec, "beta": 0.0}, "sft", ["a", "b"])
    assert "--lines" not in arguments_to_merge(SPEC, "sft", ["a", "b"])


def test_who_merges_policies_that_call_the_sft_model_otherwise_is_told_to_say_so():
    found = arguments_to_merge(SPEC, "sft", ["a", "b"], sft_renamed=True)
    at = found.index("--sft_renamed")
    assert found[at : at + 2] == ["--sft_renamed", "true"]
    assert found[:at] + found[at + 2 :] == arguments_to_merge(SPEC, "sft", ["a", "b"])
