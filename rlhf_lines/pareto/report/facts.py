"""What a front says, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rlhf_lines.pareto.forgetting import damage_undone
from rlhf_lines.pareto.report.words import MINUS, estimated, percent, setting
from rlhf_lines.pareto.schema import LINES, REVERSED, SCALED, SOUP, Comparison, Front, label, looks
from rlhf_lines.pareto.table import MEASURES, decimals, p_text


BETTER, WORSE, UNCLEAR = "better", "worse", "unclear"


def facts(front: Front) -> list[dict[str, str]]:
    """What the front says, most important first, each with `title`, `text` and `verdict`.

    A verdict is `better` or `worse` where the interval of the difference lies on one side of zero, else
    `unclear`; a statement that compares nothing has the verdict `""`.

    Args:
        front: what `build_front` returns.
    """
    return [*_beats_soup(front), *_depth(front), *_chosen(front), *_forgetting(front)]


def swept(front: Front) -> str:
    """One sentence on what was measured."""
    points = front["points"]
    groups = looks(point["group"] for point in points)
    counts = [f"{label(group)} ({_count(sum(p['group'] == group for p in points), 'point')})" for group in groups]
    prompts, samples = points[0]["prompts"], points[0]["samples_per_prompt"]
    return (
        f"{_count(len(points), 'merged policy', 'merged policies')}: {_list(counts)}; each measured on "
        f"{_count(prompts, front['split'] + ' prompt')} with {_count(samples, 'completion')} per prompt, "
        f"scored by {_list(front['rewards'])}. Higher scores are better."
    )


def verdict(difference: Mapping[str, float]) -> str:
    """On which side of zero the interval lies.

    >>> verdict({"low": 0.1, "high": 0.3}), verdict({"low": -0.1, "high": 0.3})
    ('better', 'unclear')
    """
    if difference["low"] > 0:
        return BETTER
    return WORSE if difference["high"] < 0 else UNCLEAR


def _beats_soup(front: Front) -> list[dict[str, str]]:
    entry = _comparison(front, SOUP)
    if entry is None:
        return []
    found = verdict(entry["hypervolume_difference"])
    title = {
        BETTER: "LiNeS beats the rewarded soup",
        WORSE: "LiNeS does worse than the rewarded soup",
        UNCLEAR: "LiNeS and the rewarded soup cannot be told apart",
    }[found]
    return [{"title": title, "text": _difference(front, entry), "verdict": found}]


def _depth(front: Front) -> list[dict[str, str]]:
    entries = {group: entry for group in (SCALED, REVERSED) if (entry := _comparison(front, group))}
    if not entries:
        return []
    found = {group: verdict(entry["hypervolume_difference"]) for group, entry in entries.items()}
    text = " ".join(_difference(front, entry) for entry in entries.values())
    return [{"title": _depth_title(found), "text": text, "verdict": next(iter(found.values()))}]


def _depth_title(found: Mapping[str, str]) -> str:
    against_scaled, against_reversed = found.get(SCALED), found.get(REVERSED)
    if against_scaled is None:
        return {
            BETTER: "The direction of the schedule matters: reversed, it does worse",
            WORSE: "Reversed, the schedule does better than LiNeS",
            UNCLEAR: "LiNeS and its reversal cannot be told apart",
        }[against_reversed]
    title = {
        BETTER: "Depth matters, not only length: LiNeS beats one factor for all layers, tuned alike",
        WORSE: "Depth does not help: one factor for all layers, tuned alike, beats LiNeS",
        UNCLEAR: "Depth is not seen to matter, only length: LiNeS and one factor for all layers, tuned alike, "
        "cannot be told apart",
    }[against_scaled]
    addition = {BETTER: "reversed, it does worse", WORSE: "reversed, it does better", None: None}.get(
        against_reversed, "nor its reversal from LiNeS" if against_scaled == UNCLEAR else "its reversal is not clear"
    )
    return title if addition is None else f"{title}; {addition}"


def _chosen(front: Front) -> list[dict[str, str]]:
    validation = front["validation"]
    if not validation:
        return []
    chosen = validation["chosen"]
    text = (
        f"Chosen among {_count(len(validation['grid']), 'setting')} on {validation['prompts']} validation prompts at "
        f"{_count(validation['weights'], 'weight')}, and used for all test points of LiNeS."
    )
    if chosen["beta"] == 0:
        text += " With beta 0 every layer has the same factor, so that LiNeS is plain scaling here."
    title = f"alpha {setting(chosen['alpha'])}, beta {setting(chosen['beta'])}, schedule {chosen['schedule']}"
    return [{"title": title, "text": text, "verdict": ""}]


def _forgetting(front: Front) -> list[dict[str, str]]:
    rows = damage_undone(front)
    shares = [row["damage_undone"] for row in rows if row["damage_undone"] is not None]
    if not rows:
        return []
    if not shares:
        title = "The rewarded soup forgets nothing of the control texts, so that LiNeS has nothing to undo"
        return [{"title": title, "text": "Its perplexity is not above that of the SFT model.", "verdict": ""}]
    title = f"LiNeS undoes {percent(median(shares))} of what the rewarded soup forgets"
    if median(shares) < 0:
        title = f"LiNeS forgets more than the rewarded soup: {percent(-median(shares))} more"
    kept = {reward: [row["reward_kept"][reward] for row in rows] for reward in front["rewards"]}
    kept = {reward: [share for share in values if share is not None] for reward, values in kept.items()}
    texts = [f"{percent(median(values))} of the gain in {reward}" for reward, values in kept.items() if values]
    text = "Medians over the same weights, by the perplexity of control texts"
    text += f"; LiNeS keeps {_list(texts)}." if texts else "."
    return [{"title": title, "text": text, "verdict": ""}]


def _comparison(front: Front, group: str) -> Comparison | None:
    """That of LiNeS with the group."""
    return next((entry for entry in front["comparisons"] if (entry["a"], entry["b"]) == (LINES, group)), None)


def _difference(front: Front, entry: Comparison) -> str:
    parts = []
    for measure in MEASURES:
        key = f"{measure}_difference"
        digits = decimals(other[key]["value"] for other in front["comparisons"])
        text = f"{measure.replace('_', ' ')} {' '.join(estimated(entry[key], digits))}"
        parts.append(f"{text} (adjusted p {p_text(entry[key]['adjusted_p_value'])})")
    return f"{label(entry['a'])} {MINUS} {label(entry['b'])}: {_list(parts)}."


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
