"""A column `margin` of preference pairs is kept, whatever form the pairs have, and is a number in every row."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from rlhf_lines.train.config import RewardTextConfig
from tests.tiny import word_tokenizer


def said(role, content):
    return {"role": role, "content": content}


FORMS = {
    "texts": [{"prompt": p, "chosen": " a", "rejected": " b"} for p in ("c", "d")],
    "dialogues": [
        {side: f"\n\nHuman: {p}\n\nAssistant: {reply}" for side, reply in (("chosen", "a"), ("rejected", "b"))}
        for p in ("c", "d")
    ],
    "conversations": [
        {side: [said("user", p), said("assistant", reply)] for side, reply in (("chosen", "a"), ("rejected", "b"))}
        for p in ("c", "d")
    ],
}


@pytest.fixture
def load(write):
    def of(rows, kind="preferences", **settings):
        return data.load(str(write("pairs.jsonl", rows)), kind, "test", test_size="all", **settings)

    return of


@pytest.mark.parametrize("form", FORMS)
def test_a_margin_is_kept(load, form):
    rows = [{**row, "margin": margin} for row, margin in zip(FORMS[form], (1, 0.5), strict=True)]
    assert load(rows)["margin"] == [1.0, 0.5]
    assert "margin" not in load(FORMS[form]).column_names
    assert "margin" not in load(rows, "prompts").column_names


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("margin", "reason"),
    [
        ("large", "margin is a text, expected a finite number"),
        (None, "has no margin: fill it in"),
        (float("nan"), r"margin is a number \(nan\), expected a finite number"),
        (True, r"margin is a switch \(true\), expected a finite number"),
    ],
)
def test_a_margin_that_is_no_number_is_refused_with_its_row(load, form, margin, reason):
    first, second = FORMS[form]
    with pytest.raises(ValueError, match=rf"row 2 of dataset .*{reason}"):
        load([{**first, "margin": 1}, {**second, "margin": margin}])


def test_equal_pairs_of_other_margins_are_two(load):
    row = FORMS["texts"][0]
    assert load([{**row, "margin": 1}, {**row, "margin": 2}, {**row, "margin": 1.0}])["margin"] == [1.0, 2.0]


@pytest.mark.parametrize("template", ["{prompt}{completion}", "Q: {prompt} A: {completion}", "chat"])
def test_every_template_hands_it_on(load, template):
    pair = load([{**FORMS["texts"][0], "margin": 3}], tokenizer=word_tokenizer(), with_turns=template == "chat")[0]
    assert RewardTextConfig(template).row(pair, {})["margin"] == 3.0
