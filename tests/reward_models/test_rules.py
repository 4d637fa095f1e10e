"""Scores of rules by hand, and by a second way of counting."""

from __future__ import annotations

import random
import re

import pytest

from reward_models import LengthRule, LexicalRule, ReadabilityRule, RewardModel, load, rules
from reward_models.rules import reading_grade


TEXTS = [
    "",
    " ",
    "one",
    "a b  c\n d",
    "naïve café",
    "naïve café",
    "你好 世界",
    "👩‍👩‍👧 family",
    "end.\u2003em space",
    "U.S. grew 1.5%.",
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # a, b, c, d: four words; 9 characters with the spaces and the line break
        ({}, -4.0),
        ({"target": "longer"}, 4.0),
        ({"target": 4}, 0.0),
        ({"target": 1}, -3.0),
        ({"target": 10, "scale": 4}, -1.5),
        ({"unit": "characters"}, -9.0),
        ({"unit": "characters", "target": "longer", "scale": 2}, 4.5),
        ({"unit": "characters", "target": 10.5}, -1.5),
    ],
)
def test_lengths_by_hand(options, expected):
    assert load("rule:length", options=options).score(["p"], ["a b  c\n d"]) == [expected]


def test_words_are_separated_by_whitespace_of_any_kind():
    # An independent way to count: runs of characters that are no whitespace.
    expected = [float(len(re.findall(r"\S+", text))) for text in TEXTS]
    assert LengthRule(target="longer").score([""] * len(TEXTS), TEXTS) == expected
    assert expected[7] == 2.0 and expected[8] == 3.0
    assert LengthRule("characters", "longer").score([""] * 2, ["ab ", "你好"]) == [3.0, 2.0]


@pytest.mark.parametrize(
    ("options", "completion", "expected"),
    [
        ({"pattern": r"\d+"}, "42", 1.0),
        ({"pattern": r"\d+"}, "42 ", 0.0),
        # re.match with $ would let a line break through.
        ({"pattern": r"\d+"}, "42\n", 0.0),
        ({"pattern": r"\d+", "match": "anywhere"}, "is 42.", 1.0),
        ({"pattern": r"\d+", "match": "anywhere", "absent": True}, "is 42.", 0.0),
        ({"pattern": r"\d+", "absent": True}, "is 42.", 1.0),
        ({"pattern": r"- .*"}, "- a\n- b", 0.0),
        ({"pattern": r"(?s)- .*"}, "- a\n- b", 1.0),
        ({"pattern": r"(?i)yes|no"}, "YES", 1.0),
        ({"pattern": r"(?i)yes|no"}, "nobody", 0.0),
        ({"pattern": ""}, "", 1.0),
        ({"pattern": r"\w+"}, "éß你", 1.0),
    ],
)
def test_formats(options, completion, expected):
    assert load("rule:format", options=options).score(["p"], [completion]) == [expected]


@pytest.mark.parametrize(
    ("measure", "expected"),
    # Completion: the 3, dog 1, sat 1. Prompt: the 2, cat 1, sat 1, mat 1. Shared: the 2, sat 1.
    [("precision", 3 / 5), ("recall", 3 / 5), ("f1", 6 / 10)],
)
def test_overlap_with_the_prompt_by_hand(measure, expected):
    prompt, completion = "The cat sat; the mat.", "the THE the dog, sat!"
    assert load("rule:lexical", options={"measure": measure}).score([prompt], [completion]) == [expected]
    absent = load("rule:lexical", options={"measure": measure, "absent": True})
    assert absent.score([prompt], [completion]) == [1 - expected]


def test_a_list_of_words_takes_the_place_of_the_prompt():
    polite = load("rule:lexical", options={"words": ["please", "Thanks", "sorry", "please"]})
    # Three words are listed, one of them twice.
    assert polite.score(["sorry"] * 3, ["Please, please!", "THANKS and sorry, please", "no"]) == [1 / 3, 1.0, 0.0]
    precise = load("rule:lexical", options={"words": ["please"], "measure": "precision"})
    assert precise.score(["p"], ["please please go on"]) == [1 / 4]


def test_overlap_by_a_second_way_of_counting():
    """Cross words out one by one, with plain ASCII words."""
    generator = random.Random(0)
    for _ in range(200):
        prompt, completion = ([generator.choice("abcde") for _ in range(generator.randrange(8))] for _ in range(2))
        rest, shared = list(prompt), 0
        for word in completion:
            if word in rest:
                rest.remove(word)
                shared += 1
        precision = shared / len(completion) if completion else 0.0
        recall = shared / len(prompt) if prompt else 0.0
        f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
        for measure, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            (score,) = LexicalRule(measure).score([" ".join(prompt)], [" ".join(completion)])
            assert score == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("café", ["café"]),
        # e and a combining accent
        ("cafe\u0301", ["café"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        # vowel signs are marks, and belong to their word
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("snake_case don't 1.5%", ["snake", "case", "don", "t", "1", "5"]),
        ("…—!", []),
    ],
)
def test_words_of_any_script(text, expected):
    assert rules.folded_words(text) == expected


