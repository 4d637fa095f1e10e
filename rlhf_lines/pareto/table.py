"""A front as plain text for the terminal, and its numbers as texts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_lines.pareto import comparisons
from rlhf_lines.pareto.benchmarks import benchmark_metrics
from rlhf_lines.pareto.bootstrap import MANY_PROMPTS
from rlhf_lines.pareto.headline import budgets_text, front_headline
from rlhf_lines.pareto.intervals import FEW_PROMPTS
from rlhf_lines.pareto.look_at import what_to_look_at
from rlhf_lines.pareto.schema import CONTROLS, LINES, SFT, WORDS, Front, Mean, PointEntry, Value, label, nondominated


WIDTH = 110
NAME_WIDTH = 20
MEASURES = ("hypervolume", "expected_utility")


class Further(NamedTuple):
    """What is shown of points beside their scores.

    Attributes:
        meaning: of the column.
        of: what a point has of it, or None.
        written: all of a column as texts.
    """

    meaning: str
    of: Callable[[PointEntry], Mean | None]
    written: Callable[[Sequence[Mean | None]], list[str]]


def front_table(front: Front, *, all_points: bool = False) -> str:
    """What one decides by, as aligned text of at most 110 columns, without a trailing newline.

    First what the front says of LiNeS, then hypervolume and expected utility of each group, then the differences
    between groups with verdicts and adjusted p-values, then the points of one group, see `points_table`.

    Args:
        front: what `build_front` returns.
        all_points: show all points with all that was measured of them, in as many blocks as that takes.
    """
    prompts = f"{front['points'][0]['prompts']} {front['split']} prompts"
    head = f"{prompts}, {interval_name(front)}s over prompts, higher is better"
    if few := few_prompts(front):
        head += f"\n{textwrap.fill(few, WIDTH)}"
    headline = textwrap.fill(front_headline(front), WIDTH)
    groups = [*_groups(front), *_differences(front), *_single_points(front)]
    points = all_points_table(front) if all_points else points_table(front)
    return "\n\n".join([head, *filter(None, [headline]), *groups, *_to_look_at(front), *points])


def few_prompts(front: Front) -> str:
    """`few_prompts_text` of the prompts of a front."""
    return few_prompts_text(front["points"][0]["prompts"])


def at_edges(front: Front) -> list[str]:
    """The groups whose alpha or beta was chosen at an edge of what was tried."""
    validation = front["validation"]
    if validation is None:
        return []
    return [name for name, tuning in ({LINES: validation} | validation["groups"]).items() if tuning["at_edge"]]


def few_prompts_text(count: int) -> str:
    """What to know of intervals over less than 30 prompts; empty where there are as many or more."""
    if count >= FEW_PROMPTS:
        return ""
    return (
        f"Few prompts ({count}): intervals are widened for it, and may still be too narrow where scores are skewed; "
        f"take {MANY_PROMPTS} or more to decide by"
    )


def not_at_equal_kl(reasons: Mapping[str, str | None]) -> list[str]:
    """Which differences are without a comparison at equal KL, a sentence for each reason.

    >>> not_at_equal_kl({"a - b": "no KL", "a - c": "no KL", "b - c": None})
    ['not compared at equal KL, and so not called better: a - b, a - c (no KL)']
    >>> not_at_equal_kl({"a - b": "no KL"})
    ['nothing is compared at equal KL, and so no group is called better (no KL)']
    """
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason is not None:
            found.setdefault(reason, []).append(name)
    if len(found) == 1 and None not in reasons.values():
        return [f"nothing is compared at equal KL, and so no group is called better ({reason})" for reason in found]
    start = "not compared at equal KL, and so not called better"
    return [f"{start}: {', '.join(names)} ({reason})" for reason, names in found.items()]


def estimate_text(estimate: Mean | Value, digits: int) -> str:
    """A mean or another measure with the ends of its interval.

    >>> estimate_text({"value": 1.0, "low": 0.25, "high": 2.0}, 2)
    '1.00 [0.25, 2.00]'
    """
    ends = estimate["low"], estimate["high"]
    interval = "" if None in ends else f" [{', '.join(f'{end:z.{digits}f}' for end in ends)}]"
    return f"{value_of(estimate):z.{digits}f}{interval}"


def value_of(estimate: Mean | Value) -> float:
    """What the interval of an estimate is around."""
    return next(estimate[key] for key in ("mean", "corrected", "value") if key in estimate)


def p_text(p_value: float | None) -> str:
    """A p-value with three decimals; one that is smaller than they show is not written as 0.

    >>> p_text(0.0312), p_text(1e-9), p_text(None)
    ('0.031', '<0.001', '-')
    """
    return "-" if p_value is None else "<0.001" if p_value < 0.0005 else f"{p_value:z.3f}"


def decimals(values: Iterable[float]) -> int:
    """How many decimals show about four significant digits of the largest value."""
    largest = max(map(abs, values), default=0.0)
    for digits, bound in ((1, 100.0), (2, 10.0), (3, 0.1), (4, 0.01)):
        if largest >= bound:
            return digits
    return 3 if largest == 0.0 else 6


def supported_decimals(estimate: Mean | Value) -> int:
    """How many decimals of an estimate its interval supports: two significant digits of the interval's width.

    At most those of `decimals`, which also holds without an interval, or with one that has no width.

    >>> supported_decimals({"value": 33.512, "low": 30.2, "high": 36.9})
    1
    """
    most, low, high = decimals([value_of(estimate)]), estimate["low"], estimate["high"]
    if low is None or high is None or low == high:
        return most
    return min(most, max(0, 1 - math.floor(math.log10(high - low))))


def setting(value: float | str) -> str:
    """A setting as people write it.

    >>> setting(1.0), setting("auto")
    ('1', 'auto')
    """
    return value if isinstance(value, str) else f"{value:zg}"


def interval_name(front: Front) -> str:
    """What the intervals of a front are called, such as `95 % interval`."""
    return f"{confidence_text(front)} interval"


def confidence_text(front: Front) -> str:
    """How often the intervals of a front hold, such as `95 %`."""
    return f"{100 * front['confidence']:zg} %"


def _groups(front: Front) -> list[str]:
    fronts = front["fronts"]
    if not fronts:
        return []
    of_group = {name: [point for point in front["points"] if point["group"] == name] for name in fronts}
    schedules = {name: list(dict.fromkeys(p["spec"]["schedule"] for p in some)) for name, some in of_group.items()}
    columns = [
        ["group", *map(_group, fronts)],
        *(_estimates(measure, [entry[measure] for entry in fronts.values()]) for measure in MEASURES),
        ["points", *(str(len(points)) for points in of_group.values())],
        ["not dominated", *(str(len(entry["nondominated"])) for entry in fronts.values())],
    ]
    if any(names != ["linear"] for names in schedules.values()):
        columns.append(["schedule", *(_clip(", ".join(names)) for names in schedules.values())])
    edges = ", ".join(map(_group, at_edges(front)))
    note = f"chosen at an edge of what was tried, so that going beyond may give more: {edges}"
    return [align(list(zip(*columns, strict=True)), left=1), *([textwrap.fill(note, WIDTH)] if edges else [])]


def _differences(front: Front) -> list[str]:
    if not front["comparisons"]:
        return []
    entries = front["comparisons"]
    pairs = [f"{_group(entry['a'])} - {_group(entry['b'])}" for entry in entries]
    fixed = [["difference", "verdict"], *([pair, e["verdict"]] for pair, e in zip(pairs, entries, strict=True))]
    columns = []
    for measure, words in comparisons.MEASURES.items():
        differences = [entry[f"{measure}_difference"] for entry in entries]
        digits = decimals(value_of(each) for each in differences if each is not None)
        texts = [
            "-" if each is None else f"{estimate_text(each, digits)}  {p_text(each['adjusted_p_value']):>6}"
            for each in differences
        ]
        if set(texts) != {"-"}:
            column = [f"{words}  {'p':>6}", *texts]
            if measure == "equal_kl":  # the budgets belong to the number
                budgets = ["KL, nats", *(budgets_text(front, entry) for entry in entries)]
                column = align(list(zip(column, budgets, strict=True)), left=0).splitlines()
            columns.append(column)
    note = (
        f"p is adjusted (Holm) by each measure for {comparisons.adjusted_for(entries)}; intervals are not; the verdict "
        "is of the first against the second, by all measures"
    )
    reasons = {pair: entry["no_equal_kl"] for pair, entry in zip(pairs, entries, strict=True)}
    notes = [note, *not_at_equal_kl(reasons)]
    return [*in_blocks(fixed, columns, left=2), "\n".join(textwrap.fill(text, WIDTH) for text in notes)]


def _single_points(front: Front) -> list[str]:
    return [textwrap.fill(front["not_compared"], WIDTH)] if front["not_compared"] else []


def _to_look_at(front: Front) -> list[str]:
    sentences = what_to_look_at(front)
    lines = [textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ") for text in sentences]
    return ["\n".join(["What to look at", *lines])] if lines else []


def points_table(front: Front, *, only_front: bool = False) -> list[str]:
    """The points of the group with the largest expected utility, the SFT model and the single policies.

    No control is that group. Of a front without groups these are all points. `*` marks the points that no other point
    of their group dominates. A point that is one policy as it was trained has that policy's name in place of weights.
    Means have their intervals where they fit. KL, length and damage stand beside them as far as they fit; what does not
    is named below. `front.csv` has all points with all that was measured.

    Args:
        front: what `build_front` returns.
        only_front: leave out the dominated points of that group and a policy that stands there already, of another
            group, and with them the marks and what is not shown.

    Returns:
        Blocks of text: a title, a table (several where there are too many scores), and what is left out.
    """
    group = _best_group(front)
    best = nondominated(front)
    points = [
        point
        for point in front["points"]
        if group in (None, point["group"]) or point["group"] == SFT or point["single_policy"] is not None
    ]
    if only_front:
        points, best = _to_choose_from(points, group, best), set()
    varies = len({_scaling(point) for point in points if point["group"] == group}) != 1
    fixed = [
        [" id", "group", "weights", *(["alpha", "beta"] if varies else [])],
        *(_fixed(point, best=point["id"] in best, scaling=varies) for point in points),
    ]
    scores = _scores(front, points, fixed)
    kept, free = [], WIDTH - _width(fixed) - sum(map(_column_width, scores))
    further = _further(front, points)
    for name, column in further.items():
        if _column_width(column) <= free:
            kept.append(name)
            free -= _column_width(column)
    table = in_blocks(fixed, [*scores, *(further[name] for name in kept)], left=3)
    if only_front:
        start = "The front of the best group"
        return [*_title(front, group, points, start), *table, *_meanings(front, kept, marks=False)]
    left_out = [name for name in further if name not in kept]
    return [*_title(front, group, points), *table, *_notes(front, points, kept, left_out)]


def _to_choose_from(points: Sequence[PointEntry], group: str | None, best: Collection[int]) -> list[PointEntry]:
    """Of these points, those of the group that are not dominated, the SFT model, and every single policy once."""
    if group is None:
        return list(points)
    front = [point for point in points if point["group"] == group and point["id"] in best]
    policies = {point["single_policy"]: point for point in reversed([*front, *points])}  # of the front, or the first
    policies.pop(None, None)
    kept = {point["id"] for point in (*front, *policies.values())}
    return [point for point in points if point["id"] in kept or point["group"] == SFT]


def all_points_table(front: Front) -> list[str]:
    """All points with all that was measured of them, in as many blocks as that takes; the scores have intervals."""
    points = front["points"]
    best = nondominated(front)
    fixed = [
        [" id", "group", "weights", "alpha", "beta"],
        *(_fixed(point, best=point["id"] in best, scaling=True) for point in points),
    ]
    scores = {name: [point["scores"][name] for point in points] for name in front["objectives"]}
    scores |= {name: [point["metrics"][name] for point in points] for name in front["metrics"]}
    further = _further(front, points)
    columns = [*([_clip(name), *_texts(found)] for name, found in scores.items()), *further.values()]
    return ["All points", *in_blocks(fixed, columns, left=3), *_notes(front, points, list(further), [])]


def benchmarks_table(front: Front) -> str:
    """The points that were asked benchmarks: each metric, and in brackets how far it is from the SFT model's.

    `*` marks the points that no other point of their group dominates in the objectives, and `!` a metric whose interval
    of the difference leaves 0 out.

    Args:
        front: with `benchmarks`.
    """
    names = list(benchmark_metrics(front))
    points = [point for point in front["points"] if any(point["metrics"].get(name) for name in names)]
    best = nondominated(front)
    fixed = [[" id", "group", "weights"], *(_fixed(p, best=p["id"] in best, scaling=False) for p in points)]
    columns = []
    for name in names:
        found = _means([point["metrics"].get(name) for point in points])
        changes = [point["benchmark_changes"].get(name) for point in points]
        digits = decimals(change["value"] for change in changes if change)
        column = [f"{mean}{_change_text(change, digits)}" for mean, change in zip(found, changes, strict=True)]
        columns.append([name, *column])
    note = (
        "in brackets: less the SFT model's; !: its interval leaves 0 out; *: no other point of its group dominates it; "
        "intervals are in front.json and on the page"
    )
    return "\n\n".join([*in_blocks(fixed, columns, left=3), textwrap.fill(note, WIDTH)])


def _change_text(change: Value | None, digits: int) -> str:
    if change is None:
        return ""
    beyond = change["low"] is not None and not change["low"] <= 0.0 <= change["high"]
    return f" ({change['value']:+z.{digits}f}){'!' if beyond else ' '}"


def _best_group(front: Front) -> str | None:
    """The group whose front has the largest expected utility, the controls left out."""
    utilities = {
        group: value_of(entry["expected_utility"]) for group, entry in front["fronts"].items() if group not in CONTROLS
    }
    return max(utilities, key=utilities.__getitem__, default=None)


def _title(
    front: Front,
    group: str | None,
    points: Sequence[PointEntry],
    start: str = "The group of the largest expected utility",
) -> list[str]:
    if group is None:
        return []
    scalings = {_scaling(point) for point in points if point["group"] == group}
    scaling = f" ({', '.join(scalings.pop())})" if len(scalings) == 1 else ""
    aside = ", controls aside" if any(name in CONTROLS for name in front["fronts"]) else ""
    return [f"{start}{aside}: {_group(group)}{scaling}"]


def _notes(front: Front, points: Sequence[PointEntry], shown: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """What marks and columns mean, and where the rest stands."""
    left = len(front["points"]) - len(points)
    rest = [*([f"{left} other point{'s' * (left > 1)}"] if left else []), *left_out]
    where = f"rlhf-lines front RUN_DIR --all, front.csv and the page have also: {', '.join(rest)}"
    lines = [*_meanings(front, shown, marks=bool(front["fronts"])), *([textwrap.fill(where, WIDTH)] if rest else [])]
    return ["\n".join(lines)] if lines else []


def _meanings(front: Front, shown: Sequence[str], *, marks: bool) -> list[str]:
    further = _measures(front)
    # Of measures that each objective has, the first one says what they are.
    of_columns = {further[name].meaning: name for name in reversed(shown)}
    meanings = [f"{name}: {meaning}" for meaning, name in reversed(of_columns.items())]
    told = [*(["*: no other point of its group dominates it"] if marks else []), *meanings]
    return [textwrap.fill("; ".join(told), WIDTH)] if told else []


def _scores(front: Front, points: Sequence[PointEntry], fixed: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns of objectives and further scores, with their intervals where all fit in one block."""
    objectives = {name: [point["scores"][name] for point in points] for name in front["objectives"]}
    metrics = {name: [point["metrics"][name] for point in points] for name in front["metrics"]}
    for texts in ((_texts, _texts), (_texts, _means), (_means, _means)):
        columns = [
            [_clip(name), *of_kind(found)]
            for of_kind, kind in zip(texts, (objectives, metrics), strict=True)
            for name, found in kind.items()
        ]
        if len(_blocks(fixed, columns)) == 1:
            break
    return columns


