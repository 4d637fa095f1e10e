"""What a front says of LiNeS, in a sentence or two."""

from __future__ import annotations

from rlhf_lines.pareto.comparisons import MEASURES, conclusions
from rlhf_lines.pareto.schema import LINES, SCALED, SOUP, Comparison, Front


OPPONENTS = {SOUP: "the rewarded soup", SCALED: "even scaling"}
SAYINGS = {
    "better": "LiNeS is better than {}",
    "worse": "LiNeS is worse than {}",
    "mixed": "LiNeS against {} is mixed",
    "undecided": "LiNeS and {} cannot be told apart",
}


def front_headline(front: Front) -> str:
    """What the comparisons of LiNeS with the rewarded soup and with scaling alone say, by all measures.

    Effects are shares of the other group's value, or differences where that is not above 0. It speaks of these
    policies, because other ones, as of another seed, may say something else. Empty where neither comparison is there.
    """
    entries = {entry["b"]: entry for entry in front["comparisons"] if entry["a"] == LINES}
    found = [
        f"{SAYINGS[entry['verdict']].format(words)}: {_effects(front, entry)}."
        for group, words in OPPONENTS.items()
        if (entry := entries.get(group)) is not None
    ]
    return f"For these policies, {' '.join(found)}" if found else ""


def effect(value: float, base: float, words: str) -> str:
    """A difference as a share of what it is a difference to.

    >>> effect(1.7, 10.0, "hypervolume"), effect(-0.01, 2.0, "utility"), effect(0.5, -1.0, "utility")
    ('+17 % hypervolume', '-0.5 % utility', '+0.5 utility')
    """
    if base <= 0.0:
        return f"{value:+z.3g} {words}"
    share = 100.0 * value / base
    return f"{share:+z.{0 if abs(share) >= 9.95 else 1}f} % {words}"


def bases(front: Front, entry: Comparison) -> dict[str, float]:
    """By measure, the value of the second group of a comparison, to which a difference is a share."""
    of_group = {name: measure["corrected"] for name, measure in front["fronts"][entry["b"]].items() if name in MEASURES}
    at_equal = entry["equal_kl_hypervolumes"]
    return of_group if at_equal is None else {**of_group, "equal_kl": at_equal[1]}


def _effects(front: Front, entry: Comparison) -> str:
    """The effect of every measure, and which of them noise may explain where others decide."""
    texts, of = [], bases(front, entry)
    for measure, sign in conclusions(entry, front["confidence"]).items():
        text = effect(entry[f"{measure}_difference"]["corrected"], of[measure], MEASURES[measure])
        texts.append(text if sign or entry["verdict"] == "undecided" else f"{text} (within noise)")
    return ", ".join(texts)