@pytest.mark.parametrize("source", ["rule:length", "rule:format", "rule:lexical"])
def test_rules_are_reward_models(source):
    options = {"pattern": "a"} if source == "rule:format" else {}
    model = load(source, options=options)
    assert isinstance(model, RewardModel) and model.name == source.removeprefix("rule:")
    assert load(source, name="mine", options=options).name == "mine"
    scores = model.score(TEXTS[::-1], TEXTS)
    assert all(type(score) is float for score in scores)
    assert model.score(TEXTS[::-1], TEXTS) == scores
    # A score depends on its pair alone.
    pairs = zip(TEXTS[::-1], TEXTS, strict=True)
    assert [model.score([prompt], [completion])[0] for prompt, completion in pairs] == scores
    assert model.score([], []) == []
    with pytest.raises(ValueError, match="got 1 prompts and 2 completions"):
        model.score(["a"], ["b", "c"])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("rule:lenght", {}, "'rule:lenght' is no rule; did you mean 'rule:length'? known: rule:length, rule:format"),
        ("rule:", {}, "'rule:' is no rule; .*known: rule:length, rule:format, rule:lexical"),
        ("rule:length", {"units": "words"}, "has no option 'units'; did you mean 'unit'? known: unit, target, scale"),
        ("rule:length", {"name": "x"}, "has no option 'name'"),
        ("rule:length", {"unit": "tokens"}, "option unit of rule:length is 'tokens'; expected words or characters"),
        ("rule:length", {"target": "20"}, "option target of rule:length is '20'; expected shorter, longer, or a le"),
        ("rule:length", {"target": -1}, "is -1; expected shorter, longer"),
        ("rule:length", {"target": True}, "is True; expected shorter, longer"),
        ("rule:length", {"target": float("nan")}, "is nan; expected shorter, longer"),
        ("rule:length", {"scale": 0}, "option scale of rule:length is 0; expected a positive number"),
        ("rule:readability", {"scale": -2}, "option scale of rule:readability is -2; expected a positive number"),
        ("rule:readability", {"target": 14}, "option target of rule:readability is 14; expected a grade from 1"),
        ("rule:readability", {"grade": 6}, "rule:readability has no option 'grade'"),
        ("rule:format", {}, "rule:format needs the option pattern"),
        ("rule:format", {"pattern": "("}, "'(', which is no regular expression"),
        ("rule:format", {"pattern": 3}, "is 3; expected a regular expression"),
        ("rule:format", {"pattern": "a", "match": "start"}, "is 'start'; expected whole or anywhere"),
        ("rule:format", {"pattern": "a", "absent": "no"}, "is 'no'; expected true or false"),
        ("rule:lexical", {"measure": "rouge"}, "is 'rouge'; expected precision, recall or f1"),
        ("rule:lexical", {"words": "please"}, "is 'please'; expected a list of single words"),
        ("rule:lexical", {"words": []}, "is []; expected a list of single words"),
        ("rule:lexical", {"words": ["thank you"]}, "expected a list of single words without punctuation"),
        ("rule:lexical", {"words": ["!"]}, "expected a list of single words without punctuation"),
        ("rule:lexical", {"absent": 1}, "is 1; expected true or false"),
        ("rule:length", ["words"], "the options of the reward model 'rule:length' are ['words']; expected names"),
    ],
)
def test_wrong_rules_and_options(source, options, message):
    with pytest.raises(ValueError) as caught:
        load(source, options=options)
    assert re.search(message if ".*" in message else re.escape(message), str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        # characters, words, sentences by hand: 4.71 c / w + 0.5 w / s - 21.43
        ("Wrap a single paragraph of text, returning a list of wrapped lines.", 4.71 * 54 / 12 + 6 - 21.43),
        ("Returns items. Raises errors", 4.71 * 24 / 4 + 1 - 21.43),  # two sentences, the second without an end
        (
            "Iterators wait... - then continue!",
            4.71 * 25 / 4 + 1 - 21.43,
        ),  # a dash is no word, dots after a word are one end
        ("a b c", 1),  # below 1
        ("Internationalisation configurations", 14),  # above 14
        ("", 14),
        ("?! -", 14),
    ],
)
def test_the_reading_grade_is_the_automated_readability_index(text, grade):
    expected = min(max(grade, 1), 14)
    assert reading_grade(text) == pytest.approx(expected, abs=1e-12)
    for target, scale in ((1, 1), (5.5, 2)):
        (score,) = ReadabilityRule(target=target, scale=scale).score(["p"], [text])
        assert score == pytest.approx(-max(expected - target, 0) / scale, abs=1e-12)
