"""The tables of docs/evidence.md in Markdown, one function a question; every number with its 95 % interval."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from runs import EQUAL, WRONG, Run, Task

from rlhf_lines.pareto.intervals import Estimate
from rlhf_lines.pareto.schema import LINES, MORLHF, REVERSED, SCALED, SEARCHED, SFT, SOUP, label
from rlhf_lines.sweep.finished.behaviour import asked_in
from rlhf_lines.sweep.store import Store


PAIRS = (  # a minus b
    (LINES, SOUP),
    (LINES, SCALED),
    (LINES, REVERSED),
    (LINES, MORLHF),
    (SOUP, MORLHF),
    ("ties with LiNeS", "ties"),
    ("slerp with LiNeS", "slerp"),
    ("layerwise", SOUP),
    ("frozen", SOUP),
)
ONE_FACTOR = "one factor"  # tuned at the cost of the search
AT_ONE_COST = (
    (SEARCHED, LINES),
    (SEARCHED, ONE_FACTOR),
    (SEARCHED, SOUP),
    (LINES, ONE_FACTOR),
    (LINES, SOUP),
    (ONE_FACTOR, SOUP),
)
MEASURES = {"hypervolume": "hypervolume", "expected_utility": "expected utility", "equal_kl": "at equal KL"}
THIRDS = ("first", "middle", "last")
LEVELS = (0.5, 1.0)  # of what each policy counts in a third
SOUP_LEVEL = 0.5  # of the soup at equal weights
READ = (SFT, SOUP, LINES, SCALED, MORLHF)  # at equal weights
EXAMPLES = 3
SHOWN = {"layerwise": "rates that grow with depth", "frozen": "first half frozen"}  # sets of policies


class Effect(NamedTuple):
    """What a third of the depth is worth: what changes when it counts twice what it does in the soup."""

    name: str
    values: Callable[[Run, Any], NDArray[np.float64]]  # of a point of the run
    digits: int


def policies(task: Task) -> tuple[str, str]:
    """Names of both policies."""
    front = (*task.runs, *task.searches, *task.thirds)[0].front
    first, second = (policy.rstrip("/").rsplit("/", 1)[-1] for policy in front["policies"][:2])
    return first, second


def named(group: str) -> str:
    """What people read for a group."""
    return SHOWN.get(group) or label(group)


def differences(task: Task, pairs: Iterable[tuple[str, str]] = PAIRS) -> str:
    """One way to merge minus another, in percent of the other."""
    rows = []
    for a, b in pairs:
        if seeds := (own := task.having(a, b)).runs:
            found = (own.difference(a, b, measure) for measure in MEASURES)
            rows.append([f"{named(a)} - {named(b)}", str(len(seeds)), *(_told(each, 0, " %") for each in found)])
    return table(["", "seeds", *MEASURES.values()], rows)


def by_seed(task: Task, pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """The same differences for each seed, in the order of the seeds, with intervals over its prompts alone."""
    rows = []
    for a, b in pairs:
        if (own := task.having(a, b)).runs:
            cells = [
                "; ".join(_told(replace(own, runs=[run]).difference(a, b, measure), 0, " %") for run in own.runs)
                for measure in MEASURES
            ]
            rows.append([f"{named(a)} - {named(b)}", *cells])
    return table(["a seed after the other", *MEASURES.values()], rows)


def chosen(tasks: Sequence[Task]) -> str:
    """What each group chose on validation prompts, by seed, of tasks where it could choose."""
    tasks = [task for task in tasks if task.runs[0].front["validation"]]
    groups = dict.fromkeys(g for task in tasks for g in (LINES, *task.runs[0].front["validation"]["groups"]))
    rows = []
    for group in groups:
        found = [
            " ".join(
                f"{tuning['chosen']['alpha']:g}/{tuning['chosen']['beta']:g}{'*' * tuning['at_edge']}"
                for run in task.runs
                if (tuning := _tuning(run, group))
            )
            for task in tasks
        ]
        rows.append([named(group), *found])
    return table(["alpha/beta, a pair a seed", *(task.name for task in tasks)], rows)


def effects(task: Task) -> list[Effect]:
    """What is told of a third."""
    sources = dict.fromkeys(source for run in task.thirds for source in run.sources)
    return [
        Effect("utility at equal weights", Run.utility, 3),
        Effect("KL, nats", Run.kl, 2),
        *(Effect(f"loss per token on {s}", lambda run, point, s=s: run.forgotten(point, s), 4) for s in sources),
    ]


def thirds(task: Task) -> str:
    """What the factor of each third does, the others averaged over both levels; and the last third less the first."""
    rows = [
        [
            effect.name,
            *(_told(third_effect(task, effect, k), effect.digits) for k in range(len(THIRDS))),
            _told(last_less_first(task, effect), effect.digits),
        ]
        for effect in effects(task)
    ]
    return table(["twice the soup's step in a third", *THIRDS, "last - first"], rows)


def third_effect(task: Task, effect: Effect, third: int) -> Estimate:
    """The main effect of one third."""
    return task.mean(lambda run: _main_effect(run, effect, third), thirds=True)


def last_less_first(task: Task, effect: Effect) -> Estimate:
    """By how much the last third's effect is above the first's."""
    return task.mean(lambda run: _main_effect(run, effect, -1) - _main_effect(run, effect, 0), thirds=True)


def profiles(task: Task) -> str:
    """The eight profiles at equal weights."""
    rows = []
    for levels in itertools.product(LEVELS, repeat=len(THIRDS)):
        name = third_name(levels)
        found = (
            task.mean(lambda run, e=effect, n=name: e.values(run, run.point(n)), thirds=True)
            for effect in effects(task)
        )
        told = (_told(each, e.digits) for each, e in zip(found, effects(task), strict=True))
        rows.append([" / ".join(f"{level / SOUP_LEVEL:g}" for level in levels), *told])
    return table(["thirds, in steps of the soup", *(effect.name for effect in effects(task))], rows)


def third_name(levels: Sequence[float]) -> str:
    """The group of a profile, as scripts/study calls it."""
    return "thirds " + " ".join(f"{level:g}" for level in levels)


def forgetting(task: Task) -> str:
    """Perplexity of texts outside the task over the SFT model's, and what is left of the utility."""
    sources = list(dict.fromkeys(task.runs[0].sources))
    rows = []
    for name, *place in _read_points(task):
        ratios = [_ratio(task.mean(lambda run, s=s, at=place: run.forgotten(run.point(*at), s))) for s in sources]
        worth = task.mean(lambda run, at=place: run.utility(run.point(*at)))
        rows.append([name, *(_told(each, 3) for each in ratios), _told(worth, 3)])
    heads = [f"perplexity on {source} / SFT's" for source in sources]
    return table(["", *heads, "utility, objectives alike"], rows)


