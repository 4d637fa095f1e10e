"""The figures of docs/evidence.md, one a question; a panel a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from questions import MEASURES, ONE_FACTOR, PAIRS, THIRDS, effects, named, policies, third_effect
from runs import EQUAL, WRONG, Run, Task

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.schema import LINES, MORLHF, REVERSED, SCALED, SEARCHED, SFT, SOUP, PointEntry, looks


MADE = (SFT, SOUP, LINES, SCALED, REVERSED, MORLHF)
ROW_INCHES = 0.3
FORGETTING = (SOUP, LINES, SCALED, REVERSED, "frozen", "layerwise", MORLHF)


def fronts(path: Path, tasks: Sequence[Task], groups: Sequence[str]) -> None:
    """Mean scores of groups, a line a seed along the weights."""

    def place(run: Run, point: PointEntry) -> tuple[float, float]:
        first, second = run.front["objectives"]
        return point["scores"][first]["mean"], point["scores"][second]["mean"]

    def label(task: Task) -> tuple[str, str]:
        first, second = task.runs[0].front["objectives"]
        return canvas.score_label(first), canvas.score_label(second)

    _lines(path, tasks, groups, place, label)


def reward_and_kl(path: Path, tasks: Sequence[Task], groups: Sequence[str]) -> None:
    """Utility, objectives alike, against KL, a line a seed along the weights."""

    def place(run: Run, point: PointEntry) -> tuple[float, float]:
        return point["kl"]["mean"], float(run.utility(point).mean())

    _lines(path, tasks, groups, place, lambda task: ("KL to SFT, nats\nlower is closer", "utility, objectives alike"))


def differences(path: Path, tasks: Sequence[Task]) -> None:
    """One way to merge minus another by every measure, with intervals."""
    pairs = {task.name: [pair for pair in PAIRS if task.having(*pair).runs] for task in tasks}
    inches = (canvas.PAGE_INCHES, sum(ROW_INCHES * len(own) + 0.7 for own in pairs.values()))
    with canvas.saved_figure([path], inches) as figure:
        panels = figure.subplots(len(tasks), len(MEASURES), squeeze=False, sharey=True)
        for row, task in zip(panels, tasks, strict=True):
            for panel, (measure, title) in zip(row, MEASURES.items(), strict=True):
                found = [task.having(a, b).difference(a, b, measure) for a, b in pairs[task.name]]
                _bars(panel, [f"{named(a)} - {named(b)}" for a, b in pairs[task.name]], found)
                panel.set_title(f"{task.name}: {title}", fontsize=canvas.POINTS, color=canvas.INK)
                panel.set_xlabel("difference, % of the second")


def thirds(path: Path, tasks: Sequence[Task]) -> None:
    """What the factor of each third does to utility, KL and the loss on other texts."""
    most = max(len(effects(task)) for task in tasks)
    inches = (canvas.PAGE_INCHES, len(tasks) * (ROW_INCHES * len(THIRDS) + 0.9))
    with canvas.saved_figure([path], inches) as figure:
        panels = figure.subplots(len(tasks), most, squeeze=False, sharey=True)
        for row, task in zip(panels, tasks, strict=True):
            for panel, effect in zip(row, effects(task), strict=False):
                _bars(panel, list(THIRDS), [third_effect(task, effect, k) for k in range(len(THIRDS))])
                panel.set_title(effect.name, fontsize=canvas.POINTS, color=canvas.INK)
            row[0].set_ylabel(task.name)


def searched(path: Path, tasks: Sequence[Task]) -> None:
    """Fronts of the search and of rules that were tuned at the same cost."""
    fronts(path, [replace(task, runs=task.searches) for task in tasks], (SOUP, LINES, ONE_FACTOR, SEARCHED))


def learned(path: Path, tasks: Sequence[Task]) -> None:
    """The factors that `learn` found, over depth: a row a task, a panel a policy, a line a seed of each method."""
    methods = list(dict.fromkeys(method for task in tasks for method in task.learned))
    of_methods = looks(methods)
    with canvas.saved_figure([path], (canvas.PAGE_INCHES, canvas.PANEL_INCHES * len(tasks) + 0.3)) as figure:
        panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
        for row, task in zip(panels, tasks, strict=True):
            for k, panel in enumerate(row):
                panel.axhline(1.0, color=canvas.FAINT_INK, linewidth=0.8, linestyle="dotted")
                for method, found in task.learned.items():
                    for one in found:
                        _profile(panel, of_methods[method], one["profiles"]["learned"], k)
                for one in task.learned.get("evolution", []):
                    _profile(panel, looks([LINES])[LINES], one["profiles"]["lines"], k)
                panel.set_title(f"{task.name}: {policies(task)[k]}", fontsize=canvas.POINTS, color=canvas.INK)
                panel.set_xlabel("layer")
                canvas.plain_axes(panel)
            row[0].set_ylabel("factor, 1 is the soup's")
        _legend(figure, (LINES, *methods), 1 + len(methods))


def forgetting(path: Path, tasks: Sequence[Task]) -> None:
    """Loss on texts outside the task, above the SFT model's, against utility at equal weights."""
    sources = {task.name: list(dict.fromkeys(task.runs[0].sources)) for task in tasks}
    count = sum(map(len, sources.values()))
    with canvas.saved_panels([path], count, len(FORGETTING), beside=0.3) as (figure, panels, columns):
        places = ((task, source) for task in tasks for source in sources[task.name])
        for panel, (task, source) in zip(panels, places, strict=True):
            for look in looks(group for group in FORGETTING if task.having(group) is task).values():
                lost = task.mean(lambda run, s=source, g=look.name: run.forgotten(run.point(g, EQUAL), s))
                worth = task.mean(lambda run, g=look.name: run.utility(run.point(g, EQUAL)))
                x, y = ({"mean": each.value, "low": each.low, "high": each.high} for each in (lost, worth))
                canvas.draw_points(panel, look, [x], [y], dominated=False, strength=0.4, depth=3)
            panel.axvline(0.0, color=canvas.FAINT_INK, linewidth=0.8, linestyle="dotted")
            panel.set_title(f"{task.name}: {source}", fontsize=canvas.POINTS, color=canvas.INK)
            panel.set_xlabel("loss per token above SFT, nats")
            panel.set_ylabel("utility, objectives alike")
            canvas.plain_axes(panel)
        _legend(figure, FORGETTING, columns, joined=False)


