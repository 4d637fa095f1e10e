"""What a front says, in plain sentences and a few numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rlhf_lines.errors import counted
from rlhf_lines.pareto.comparisons import MEASURES, OPPONENTS, adjusted_for, conclusions
from rlhf_lines.pareto.fixed_points import without_spread
from rlhf_lines.pareto.forgetting import damage_undone, sft_point
from rlhf_lines.pareto.headline import (
    bases,
    best_of_others,
    largest_others,
    measure_name,
    of_depth,
    verdict_of_lines,
    without_equal_kl,
)
from rlhf_lines.pareto.origin import anchors
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.words import NOTHING, percent, setting, signed
from rlhf_lines.pareto.schema import LINES, Comparison, Front, label, looks
from rlhf_lines.pareto.table import decimals, few_prompts, p_text, value_of


TITLES = {
    "better": "{} is better than {}",
    "worse": "{} is worse than {}",
    "higher": "{} is higher than {}",
    "lower": "{} is lower than {}",
    "mixed": "{} against {}: mixed",
    "undecided": "{} and {} cannot be told apart",
}
# By the verdict of LiNeS against another group that has the largest measures; no other verdict says that it is above.
OTHERS = {"worse": "Another group is better than LiNeS", "lower": "Another group is higher than LiNeS"}
UNCLEAR = ("higher", "lower", "undecided")  # verdicts that do not say which group is better
WORDS = {1: ("better", "↑"), -1: ("worse", "↓"), 0: ("unclear", "≈")}  # no sign is that of a group


@dataclass(frozen=True)
class Effect:
    """By how much a group differs from another by one measure; `verdict` and `sign` say whether beyond noise."""

    measure: str
    effect: str
    interval: str
    p_value: str
    verdict: str
    sign: str


@dataclass(frozen=True)
class Card:
    """A statement with what it rests on."""

    title: str
    verdict: str
    text: str
    effects: Sequence[Effect] = ()


def verdicts(front: Front) -> list[Card]:
    """What the comparisons of LiNeS say, or the first two where it is not among the groups.

    Of objectives without spread they say nothing, and it is told why.
    """
    if flat := without_spread(front):
        return [Card("Hypervolumes tell nothing here", "unclear", flat)]
    of_lines = [entry for entry in front["comparisons"] if entry["a"] == LINES]
    entries = [entry for entry in of_lines if entry["b"] in OPPONENTS] or of_lines[:2] or front["comparisons"][:2]
    entries.sort(key=lambda entry: OPPONENTS.index(entry["b"]) if entry["b"] in OPPONENTS else 0)
    return [_verdict(front, entry) for entry in entries]


def facts(front: Front) -> list[Card]:
    """What else the front says: what other groups reach, which scalings were chosen, and what was forgotten."""
    return [*_largest(front), *_chosen(front), *_forgetting(front)]


def swept(front: Front) -> str:
    """One sentence on what was measured."""
    points = front["points"]
    groups = looks(point["group"] for point in points)
    counts = [f"{label(group)} ({counted(sum(p['group'] == group for p in points), 'point')})" for group in groups]
    prompts, samples = points[0]["prompts"], points[0]["samples_per_prompt"]
    few = few_prompts(front)
    return (
        f"{counted(len(points), 'policy', 'policies')}: {_list(counts)}; each measured on "
        f"{counted(prompts, front['split'] + ' prompt')} with {counted(samples, 'completion')} per prompt, "
        f"scored by {_list(front['objectives'])}. Higher scores are better."
        f"{f' {few}.' if few else ''}"
    )


def ideal(front: Front) -> str:
    """What a utility of 1 is, as `fixed_points` says; with fewer than two anchors no point is above it."""
    found = set(anchors((point["spec"], point["group"]) for point in front["points"]))
    enough = len(found - {None}) > 1
    return (
        f"the best {'single policy' if enough else 'point'}'s score in each objective" + "; more is possible" * enough
    )


def adjusted(front: Front) -> str:
    """For how many comparisons p-values are adjusted."""
    return adjusted_for(front["comparisons"])


def effects(front: Front, entry: Comparison) -> Iterator[Effect]:
    """Yield every measure of a comparison, as a share of the second group's value where that is above 0."""
    of = bases(front, entry)
    for measure, conclusion in conclusions(entry, front["confidence"]).items():
        found = entry[f"{measure}_difference"]
        yield Effect(
            measure_name(front, entry, measure),
            *shares(found, of[measure]),
            p_text(found["adjusted_p_value"]),
            *WORDS[conclusion],
        )


def shares(difference: dict[str, float], base: float) -> tuple[str, str]:
    """A difference and its interval as shares of a base, in percent, or as they are where that is not above 0.

    >>> shares({"value": 1.7, "low": -0.4, "high": 2.5}, 10.0), shares({"value": 0.1, "low": 0.05, "high": 0.2}, -1.0)
    (('+17 %', '[−4, +25] %'), ('+0.100', '[+0.050, +0.200]'))
    """
    value, ends, unit = value_of(difference), [difference["low"], difference["high"]], ""
    if base > 0:
        value, unit = 100.0 * value / base, " %"
        ends = [None if end is None else 100.0 * end / base for end in ends]
        digits = 0 if abs(value) >= 9.95 else 1
    else:
        digits = decimals([value])
    interval = NOTHING if None in ends else f"[{', '.join(signed(end, digits) for end in ends)}]{unit}"
    return f"{signed(value, digits)}{unit}", interval