def readers(task: Task) -> str:
    """What answers are like: means over seeds; intervals are in the pages of each sweep."""
    rows = []
    for name, group, weights in _read_points(task, sft=True):
        points = [run.point(group, weights) for run in task.runs]
        cells = [f"{np.mean([p['metrics']['tokens']['mean'] for p in points]):.1f}"]
        for metric in ("share_empty", "share_cut", "repetition", "distinct", "win_rate"):
            cells.append(f"{100 * np.mean([p['metrics'][metric]['mean'] for p in points]):.0f} %")
        rows.append([name, *cells])
    return table(["", "tokens", "empty", "cut", "repetition", "distinct", "win rate over SFT"], rows)


def examples(task: Task) -> str:
    """What the first prompts of the test split were answered, by the policies of the first seed."""
    run, folder = task.runs[0], task.folders[0]
    with Store(folder, reading=True) as store:
        asked = asked_in(store.prompts(run.front["split"]))
    prompts = list(asked)[:EXAMPLES]
    points = {name: run.point(group, weights) for name, group, weights in _read_points(task, sft=True)}
    answers = {name: run.answers(folder, point, prompts) for name, point in points.items()}
    parts = []
    for prompt in prompts:
        rows = [[name, _cell(found[prompt])] for name, found in answers.items()]
        parts.append(f"{_cell(asked[prompt])}\n\n{table(['', 'answer'], rows)}")
    return "\n\n".join(parts)