def _further(front: Front, points: Sequence[PointEntry]) -> dict[str, list[str]]:
    """By name, the columns of what else was measured, in the order of `_measures`."""
    columns = {}
    for name, measure in _measures(front).items():
        found = [measure.of(point) for point in points]
        if any(found):
            columns[name] = [name, *measure.written(found)]
    return columns


def _measures(front: Front) -> dict[str, Further]:
    """What there may be beside scores by the heads of its columns, those first that one decides by."""

    def metric(name: str, *keys: str) -> Callable[[PointEntry], Mean | None]:
        def of(point: PointEntry) -> Mean | None:
            found: Any = point["metrics"].get(name)
            for key in keys:
                found = found and found.get(key)
            return found

        return of

    found = {
        "kl": Further("to the SFT model, in nats", lambda point: point["kl"], _means),
        "log_ratio": Further("to the SFT model, in nats", metric("log_ratio"), _means),
        "tokens": Further("mean length", metric("tokens"), _lengths),
        "share_empty": Further("share of empty completions", metric("share_empty"), _shares),
        "share_cut": Further("share cut at the longest length", metric("share_cut"), _shares),
        "perplexity": Further("of the control texts, lower is better", lambda point: point["perplexity"], _means),
        "repetition": Further("share of 4-grams that occurred before in the completion", metric("repetition"), _shares),
        "distinct": Further("different texts over completions", metric("distinct"), _shares),
        "win_rate": Further("1 where better than SFT in all objectives, 0 where worse", metric("win_rate"), _shares),
        "all_better": Further("share better in all objectives", metric("win_rate", "all_better"), _shares),
        "all_worse": Further("share worse in all objectives", metric("win_rate", "all_worse"), _shares),
    }
    found = {WORDS[name]: measure for name, measure in found.items()}
    for name, better in benchmark_metrics(front).items():
        note = {True: "", False: ", lower is better"}.get(better, "")
        found[name] = Further(f"of a benchmark{note}", metric(name), _means)
    shorts: Sequence[str] = [_clip(name) for name in front["objectives"]]
    if len(set(shorts)) < len(shorts):
        shorts = [str(number) for number in range(1, len(shorts) + 1)]
    for short, name in zip(shorts, front["objectives"], strict=True):
        found |= {
            f"win rate ({short})": Further("share better in it", metric("win_rate", "by_objective", name), _shares),
            f"correlation ({short})": Further("with length", metric("length_correlation", name), _correlations),
            f"at equal length ({short})": Further("what is left of a gain", metric("at_matched_length", name), _means),
        }
    return found


