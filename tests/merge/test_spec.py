"""A spec is a value: checked, saved, compared."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rlhf_lines.merge import MergeSpec


def test_defaults_and_dict():
    spec = MergeSpec("linear", [0.3, 0.7])
    assert spec.to_dict() == {
        "rule": "linear",
        "weights": [0.3, 0.7],
        "alpha": 1.0,
        "beta": 0.0,
        "schedule": "linear",
        "options": {},
    }
    assert spec.weights == (0.3, 0.7)


def test_json_round_trip_keeps_value_hash_and_digest():
    spec = MergeSpec("sum", (1 / 3, 2 / 3), alpha=0.1, beta=0.9)
    again = MergeSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.digest() == spec.digest()


def test_equal_numbers_of_other_types_are_the_same_spec():
    assert MergeSpec("linear", (1, 0), alpha=1, beta=-0.0).digest() == MergeSpec("linear", (1.0, -0.0)).digest()
    assert len({MergeSpec("linear", (1, 0)), MergeSpec("linear", (1.0, 0.0)), MergeSpec("linear", (0, 1))}) == 2


def test_digest_is_the_same_on_every_machine():
    # sha256 of {"alpha":1.0,"beta":0.0,"options":{},"rule":"linear","schedule":"linear","weights":[0.5,0.5]}
    assert MergeSpec("linear", (0.5, 0.5)).digest() == "6ebb4e57a769"


def test_lines_before_the_rule_is_written_and_read_and_after_it_is_what_was_not_said():
    before = MergeSpec("ties", (0.5, 0.5), 0.5, 1.0, lines="before")
    assert before.to_dict()["lines"] == "before"
    assert MergeSpec.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    after = MergeSpec("ties", (0.5, 0.5), 0.5, 1.0)
    assert "lines" not in after.to_dict() and MergeSpec.from_dict(after.to_dict()).lines == "after"
    assert MergeSpec.from_dict({**after.to_dict(), "lines": "after"}) == after != before
    assert before.digest() != after.digest()


def test_a_spec_cannot_be_changed():
    spec = MergeSpec("linear", (1.0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.alpha = 2.0
    assert dataclasses.replace(spec, alpha=2.0) == MergeSpec("linear", (1.0,), alpha=2.0)


def test_weights_need_not_sum_to_one():
    assert MergeSpec("linear", (0.0, 0.0)).weights == (0.0, 0.0)
    assert MergeSpec("linear", (1.5, -0.5)).weights == (1.5, -0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "tise", "weights": [1]}, "unknown rule 'tise'; known: .*linear"),
        ({"rule": "linear", "weights": []}, "weights is empty"),
        ({"rule": "ties", "weights": [1], "lines": "bevor"}, "unknown lines 'bevor'; known: after, before"),
        ({"rule": "linear", "weights": [1], "lines": "before"}, "rule 'linear' gives the same merge"),
        ({"rule": "peft_linear", "weights": [1], "lines": "before"}, "rule 'peft_linear' gives the same merge"),
        ({"rule": "fisher", "weights": [1], "lines": "before"}, "rule 'fisher' gives the same merge"),
        (
            {"rule": "ties", "weights": [1], "options": {"granularity": "tensor"}, "lines": "before"},
            "rule 'ties' with options {'granularity': 'tensor'} gives the same merge",
        ),
        (
            {"rule": "dare", "weights": [1], "options": {"then": "ties", "ties_options": "sum"}, "lines": "before"},
            "ties_options is 'sum', expected a mapping from an option of ties to its value",
        ),
        (
            {"rule": "consensus", "weights": [1], "options": {"of": "ties", "ties_options": ["x"]}, "lines": "before"},
            r"ties_options is \['x'\], expected a mapping",
        ),
        ({"rule": "ties", "weights": [1], "alpha": "auto", "lines": "before"}, "alpha is 'auto', which is measured on"),
        (
            {"rule": "ties", "weights": [0, 0], "alpha": "auto"},
            "alpha is 'auto', but weights of zero merge nothing .* give alpha as a number, or other weights",
        ),
        (
            {
                "rule": "layerwise",
                "weights": [1],
                "alpha": "auto",
                "options": {"factors": [[0.0, 0.0]], "outside": [0.0]},
            },
            "alpha is 'auto', but factors by layer of zero merge nothing",
        ),
        ({"rule": "linear", "weights": 0.5}, "weights is 0.5, expected a sequence"),
        ({"rule": "linear", "weights": "0.5"}, "weights is '0.5', expected a sequence"),
        (
            {"rule": "linear", "weights": [1e308]},
            r"weights\[0\] is 1e\+308, expected .* that float32 holds",
        ),
        ({"rule": "linear", "weights": [10**400]}, r"weights\[0\] is 10+, expected a finite number"),
        ({"rule": "linear", "weights": [1, "0.5"]}, r"weights\[1\] is '0.5', expected a finite number"),
        ({"rule": "linear", "weights": [float("nan")]}, r"weights\[0\] is nan"),
        ({"rule": "linear", "weights": [1], "alpha": float("inf")}, "alpha is inf"),
        ({"rule": "linear", "weights": [1], "beta": None}, "beta is None"),
        ({"rule": "linear", "weights": [1], "schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"rule": "linear", "weights": [1], "options": {"density": 1}}, "unknown option of rule 'linear' 'density'"),
        ({"rule": "linear", "weights": [1], "options": 3}, "options is 3, expected a mapping"),
        ({"rule": "linear", "weights": [1], "lambda": 1}, "unknown key of a merge spec 'lambda'"),
        ({"weights": [1]}, "has no 'rule'"),
        ({"rule": "linear"}, "has no 'weights'"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        MergeSpec.from_dict(values)
