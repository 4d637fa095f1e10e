"""What a front says of LiNeS, in a sentence or two."""

from __future__ import annotations

from rlhf_lines.pareto.comparison import RunsComparison
from rlhf_lines.pareto.comparisons import MEASURES, OPPONENTS, Verdict, conclusions, verdict
from rlhf_lines.pareto.fixed_points import without_spread
from rlhf_lines.pareto.schema import LINES, SCALED, SOUP, Comparison, Front, label


SAYINGS = {
    "better": "LiNeS is better than {}",
    "worse": "LiNeS is worse than {}",
    "higher": "LiNeS is higher than {}",
    "lower": "LiNeS is lower than {}",
    "mixed": "LiNeS against {} is mixed",
    "undecided": "LiNeS and {} cannot be told apart",
}

NARROW = 0.1

# What the comparison with one factor for all layers, which is tuned alike, says of scaling by depth.
DEPTH = {
    "better": "So depth helps here, and not length alone.",
    "worse": "So depth does not help here: one factor for all layers gives more.",
    "higher": "So depth may help here, or longer steps.",
    "lower": "So depth does not help here, unless at equal KL.",
    "mixed": "So depth helps by some of these measures and not by others.",
    "undecided": "So depth is not seen to matter here.",
}


def front_headline(front: Front) -> str:
    """What the comparisons of LiNeS with the soup and the controls say, and which other group has the largest measures.

    Effects are shares of the other group's value, or differences where that is not above 0. It speaks of these
    policies, because other ones, as of another seed, may say something else. Empty where there is nothing to say. Of
    objectives without spread it says that alone.
    """
    if flat := without_spread(front):
        return flat
    entries = {entry["b"]: entry for entry in front["comparisons"] if entry["a"] == LINES}
    told = [entries[group] for group in OPPONENTS if group in entries]
    reasons = {entry["no_equal_kl"] for entry in told}
    is_one = len(told) > 1 and len(reasons) == 1  # which is then said once
    found = []
    for entry in told:
        words = "the rewarded soup" if entry["b"] == SOUP else label(entry["b"])
        missing = "" if is_one or not without_equal_kl(entry) else f"; {without_equal_kl(entry)}"
        found.append(f"{SAYINGS[entry['verdict']].format(words)}: {_effects(front, entry)}{missing}.")
        found.append(of_depth(front, entry))
    if is_one and without_equal_kl(told[0]):
        found.append(f"All this is {without_equal_kl(told[0])}.")
    start = "For these policies, " if found else ""
    return start + " ".join(filter(None, [*found, best_of_others(front)]))


def of_depth(front: Front, entry: Comparison) -> str:
    """What the comparison of LiNeS with one factor for all layers says of depth; empty of other comparisons.

    Where measures are mixed but none is for depth, it does not help.
    """
    if (entry["a"], entry["b"]) != (LINES, SCALED):
        return ""
    signs = conclusions(entry, front["confidence"])
    if set(signs.values()) == {-1, 0}:
        return DEPTH["worse" if len(signs) == len(MEASURES) else "lower"]
    return DEPTH[verdict(signs)]


def best_of_others(front: Front) -> str:
    """Which groups of `largest_others` have which measures, and what the comparison of LiNeS with each of them says."""
    parts = []
    for name, values in largest_others(front).items():
        found = verdict_of_lines(front, name)
        joint = ", but " if found == "undecided" else ": "
        told = joint + SAYINGS[found].format(label(name)) if found else ""
        parts.append(f"{label(name)} has the largest {' and '.join(values)}{told}")
    return f"Of all groups, {'; '.join(parts)}." if parts else ""