def wrong(task: Task) -> str:
    """What mergers that are wrong say of themselves at equal weights, beside the soup."""
    task, rows = task.having(*WRONG), []
    for group in (SOUP, *WRONG):
        points = [run.point(group) for run in task.runs]
        scores = [
            _told(task.mean(lambda run, k=k, g=group: _scores(run, g)[:, k]), 2)
            for k in range(len(points[0]["scores"]))
        ]
        kl = task.mean(lambda run, g=group: run.kl(run.point(g)))
        rows.append([named(group), *scores, _told(kl, 2)])
    return table(["equal weights", *task.runs[0].front["objectives"], "KL, nats"], rows)


def searched(task: Task) -> str:
    """What a search for a front is worth beside rules that were tuned at the same cost, in all and by seed."""
    task = replace(task, runs=task.searches)
    told = differences(task, AT_ONE_COST)
    return told if len(task.runs) == 1 else f"{told}\n\n{by_seed(task, AT_ONE_COST)}"


def learned(task: Task) -> str:
    """What each method of `learn` found, a row a method: means over seeds, and its difference to LiNeS by seed."""
    rows = []
    for method, found in task.learned.items():
        cells = [
            f"{np.mean([one['validation'][which][number] for one in found]):.{digits}f}"
            if all(which in one["validation"] for one in found)
            else "-"
            for number, digits in (("value", 3), ("kl", 2))
            for which in ("learned", "lines", "soup")
        ]
        against = "lines" if all("lines" in one["differences"] for one in found) else "soup"
        told = "; ".join(_difference(one["differences"][against]) for one in found)
        rows.append([method, *cells, f"{told} (to {named(LINES) if against == 'lines' else 'the soup'})"])
    of_three = ("learned", named(LINES), "soup")
    heads = [f"{measure}: {who}" for measure in ("utility", "KL, nats") for who in of_three]
    return table(["method", *heads, "utility, learned less, a seed each"], rows)


def _difference(found: dict[str, float]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:+.3f}{interval}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read_points(task: Task, *, sft: bool = False) -> list[tuple[str, str, tuple[float, float]]]:
    """Name, group and weights of what is looked at closely: both policies, and merges at equal weights, if any."""
    first, second = policies(task)
    ends = [(first, SOUP, (1.0, 0.0)), (second, SOUP, (0.0, 1.0))]
    merges = [(named(group), group, EQUAL) for group in READ if group != SFT and task.having(group) is task]
    return [*([(named(SFT), SFT, EQUAL)] if sft else []), *ends, *merges]


def _main_effect(run: Run, effect: Effect, third: int) -> NDArray[np.float64]:
    """The effect of one third at every prompt or text: the mean over both levels of the others."""
    found = []
    for levels in itertools.product(LEVELS, repeat=len(THIRDS)):
        sign = 1.0 if levels[third] == LEVELS[1] else -1.0
        found.append(sign * effect.values(run, run.point(third_name(levels))))
    return np.sum(found, axis=0) * 2.0 / len(found)


def _scores(run: Run, group: str) -> NDArray[np.float64]:
    return np.asarray(run.sweep.run.scores[run.point(group)["id"]])


def _tuning(run: Run, group: str) -> Any:
    validation = run.front["validation"]
    return validation if group == LINES else validation["groups"].get(group)


def _ratio(loss: Estimate) -> Estimate:
    """A difference of losses per token as a ratio of perplexities."""
    ends = (None if end is None else float(np.exp(end)) for end in loss[:3])
    return Estimate(*ends, loss.p_value)


def _told(found: Estimate | None, digits: int, unit: str = "") -> str:
    if found is None:
        return "not measured"
    value = f"{found.value:+z.{digits}f}" if unit else f"{found.value:z.{digits}f}"
    if found.low is None:
        return value + unit
    return f"{value}{unit} [{found.low:z.{digits}f}, {found.high:z.{digits}f}]"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