def _verdict(front: Front, entry: Comparison) -> Card:
    title = TITLES[entry["verdict"]].format(label(entry["a"]), label(entry["b"]))
    found = conclusions(entry, front["confidence"])
    text = of_depth(front, entry)
    if entry["verdict"] == "mixed":
        more, less, same = ([MEASURES[m] for m, sign in found.items() if sign == wanted] for wanted in (1, -1, 0))
        parts = [(more, "higher"), (less, "lower"), (same, "not different beyond noise")]
        text = f"{_sentence('; '.join(f'{_list(names)} {word}' for names, word in parts if names))} {text}"
    if missing := without_equal_kl(entry):
        text = f"{_sentence(missing)} {text}"
    is_clear = entry["verdict"] not in UNCLEAR
    return Card(title, entry["verdict"] if is_clear else "unclear", text.strip(), [*effects(front, entry)])


def _largest(front: Front) -> list[Card]:
    if without_spread(front):
        return []
    found = {verdict_of_lines(front, group) for group in largest_others(front)}
    title = next(
        (title for verdict, title in OTHERS.items() if verdict in found), "Another group has the largest measures"
    )
    return [Card(title, "", best_of_others(front))] if found else []


def _chosen(front: Front) -> list[Card]:
    tuned = Content(front).tuned
    if not tuned:
        return []
    validation = front["validation"]
    texts = []
    for each in tuned:
        chosen = each.tuning["chosen"]
        text = f"{label(each.group)}: alpha {setting(chosen['alpha'])}, beta {setting(chosen['beta'])}"
        text += f", schedule {chosen['schedule']}" if len(each.schedules) > 1 else ""
        texts.append(f"{text} (of {counted(len(each.tuning['grid']), 'setting')})")
    limits = [
        f"{name} at most {setting(validation[key])}"
        for key, name in (("max_kl", "KL"), ("max_forgetting", "forgetting"))
        if validation[key] is not None
    ]
    limits += [f"{name} at least {setting(least)}" for name, least in validation["minimum"].items()]
    text = (
        f"{'; '.join(texts)}. Chosen by hypervolume on {validation['prompts']} validation prompts at "
        f"{counted(validation['weights'], 'weight')}{f', with {_list(limits)}' if limits else ''}, and used for all "
        "test points of the group."
    )
    if tuned[0].tuning["chosen"]["beta"] == 0:
        text += " With beta 0 every layer has the same factor, so that LiNeS is plain scaling here."
    edge = [label(each.group) for each in tuned if each.tuning["at_edge"]]
    if edge:
        which = "All" if len(edge) == len(tuned) > 1 else _list(edge)
        lie = "lies" if len(edge) == 1 else "lie"
        text += f" {which} {lie} at an edge of what was tried, so that more of it may be better."
    return [Card("Scalings were chosen on other prompts", "unclear" if edge else "", text)]


def _forgetting(front: Front) -> list[Card]:
    """How much more perplexing texts outside the task have become, in words that need no other page."""
    sft = sft_point(front)
    if sft is None or sft["perplexity"] is None:
        return []
    base = sft["perplexity"]["mean"]
    about = front["forgetting"]
    texts = f"{about['texts']} texts outside the task" if about else "texts outside the task"
    start = f"Perplexity of {texts}, lower is better: the SFT model's is {base:.3g}"
    rows = damage_undone(front)
    if not rows:
        return [Card("What the policies forgot", "", f"{start}.")]
    by_id = {point["id"]: point["perplexity"]["mean"] for point in front["points"] if point["perplexity"]}
    soup, lines = (median(by_id[row[key]] for row in rows) for key in ("soup", "point"))
    if soup <= base and lines <= base:
        title = "Nothing was forgotten"
    elif round(soup, 4) == round(lines, 4):
        title = "LiNeS forgets as much as the rewarded soup"
    else:
        title = f"LiNeS forgets {'more' if lines > soup else 'less'} than the rewarded soup"
    text = (
        f"{start}. At the same weights the rewarded soup changes it by {signed(100 * (soup / base - 1), 0)} % and "
        f"LiNeS by {signed(100 * (lines / base - 1), 0)} % (medians over {counted(len(rows), 'weight')})"
    )
    kept = {reward: [row["reward_kept"][reward] for row in rows] for reward in front["objectives"]}
    kept = {reward: [value for value in values if value is not None] for reward, values in kept.items()}
    gains = [
        f"{percent(median(values))} of the soup's gain in {reward} (median over {counted(len(values), 'weight')})"
        for reward, values in kept.items()
        if values
    ]
    return [Card(title, "", f"{text}; LiNeS has {_list(gains)}." if gains else f"{text}.")]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