def _means(found: Sequence[Mean | None]) -> list[str]:
    """Means with as many decimals each."""
    digits = decimals(each["mean"] for each in found if each is not None)
    return ["-" if each is None else f"{each['mean']:z.{digits}f}" for each in found]


def _correlations(found: Sequence[Mean | None]) -> list[str]:
    return ["-" if each is None else f"{each['mean']:z.2f}" for each in found]


def _lengths(found: Sequence[Mean | None]) -> list[str]:
    return ["-" if each is None else f"{each['mean']:z.1f}" for each in found]


def _shares(found: Sequence[Mean | None]) -> list[str]:
    return ["-" if each is None else f"{100 * each['mean']:z.1f} %" for each in found]


def in_blocks(fixed: Sequence[Sequence[str]], columns: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """The columns beside the fixed ones, in as many blocks as they need."""
    return [
        align([[*row, *(column[i] for column in block)] for i, row in enumerate(fixed)], left=left)
        for block in _blocks(fixed, columns)
    ]


def _fixed(point: PointEntry, *, best: bool, scaling: bool) -> list[str]:
    """What every block says of a point."""
    name = point["label"]
    return [
        f"{'*' if best else ' '}{point['id']}",
        _group(point["group"]),
        name if point["single_policy"] is None else _clip(name),
        *([setting(point["spec"]["alpha"]), setting(point["spec"]["beta"])] if scaling else []),
    ]


def _scaling(point: PointEntry) -> tuple[str, ...]:
    """alpha, beta and schedule, as the title of a group says them."""
    spec = point["spec"]
    return f"alpha {setting(spec['alpha'])}", f"beta {setting(spec['beta'])}", spec["schedule"]


def _blocks(fixed: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """The columns in groups that fit beside the fixed columns; a group has at least one column."""
    blocks: list[list[Sequence[str]]] = [[]]
    free = WIDTH - _width(fixed)
    for column in columns:
        if _column_width(column) > free and blocks[-1]:
            blocks.append([])
            free = WIDTH - _width(fixed)
        blocks[-1].append(column)
        free -= _column_width(column)
    return blocks


def _width(fixed: Sequence[Sequence[str]]) -> int:
    return sum(2 + max(len(row[i]) for row in fixed) for i in range(len(fixed[0]))) - 2


def _column_width(column: Sequence[str]) -> int:
    return 2 + max(map(len, column))


def _estimates(measure: str, estimates: Sequence[Value]) -> list[str]:
    return [measure.replace("_", " "), *_texts(estimates)]


def _texts(estimates: Sequence[Mean | Value | None]) -> list[str]:
    """Estimates with as many decimals each."""
    digits = decimals(value_of(estimate) for estimate in estimates if estimate is not None)
    return ["-" if estimate is None else estimate_text(estimate, digits) for estimate in estimates]


def _group(name: str) -> str:
    """What people read for a group, shortened to the column."""
    return _clip(label(name))


def _clip(text: str) -> str:
    """The text on one line, shortened to the column."""
    text = " ".join(text.split())
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 3] + "..."


def align(rows: Sequence[Sequence[str]], left: int) -> str:
    """The rows with columns aligned: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
