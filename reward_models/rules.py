"""Reward models that need no weights: a completion's length, format and words, and how easily it reads.

Texts are read as they are: nothing is stripped, cut or rounded before a rule looks at them. The same pair always gets
the same score. Higher is better.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from reward_models.base import RewardModel, check_lengths, checked_scores, did_you_mean, is_number


PREFIX = "rule:"
GRADES = (1.0, 14.0)  # of the automated readability index


@dataclass(frozen=True)
class LengthRule:
    """Score how long a completion is.

        target = "shorter":   -length / scale
        target = "longer":     length / scale
        target = n:           -|length - n| / scale

    >>> LengthRule(target=3, scale=2).score(["p", "p"], ["a b c", "a b c d"])
    [0.0, -0.5]

    Attributes:
        unit: "words", which are what whitespace separates, or "characters", which are Unicode code points. Languages
            that are written without spaces need "characters".
        target: the length that is wanted, or whether less or more is better.
        scale: how many units are worth 1.
        name: what the score is called.
    """

    unit: str = "words"
    target: float | str = "shorter"
    scale: float = 1.0
    _: KW_ONLY
    name: str = "length"

    def __post_init__(self) -> None:
        _require(self.unit in ("words", "characters"), "rule:length", "unit", self.unit, "words or characters")
        _require(
            self.target in ("shorter", "longer") or (is_number(self.target) and self.target >= 0),
            "rule:length", "target", self.target, "shorter, longer, or a length of at least 0",
        )  # fmt: skip
        _require(is_number(self.scale) and self.scale > 0, "rule:length", "scale", self.scale, "a positive number")

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One score per pair; the prompts are not read."""
        check_lengths(self.name, prompts, completions)
        return checked_scores(self.name, [self._one(text) for text in completions], prompts)

    def _one(self, text: str) -> float:
        length = len(text.split()) if self.unit == "words" else len(text)
        if self.target == "longer":
            return length / self.scale
        wanted = 0 if self.target == "shorter" else self.target
        return 0.0 - abs(length - wanted) / self.scale