def largest_others(front: Front) -> dict[str, list[str]]:
    """By group, its measures that are the largest of all groups', with values.

    Neither LiNeS nor what LiNeS is held against is among these groups. The largest of many is so by luck, too: only
    `verdict_of_lines` says whether such a group is better.
    """
    largest: dict[str, list[str]] = {}
    for measure in ("hypervolume", "expected_utility"):
        of_groups = {name: entry[measure]["corrected"] for name, entry in front["fronts"].items()}
        name = max(of_groups, key=of_groups.__getitem__, default=LINES)
        if name not in (LINES, *OPPONENTS):
            largest.setdefault(name, []).append(f"{MEASURES[measure]} ({of_groups[name]:z.4g})")
    return largest


def verdict_of_lines(front: Front, group: str) -> Verdict | None:
    """What the comparison of LiNeS with another group says; None where there is none."""
    entries = (entry["verdict"] for entry in front["comparisons"] if (entry["a"], entry["b"]) == (LINES, group))
    return next(entries, None)


def effect(value: float, base: float, words: str) -> str:
    """A difference as a share of what it is a difference to.

    >>> effect(1.7, 10.0, "hypervolume"), effect(-0.01, 2.0, "utility"), effect(0.5, -1.0, "utility")
    ('+17 % hypervolume', '-0.5 % utility', '+0.5 utility')
    """
    if base <= 0.0:
        return f"{value:+z.3g} {words}"
    share = 100.0 * value / base
    return f"{share:+z.{0 if abs(share) >= 9.95 else 1}f} % {words}"


def without_equal_kl(entry: Comparison | RunsComparison) -> str:
    """That and why two groups are not compared at equal KL; empty where they are."""
    return f"not compared at equal KL ({entry['no_equal_kl']})" if entry["no_equal_kl"] else ""


def measure_name(front: Front, entry: Comparison, measure: str) -> str:
    """A measure in words; that at equal KL with its budgets, and whether these are a narrow range."""
    if measure != "equal_kl" or entry["kl_budgets"] is None:
        return MEASURES[measure]
    narrow = ", a narrow range" if has_narrow_budgets(front, entry) else ""
    return f"{MEASURES[measure]} from {_range_text(entry)} nats{narrow}"


def has_narrow_budgets(front: Front, entry: Comparison) -> bool:
    """Whether two groups are compared at equal KL over less than `NARROW` of the range that their points span together.

    A share of a hypervolume over so little says next to nothing of the rest.
    """
    if entry["kl_budgets"] is None:
        return False
    spent = [max(0.0, p["kl"]["mean"]) for p in front["points"] if p["group"] in (entry["a"], entry["b"])]
    least, most = entry["kl_budgets"]
    return most - least < NARROW * (max(spent) - min(spent))


def budgets_text(front: Front, entry: Comparison, nothing: str = "-") -> str:
    """From which KL to which two groups are compared, in nats, and whether that is a narrow range.

    `nothing` where they are not compared.
    """
    if entry["kl_budgets"] is None:
        return nothing
    return f"{_range_text(entry)}, narrow" if has_narrow_budgets(front, entry) else _range_text(entry)


def _range_text(entry: Comparison) -> str:
    """The budgets of a comparison that has some.

    >>> _range_text({"kl_budgets": [0.5, 3.25]})
    '0.50 to 3.25'
    """
    return " to ".join(f"{kl:z.2f}" for kl in entry["kl_budgets"])


def bases(front: Front, entry: Comparison) -> dict[str, float]:
    """By measure, the value of the second group of a comparison, to which a difference is a share."""
    of_group = {name: measure["corrected"] for name, measure in front["fronts"][entry["b"]].items() if name in MEASURES}
    at_equal = entry["equal_kl_hypervolumes"]
    return of_group if at_equal is None else {**of_group, "equal_kl": at_equal[1]}


def _effects(front: Front, entry: Comparison) -> str:
    """The effect of every measure, and which of them noise may explain where others decide."""
    texts, of = [], bases(front, entry)
    for measure, sign in conclusions(entry, front["confidence"]).items():
        text = effect(entry[f"{measure}_difference"]["corrected"], of[measure], measure_name(front, entry, measure))
        texts.append(text if sign or entry["verdict"] == "undecided" else f"{text} (within noise)")
    return ", ".join(texts)
