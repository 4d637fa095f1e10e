"""A name gives exactly the weights that it says, or a sentence that says what is wrong with it."""

from __future__ import annotations

import pytest

from rlhf_lines.serve.names import LONGEST, Mix, is_mix, mix_name, read_mix


POLICIES, OBJECTIVES = ["helpful", "harmless", "runs/kind one"], ["r1", "r2"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mix/helpful=0.3,harmless=0.7", (0.3, 0.7, 0.0)),
        ("mix/harmless=.70,helpful=0.300", (0.3, 0.7, 0.0)),
        ("mix/runs/kind one=1", (0.0, 0.0, 1.0)),
        ("mix/helpful=1.000,harmless=0", (1.0, 0.0, 0.0)),
        ("mix/helpful=0.333,harmless=0.333,runs/kind one=0.334", (0.333, 0.333, 0.334)),
    ],
)
def test_weights(name, weights):
    assert is_mix(name)
    assert read_mix(name, POLICIES, OBJECTIVES) == Mix(weights, is_preference=False)


def test_every_weight_is_what_its_decimals_say():
    """In steps of a thousandth: no sum of floats is compared with 1."""
    for step in range(1001):
        weights = (step / 1000, (1000 - step) / 1000)
        text = f"mix/helpful={step / 1000},harmless={(1000 - step) / 1000}"
        assert read_mix(text, POLICIES[:2], OBJECTIVES).weights == weights
        assert read_mix(mix_name(weights, POLICIES[:2]), POLICIES[:2], OBJECTIVES).weights == weights


def test_a_preference():
    assert read_mix("mix/preference=0.7,.3", POLICIES, OBJECTIVES) == Mix((0.7, 0.3), is_preference=True)


def test_a_policy_may_be_called_preference():
    found = read_mix("mix/preference=0.7,harmless=0.3", ["harmless", "preference"], OBJECTIVES)
    assert found == Mix((0.3, 0.7), is_preference=False)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mix/", "has '', expected POLICY=WEIGHT such as mix/helpful=1"),
        ("mix/helpful", "has 'helpful', expected POLICY=WEIGHT"),
        ("mix/helpful=0.3", "sum to 0.3, expected 1"),
        ("mix/helpful=0.3,harmless=0.699", "sum to 0.999, expected 1"),
        ("mix/helpful=1,harmless=1", "sum to 2, expected 1"),
        (
            "mix/helpfull=1",
            "unknown policy 'helpfull'; known: harmless, helpful, runs/kind one; did you mean 'helpful'",
        ),
        ("mix/../../etc=1", "unknown policy '../../etc'"),
        ("mix/helpful=0.5,helpful=0.5", "names helpful twice"),
        ("mix/helpful=0.3333,harmless=0.6667", "'0.3333', expected a number from 0 to 1 with at most three decimals"),
        ("mix/helpful=1.5,harmless=-0.5", "'1.5', expected a number from 0 to 1"),
        ("mix/helpful=1e0", "'1e0', expected"),
        ("mix/helpful=nan", "'nan', expected"),
        ("mix/helpful=", "'', expected"),
        ("mix/helpful=\N{ARABIC-INDIC DIGIT ONE}", "expected a number"),
        ("mix/helpful=1\n", "expected a number"),
        ("mix/preference=1", "has 1 number, expected 2, one for each of r1, r2"),
        ("mix/preference=0.5,0.4", "sum to 0.9, expected 1"),
        ("mix/preference=0.5,", "has '', expected a number"),
        (f"mix/{'a' * LONGEST}=1", f"has {LONGEST + 6} characters, expected at most {LONGEST}"),
    ],
)
def test_other_names_are_refused_in_a_sentence(name, told):
    with pytest.raises(ValueError) as refused:
        read_mix(name, POLICIES, OBJECTIVES)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 2 * LONGEST


def test_names_of_other_models_are_no_mixes():
    assert not any(map(is_mix, ("sft", "Mix/a=1", "mixtral", "", "remix/a=1")))