@dataclass(frozen=True)
class FormatRule:
    r"""Score 1 where a completion has a format and 0 where it has not.

    >>> FormatRule(r"(?s)<think>.*</think>.+").score(["p", "p"], ["<think>a</think> b", "b"])
    [1.0, 0.0]

    Attributes:
        pattern: a regular expression of Python's `re`. Its flags are written inside, such as `(?s)`, with which a dot
            stands for a line break, too.
        match: "whole", the pattern describes the completion from its first to its last character, or "anywhere".
        absent: score 1 where the pattern does not match.
        name: what the score is called.
    """

    pattern: str
    match: str = "whole"
    absent: bool = False
    _: KW_ONLY
    name: str = "format"

    def __post_init__(self) -> None:
        _require(isinstance(self.pattern, str), "rule:format", "pattern", self.pattern, "a regular expression")
        _require(self.match in ("whole", "anywhere"), "rule:format", "match", self.match, "whole or anywhere")
        _require(isinstance(self.absent, bool), "rule:format", "absent", self.absent, "true or false")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"the option pattern of rule:format is {self.pattern!r}, which is no regular expression ({error}); "
                "in YAML, write it between single quotes"
            ) from None

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One score per pair; the prompts are not read."""
        check_lengths(self.name, prompts, completions)
        matches = re.compile(self.pattern).fullmatch if self.match == "whole" else re.compile(self.pattern).search
        return [float((matches(text) is None) == self.absent) for text in completions]


@dataclass(frozen=True)
class LexicalRule:
    """Score which words a completion shares with its prompt, or with a list of words (ROUGE-1).

        shared    = sum over words of min(count in the completion, count in the reference)
        precision = shared / words of the completion       how much of the completion comes from the reference
        recall    = shared / words of the reference        how much of the reference the completion mentions
        f1        = 2 shared / (words of the completion + words of the reference)

    A share of no words is 0. With `absent` the score is 1 minus that. A word is a run of letters, marks and digits of
    any script, compared without case and in Unicode's NFKC form; there is no stemming.

    >>> LexicalRule(measure="precision").score(["the cat sat"], ["The cat slept."])
    [0.6666666666666666]
    >>> LexicalRule(words=("please", "thanks")).score(["p"], ["Thanks!"])
    [0.5]

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries (aclanthology.org/W04-1013), ROUGE-N, N=1.

    Attributes:
        measure: "precision", "recall" or "f1".
        words: the reference, each word once; None is the prompt of each pair.
        absent: score the words that are missing.
        name: what the score is called.
    """

    measure: str = "recall"
    words: Sequence[str] | None = None
    absent: bool = False
    _: KW_ONLY
    name: str = "lexical"

    def __post_init__(self) -> None:
        measures = ("precision", "recall", "f1")
        _require(self.measure in measures, "rule:lexical", "measure", self.measure, "precision, recall or f1")
        _require(isinstance(self.absent, bool), "rule:lexical", "absent", self.absent, "true or false")
        if self.words is not None:
            is_list = isinstance(self.words, Sequence) and not isinstance(self.words, str) and len(self.words) > 0
            _require(
                is_list and all(isinstance(word, str) and len(folded_words(word)) == 1 for word in self.words),
                "rule:lexical", "words", self.words, "a list of single words without punctuation",
            )  # fmt: skip

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One score between 0 and 1 per pair."""
        check_lengths(self.name, prompts, completions)
        listed = None if self.words is None else Counter({word for text in self.words for word in folded_words(text)})
        shares = [
            self._share(Counter(folded_words(completion)), Counter(folded_words(prompt)) if listed is None else listed)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [1.0 - share if self.absent else share for share in shares]

    def _share(self, completion: Counter, reference: Counter) -> float:
        shared = (completion & reference).total()
        precision, recall = (shared, completion.total()), (shared, reference.total())
        f1 = (2 * shared, completion.total() + reference.total())
        part, whole = {"precision": precision, "recall": recall, "f1": f1}[self.measure]
        return part / whole if whole else 0.0


@dataclass(frozen=True)
class ReadabilityRule:
    """Score how easily a completion reads: short words in short sentences.

        grade = 4.71 characters / words + 0.5 words / sentences - 21.43    the automated readability index, in 1 to 14
        score = -max(grade - target, 0) / scale

    The index estimates how many years of school a text asks for. It is held in 1 to 14, the range of its own table, and
    a text without words has grade 14, so that saying nothing is no way to be easy. Easier than `target` scores no more.

    A word is what whitespace separates and has a letter or a digit; characters are its letters and digits. A sentence
    ends with ".", "!" or "?" before whitespace or the end; what follows the last end is one more, if it has words.

    >>> ReadabilityRule(target=4).score(["p"], ["The cat sat on the mat."])  # 17 characters, 6 words: grade 1
    [0.0]
    >>> ReadabilityRule(target=1, scale=13).score(["p"], [""])
    [-1.0]

    Source: Senter and Smith 1967, Automated Readability Index, AMRL-TR-66-220.

    Attributes:
        target: the grade from which on easier is no better.
        scale: how many grades are worth 1.
        name: what the score is called.
    """

    target: float = 1.0
    scale: float = 1.0
    _: KW_ONLY
    name: str = "readability"

    def __post_init__(self) -> None:
        low, high = GRADES
        _require(
            is_number(self.target) and low <= self.target < high,
            "rule:readability", "target", self.target, f"a grade from {low} to below {high}",
        )  # fmt: skip
        _require(is_number(self.scale) and self.scale > 0, "rule:readability", "scale", self.scale, "a positive number")

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One score per pair; the prompts are not read."""
        check_lengths(self.name, prompts, completions)
        return [0.0 - max(reading_grade(text) - self.target, 0.0) / self.scale for text in completions]


def reading_grade(text: str) -> float:
    """The automated readability index of a text, in 1 to 14; see `ReadabilityRule`."""
    low, high = GRADES
    words = sentences = characters = in_sentence = 0
    for piece in text.split():
        letters = sum(unicodedata.category(c)[0] in "LN" for c in piece)
        if letters:
            words, characters, in_sentence = words + 1, characters + letters, in_sentence + 1
        if in_sentence and piece[-1] in ".!?":
            sentences, in_sentence = sentences + 1, 0
    if not words:
        return high
    sentences += in_sentence > 0
    return min(max(4.71 * characters / words + 0.5 * words / sentences - 21.43, low), high)


RULES: dict[str, type] = {
    "length": LengthRule,
    "format": FormatRule,
    "lexical": LexicalRule,
    "readability": ReadabilityRule,
}


def make_rule(source: str, options: Mapping[str, Any], *, name: str | None = None) -> RewardModel:
    """The rule that `source` names.

    Args:
        source: `rule:` and a key of `RULES`.
        options: the rule's attributes, as a config file states them.
        name: what the score is called; None is the rule's own name.

    Raises:
        ValueError: there is no such rule or option, a value is wrong, or a required option is missing.
    """
    rule = RULES.get(source.removeprefix(PREFIX))
    if rule is None:
        known = [PREFIX + key for key in RULES]
        raise ValueError(f"the reward model {source!r} is no rule; {_suggestion(source, known)}")
    known = [field.name for field in fields(rule) if field.name != "name"]
    for option in options:
        if option not in known:
            raise ValueError(f"{source} has no option {option!r}; {_suggestion(str(option), known)}")
    if rule is FormatRule and "pattern" not in options:
        raise ValueError(f"{source} needs the option pattern, a regular expression; known options: {', '.join(known)}")
    return rule(**options, **({} if name is None else {"name": name}))


def folded_words(text: str) -> list[str]:
    """The words of a text, folded: runs of letters, marks and digits.

    >>> folded_words("Don't STOP, Élan!")
    ['don', 't', 'stop', 'élan']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()


def _require(holds: bool, rule: str, option: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"the option {option} of {rule} is {value!r}; expected {expected}")


def _suggestion(name: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(name, known)}known: {', '.join(known)}"
