"""Differences between groups, adjusted for how many there are, and what they say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from rlhf_lines.pareto.bootstrap import probability_positive
from rlhf_lines.pareto.comparison import RunsComparison
from rlhf_lines.pareto.corrected import Corrected
from rlhf_lines.pareto.intervals import holm
from rlhf_lines.pareto.schema import LINES, REVERSED, SCALED, SOUP, Comparison, Difference, GroupMeasure


# By their names in `front.json`, where a comparison has NAME_difference; the words are for people.
MEASURES = {
    "hypervolume": "hypervolume",
    "expected_utility": "expected utility",
    "equal_kl": "hypervolume at equal KL",
}
OPPONENTS = (SOUP, SCALED, REVERSED)  # what LiNeS is held against, in the order in which it is told
Verdict = Literal["better", "worse", "higher", "lower", "mixed", "undecided"]


def ordered(groups: Iterable[str]) -> list[str]:
    """Groups as they are compared: `lines`, `rewarded_soup`, then the others by name."""
    first = {LINES: 0, SOUP: 1}
    return sorted(groups, key=lambda group: (first.get(group, 2), group))


def pairs(groups: Iterable[str]) -> list[tuple[str, str]]:
    """All pairs of groups: `lines` with `rewarded_soup`, then `lines` with the others by name, then the rest.

    >>> pairs(["rewarded_soup", "ties", "lines"])
    [('lines', 'rewarded_soup'), ('lines', 'ties'), ('rewarded_soup', 'ties')]
    """
    return list(combinations(ordered(groups), 2))


def group_measure(measure: Corrected, confidence: float) -> GroupMeasure:
    """A measure of a group as `front.json` has it."""
    found = measure.estimate(confidence)
    return {"value": measure.value, "corrected": measure.corrected, "low": found.low, "high": found.high}


def difference(a: Corrected, b: Corrected, confidence: float) -> Difference:
    """A measure of one group minus that of another, under the same resamples; not adjusted yet."""
    found = a - b
    p_value = found.estimate(confidence).p_value
    around = found.resampled - found.resampled.mean() + found.corrected
    return {
        **group_measure(found, confidence),
        "probability_positive": probability_positive(around),
        "p_value": p_value,
        "adjusted_p_value": p_value,
    }


def conclude(comparisons: Sequence[Comparison | RunsComparison], confidence: float) -> None:
    """Adjust the p-values of every measure over the comparisons of a family, in place, and set each verdict."""
    for family in families(comparisons):
        for measure in MEASURES:
            found = [each for entry in family if (each := entry[f"{measure}_difference"]) is not None]
            for each, adjusted in zip(found, holm([each["p_value"] for each in found]), strict=True):
                each["adjusted_p_value"] = adjusted
    for entry in comparisons:
        entry["verdict"] = verdict(conclusions(entry, confidence))


def families(comparisons: Sequence[Comparison | RunsComparison]) -> list[list[Comparison | RunsComparison]]:
    """The comparisons whose p-values are adjusted together: first those of LiNeS with `OPPONENTS`, then all others.

    Between two sides of runs, where each group is compared with itself, the first are those of LiNeS and `OPPONENTS`.
    So a group that somebody adds changes neither what is said of LiNeS nor the headline.
    """
    ours: dict[bool, list[Comparison | RunsComparison]] = {True: [], False: []}
    for entry in comparisons:
        a, b = entry["a"], entry["b"]
        ours[(a == LINES and b in OPPONENTS) or (a == b and b in (LINES, *OPPONENTS))].append(entry)
    return [family for family in ours.values() if family]


def adjusted_for(comparisons: Sequence[Comparison | RunsComparison]) -> str:
    """For how many comparisons by each measure, one or more, p-values are adjusted, in words."""
    first, *others = families(comparisons)
    text = f"{len(first)} comparison{'s' if len(first) > 1 else ''}"
    if not others:
        return text
    what = "LiNeS, soup and controls" if first[0]["a"] == first[0]["b"] else "LiNeS with the soup and its controls"
    return f"{text} of {what}, and separately for the {len(others[0])} other{'s' if len(others[0]) > 1 else ''}"


def conclusions(comparison: Comparison | RunsComparison, confidence: float) -> dict[str, int]:
    """By measure, 1 where a is above b, -1 where it is below and 0 where they cannot be told apart.

    The adjusted p-value decides, against `1 - confidence`. A measure that a run does not have is left out, and
    `verdict` calls nothing better or worse then.
    """
    found = {measure: comparison[f"{measure}_difference"] for measure in MEASURES}
    return {measure: _conclusion(each, confidence) for measure, each in found.items() if each is not None}


def verdict(conclusions: Mapping[str, int]) -> Verdict:
    """What the measures say together: `mixed` where they do not say the same.

    `better` and `worse` need all of `MEASURES`. A higher front may be just a longer step from the SFT model, so that
    without the comparison at equal KL a group is `higher` or `lower` than another and no more.

    >>> verdict({"hypervolume": 1, "expected_utility": 1, "equal_kl": 1})
    'better'
    >>> verdict({"hypervolume": 1, "expected_utility": 1}), verdict({"hypervolume": 1, "expected_utility": 0})
    ('higher', 'mixed')
    """
    found = set(conclusions.values())
    if len(found) > 1:
        return "mixed"
    whole = all(measure in conclusions for measure in MEASURES)
    return {1: "better" if whole else "higher", -1: "worse" if whole else "lower", 0: "undecided"}[found.pop()]


def _conclusion(difference: Mapping[str, float], confidence: float) -> int:
    p_value = difference["adjusted_p_value"]
    return int(np.sign(difference["corrected"])) if p_value is not None and p_value < 1.0 - confidence else 0