def readers(path: Path, tasks: Sequence[Task]) -> None:
    """How answers of every point differ from the SFT model's: length, repetition, texts of their own, wins."""
    metrics = {"tokens": 1.0, "repetition": 100.0, "distinct": 100.0, "win_rate": 100.0}
    titles = ("tokens", "repetition, %", "texts of their own, %", "win rate over SFT, %")
    with canvas.saved_figure([path], (canvas.PAGE_INCHES, 2.2 * len(tasks) + 0.4)) as figure:
        panels = figure.subplots(len(tasks), len(metrics), squeeze=False)
        for row, task in zip(panels, tasks, strict=True):
            for panel, (metric, unit), title in zip(row, metrics.items(), titles, strict=True):
                for run in task.runs:
                    for look in looks(group for group in MADE if group in run.groups).values():
                        own = _along([p for p in run.front["points"] if p["group"] == look.name])
                        x = np.linspace(0.0, 1.0, len(own)) if len(own) > 1 else [0.5]
                        y = [unit * point["metrics"][metric]["mean"] for point in own]
                        _line(panel, look, x, y)
                panel.set_title(title, fontsize=canvas.POINTS, color=canvas.INK)
                panel.set_xticks([0, 1], [task.runs[0].front["objectives"][k] for k in (1, 0)])
                canvas.plain_axes(panel)
        _legend(figure, MADE, len(MADE))


def _lines(
    path: Path,
    tasks: Sequence[Task],
    groups: Sequence[str],
    place: Callable[[Run, PointEntry], tuple[float, float]],
    labels: Callable[[Task], tuple[str, str]],
) -> None:
    """A panel a task: a line a seed of each group through the places of its points."""
    with canvas.saved_panels([path], len(tasks), len(groups), beside=0.3) as (figure, panels, columns):
        for panel, task in zip(panels, tasks, strict=True):
            for run in task.having(*(group for group in groups if group != MORLHF)).runs:  # a task may have none
                for look in looks(group for group in groups if group in run.groups).values():
                    points = _along([point for point in run.front["points"] if point["group"] == look.name])
                    _line(panel, look, *zip(*(place(run, point) for point in points), strict=True))
            x, y = labels(task)
            panel.set(xlabel=x, ylabel=y)
            panel.set_title(task.name, fontsize=canvas.POINTS, color=canvas.INK)
            canvas.plain_axes(panel)
        _legend(figure, groups, columns)


def _bars(panel: Any, names: Sequence[str], found: Sequence[Any]) -> None:
    """A row for each number with its interval, the first on top."""
    panel.axvline(0.0, color=canvas.FAINT_INK, linewidth=0.8, linestyle="dotted")
    for row, each in enumerate(found):
        if each is None:
            continue
        if each.low is not None:
            panel.plot([each.low, each.high], [row, row], color=canvas.INK, linewidth=1.0)
        panel.plot(each.value, row, "D", markersize=4, color=canvas.INK)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    canvas.plain_axes(panel)


def _along(points: Sequence[PointEntry]) -> list[PointEntry]:
    return sorted(points, key=lambda point: (point["preference"] or [0.0], point["id"]))


def _line(panel: Any, look: Any, x: Sequence[float], y: Sequence[float]) -> None:
    style = {"color": look.colour, "linewidth": 0.9, "linestyle": canvas.line_style(look.dashes), "alpha": 0.8}
    panel.plot(x, y, marker=look.marker, **style, **canvas.solid_marker(look))


def _profile(panel: Any, look: Any, options: Any, policy: int) -> None:
    """Factors of one of two policies, in units of a soup's 1/2."""
    factors = 2.0 * np.array(options["factors"][policy])
    style = {"color": look.colour, "linestyle": canvas.line_style(look.dashes), "linewidth": 1.0}
    panel.plot(np.arange(1, len(factors) + 1), factors, marker=look.marker, markevery=6, markersize=3, **style)


def _legend(figure: Any, groups: Sequence[str], columns: int, *, joined: bool = True) -> None:
    """Say above the panels how each group is drawn, `joined` where a line runs through its points."""
    handles = [canvas.group_handle(look, named(look.name), joined=joined) for look in looks(groups).values()]
    figure.legend(handles=handles, **canvas.UPPER_LEGEND, ncols=columns)


PICTURES = {  # by what of a task they are drawn of
    "runs": {
        "soup": lambda path, tasks: fronts(path, tasks, (SFT, SOUP, LINES, MORLHF)),
        "differences": differences,
        "kl": lambda path, tasks: reward_and_kl(path, tasks, (SOUP, LINES, SCALED, REVERSED)),
        "forgetting": forgetting,
        "readers": readers,
    },
    "wrong": {
        "wrong": lambda path, tasks: fronts(path, tasks, (SFT, SOUP, *WRONG)),
    },
    "thirds": {"thirds": thirds},
    "searches": {"search": searched},
    "learned": {"learned": learned},
}
