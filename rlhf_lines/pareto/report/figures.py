"""The figures of the page as plotly draws them, for a wide and for a narrow screen, with what each control changes.

Colours are names of the style sheet (`Group.ink`), so that one figure serves light and dark screens. A trace says in
`meta` which boxes must be checked for it to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import pairwise
from typing import Any

from plotly import graph_objects as go

from rlhf_lines.pareto.figures.front import bar_lengths, split_dominated
from rlhf_lines.pareto.figures.validation import in_order
from rlhf_lines.pareto.report.groups import Group
from rlhf_lines.pareto.report.words import measures, number, policy_alone, setting, settings, visible
from rlhf_lines.pareto.style import shortened
from rlhf_lines.pareto.table import decimals


Estimates = Sequence[Mapping[str, float]]
RING = "ring"  # the meta of the trace of the points at the slider's weights, which the page fills
PERPLEXITY = ("perplexity of control texts", "lower: less forgotten")


def page_figures(
    front: Mapping[str, Any], groups: Mapping[str, Group], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By the id of its element, every figure as JSON values.

    `figure` is what plotly draws at first on a wide screen, and `narrow` has the parts of its traces and of its layout
    that are others on a narrow one. `choices` has those that a control changes, by its id and by its value (that of a
    select, or 0 and 1 of a box), first on a wide and then on a narrow screen.
    """
    rewards = range(len(front["rewards"]))
    boxes = {"intervals": [{"intervals": False}, {}]}
    axes = {} if _flat(front) else {"axis-x": [{"x": k} for k in rewards], "axis-y": [{"y": k} for k in rewards]}
    chosen = {"front-figure": (partial(front_figure, front, groups), axes | boxes)}
    if any(point.get("perplexity") for point in front["points"]):
        choices = {"forgetting-reward": [{"reward": reward} for reward in front["rewards"]]}
        chosen["forgetting-figure"] = (partial(forgetting_figure, front, groups), choices)
    if predictions:
        choices = {"surrogate-reward": [{"reward": reward} for reward in front["rewards"]]}
        chosen["surrogate-figure"] = (partial(surrogate_figure, front, groups, predictions), choices)
    for i, schedule in enumerate(schedules(front)):
        chosen[f"validation-figure-{i}"] = (partial(validation_figure, front, schedule), {})
    return {key: _with_choices(draw, choices) for key, (draw, choices) in chosen.items()}


def schedules(front: Mapping[str, Any]) -> list[str]:
    """The schedules that were tried, each of which has a map."""
    return list(dict.fromkeys(entry["schedule"] for entry in (front.get("validation") or {"grid": []})["grid"]))


def _flat(front: Mapping[str, Any]) -> bool:
    """Whether fronts are lines in a plane."""
    return len(front["rewards"]) == 2


def _with_choices(draw: Callable[..., go.Figure], choices: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    def drawn(**values: Any) -> dict[str, Any]:
        return draw(**values).to_plotly_json()

    def choices_on(narrow: bool) -> dict[str, Any]:
        first = drawn(narrow=narrow)
        return {
            control: [_changes(first, drawn(narrow=narrow, **values)) for values in options]
            for control, options in choices.items()
        }

    narrow = _changes(drawn(), drawn(narrow=True))
    return {"figure": drawn(), "narrow": narrow, "choices": [choices_on(False), choices_on(True)]}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in new.items() if old.get(key) != value}

    traces = [changed(old, new) for old, new in zip(before["data"], after["data"], strict=True)]
    return {"data": traces, "layout": changed(before["layout"], after["layout"])}


def front_figure(
    front: Mapping[str, Any],
    groups: Mapping[str, Group],
    x: int = 0,
    y: int | None = None,
    *,
    intervals: bool = True,
    narrow: bool = False,
) -> go.Figure:
    """Mean scores in two rewards, by their indices: points, intervals, and for two rewards all about the front."""
    rewards = [front["rewards"][k] for k in (x, min(1, len(front["rewards"]) - 1) if y is None else y)]

    def cloud(points: Sequence[Mapping[str, Any]], group: Group, opacity: float, **look: Any) -> go.Scatter:
        estimates = ([point["scores"][reward] for point in points] for reward in rewards)
        cloud = _cloud(front, points, group, *map(_means, estimates), narrow=narrow, **look)
        for axis, reward in zip("xy", rewards, strict=True):
            bars = _bars([point["scores"][reward] for point in points], group.ink(opacity))
            cloud[f"error_{axis}"] = bars if intervals else {"visible": False}
        return cloud

    traces = []
    for group in reversed(groups.values()):
        points = [point for point in front["points"] if point["group"] == group.name]
        best, dominated = split_dominated(front, points)
        if _flat(front) and group.name in front["fronts"]:
            traces += [*_band(front, group), *_staircase(front, group, best), *_hull(front, group)]
        hollow = {"symbol": f"{group.symbol}-open", "color": group.ink(0.5), "size": 8}
        traces += [cloud(dominated, group, 0.2, marker=hollow), cloud(best, group, 0.45)]
    ring = {"symbol": "circle-open", "size": 15 if narrow else 20, "color": "var(--ink)", "line": {"width": 2}}
    traces.append(go.Scatter(mode="markers", x=[], y=[], marker=ring, hoverinfo="skip", meta=[RING]))
    return go.Figure(traces, _layout(*(_score_title(reward, narrow) for reward in rewards)))


def forgetting_figure(
    front: Mapping[str, Any], groups: Mapping[str, Group], reward: str | None = None, *, narrow: bool = False
) -> go.Figure:
    """Perplexity to the right and the mean score in a reward upwards."""
    reward = reward or front["rewards"][0]
    traces = []
    for group in reversed(groups.values()):
        points = [point for point in front["points"] if point["group"] == group.name and point.get("perplexity")]
        scores, perplexities = [p["scores"][reward] for p in points], [p["perplexity"] for p in points]
        bars = {"error_y": _bars(scores, group.ink(0.45)), "error_x": _bars(perplexities, group.ink(0.2))}
        traces.append(_cloud(front, points, group, _means(perplexities), _means(scores), narrow=narrow, **bars))
    return go.Figure(traces, _layout(_axis_title(*PERPLEXITY, narrow), _score_title(reward, narrow)))


def surrogate_figure(
    front: Mapping[str, Any],
    groups: Mapping[str, Group],
    predictions: Sequence[Mapping[str, Any]],
    reward: str | None = None,
    *,
    narrow: bool = False,
) -> go.Figure:
    """Predicted to the right and measured upwards, with the line on which both agree."""
    reward = reward or front["rewards"][0]
    of = {entry["id"]: entry for entry in predictions}
    values = [entry[key][reward] for entry in predictions for key in ("predicted", "measured")]
    ends, dots = [min(values), max(values)], {"color": "var(--faint)", "dash": "dot", "width": 1}
    traces = [go.Scatter(mode="lines", x=ends, y=ends, hoverinfo="skip", line=dots)]
    for group in groups.values():
        points = [point for point in front["points"] if point["group"] == group.name and point["id"] in of]
        x, y = ([of[point["id"]][key][reward] for point in points] for key in ("predicted", "measured"))
        traces.append(_cloud(front, points, group, x, y, narrow=narrow, meta=[]))
    short = shortened(visible(reward), 30)
    return go.Figure(traces, _layout(*(isolated(f"{short}: {key} mean score") for key in ("predicted", "measured"))))


def validation_figure(front: Mapping[str, Any], schedule: str, *, narrow: bool = False) -> go.Figure:
    """The validation hypervolume over alpha and beta for one schedule, with a frame around what was chosen."""
    grid, chosen = front["validation"]["grid"], front["validation"]["chosen"]
    entries = {(e["alpha"], e["beta"]): e["hypervolume"]["value"] for e in grid if e["schedule"] == schedule}
    alphas, betas = (in_order({pair[k] for pair in entries}) for k in (0, 1))
    values = [entry["hypervolume"]["value"] for entry in grid]
    low, high, digits = min(values), max(values), decimals(values)
    cells = [[entries.get((alpha, beta)) for beta in betas] for alpha in alphas]
    written = [["" if value is None else number(value, digits) for value in row] for row in cells]
    heat = go.Heatmap(
        x=[isolated(setting(beta)) for beta in betas],
        y=[isolated(setting(alpha)) for alpha in alphas],
        z=cells,
        text=written,
        hovertemplate="alpha %{y}, beta %{x}: %{text}<extra></extra>",
        colorscale="Cividis",
        zmin=low,
        zmax=high,
        xgap=2,
        ygap=2,
        colorbar={"title": {"text": "hypervolume", "side": "right"}, "thickness": 12, "outlinewidth": 0},
    )
    # On Cividis, white can be read on the darker half and black on the lighter one.
    texts = [
        {"x": i, "y": j, "text": written[j][i], "showarrow": False}
        | {"font": {"color": "#000000" if value - low > 0.45 * (high - low) else "#ffffff"}}
        for j, row in enumerate(cells)
        for i, value in enumerate(row)
        if value is not None
    ]
    frames = []
    if schedule == chosen["schedule"] and (chosen["alpha"], chosen["beta"]) in entries:
        i, j = betas.index(chosen["beta"]), alphas.index(chosen["alpha"])
        frames = [{"type": "rect", "x0": i - 0.5, "x1": i + 0.5, "y0": j - 0.5, "y1": j + 0.5}]
        frames[0]["line"] = {"color": "var(--ink)", "width": 4}
    several = f" (schedule {isolated(schedule)})" if len(schedules(front)) > 1 else ""
    layout = _layout(f"beta{several}", "alpha", annotations=texts, shapes=frames)
    for axis in (layout.xaxis, layout.yaxis):
        axis.update(type="category", showgrid=False)
    return go.Figure(heat, layout)


def isolated(text: str, width: int = 60) -> str:
    """`text` on one line for plotly, which reads a few tags and entities in its texts; this leaves none to read.

    Text that runs from right to left does not turn its neighbours around.
    """
    return f"\u2068{escape(shortened(visible(text), width), quote=False)}\u2069"


def _axis_title(quantity: str, note: str, narrow: bool) -> str:
    """A phone has room for less of it on each of two lines."""
    return f"{isolated(quantity, 28)}<br>({note})" if narrow else f"{isolated(quantity)} ({note})"


def _score_title(reward: str, narrow: bool) -> str:
    return _axis_title(f"{shortened(visible(reward), 34)}: mean score", "higher is better", narrow)


def _layout(x: str, y: str, **more: Any) -> go.Layout:
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--faint)", "zeroline": False, "automargin": True}
    ink = {"color": "var(--ink)"}
    return go.Layout(
        template={},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, **ink},
        margin={"l": 56, "r": 12, "t": 12, "b": 52},
        xaxis={"title": {"text": x, "standoff": 10}, **axis},
        yaxis={"title": {"text": y, "standoff": 10}, **axis},
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": "var(--raised)", "bordercolor": "var(--faint)", "font": ink},
        **more,
    )


def _cloud(
    front: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    group: Group,
    x: Sequence[float],
    y: Sequence[float],
    *,
    narrow: bool,
    **look: Any,
) -> go.Scatter:
    size = (15 if group.symbol == "star" else 10) * (0.75 if narrow else 1)
    usual = {
        "marker": {"color": group.ink(), "symbol": group.symbol, "size": size},
        "customdata": [point["id"] for point in points],
        "text": [_hover_text(front, point, group) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": [group.key],
    }
    return go.Scatter(mode="markers", x=x, y=y, **usual | look)


def _hover_text(front: Mapping[str, Any], point: Mapping[str, Any], group: Group) -> str:
    policy = policy_alone(front, point)
    lines = [f"<b>{isolated(group.label if policy is None else f'{group.label}: {policy}')}</b>"]
    lines.append(isolated(settings(point), 90))
    for measure in measures(front):
        if measure.of(point):
            lines.append(f"{isolated(measure.name, 30)} {measure.text(point)} {measure.unit}".rstrip())
    return "<br>".join(lines)


def _means(estimates: Estimates) -> list[float]:
    return [estimate["mean"] for estimate in estimates]


def _bars(estimates: Estimates, colour: str) -> dict[str, Any]:
    below, above = bar_lengths(estimates)
    lengths = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return lengths | {"thickness": 1, "width": 0, "color": colour}


def _line(x: Sequence[float], y: Sequence[float], group: Group, *boxes: str, **look: Any) -> list[go.Scatter]:
    return [go.Scatter(mode="lines", x=x, y=y, hoverinfo="skip", meta=[group.key, *boxes], **look)] if x else []


def _places(front: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(point["scores"][reward]["mean"] for reward in front["rewards"]) for point in points]


def _staircase(front: Mapping[str, Any], group: Group, best: Sequence[Mapping[str, Any]]) -> list[go.Scatter]:
    """The edge of what the points dominate, down to the reference point: the area inside is the hypervolume."""
    low, floor = front["reference_point"]
    corners = [(x, y) for x, y in sorted(_places(front, best)) if x > low and y > floor]
    if not corners:
        return []
    x, y = ([corner[k] for corner in corners] for k in (0, 1))
    look = {"shape": "vh", "color": group.ink(), "dash": group.dash, "width": 2}
    return _line([low, *x, x[-1]], [y[0], *y, floor], group, line=look)


def _hull(front: Mapping[str, Any], group: Group) -> list[go.Scatter]:
    by_id = {point["id"]: point for point in front["points"]}
    hull = _places(front, [by_id[i] for i in front["fronts"][group.name].get("hull") or []])
    look = {"color": group.ink(), "width": 1, "dash": "dot"}
    return _line([x for x, _ in hull], [y for _, y in hull], group, "hulls", line=look)


def _band(front: Mapping[str, Any], group: Group) -> list[go.Scatter]:
    """The edge of what 2.5 % of the resampled fronts attain, and back along the edge of what 97.5 % attain."""
    attainment = front["fronts"][group.name].get("attainment")
    if not attainment:
        return []
    outer, inner = (_steps(attainment[level]) for level in ("0.025", "0.975"))
    edge = [*outer, *reversed(inner)]
    look = {"fill": "toself", "fillcolor": group.ink(0.13), "line": {"width": 0}}
    return _line([x for x, _ in edge], [y for _, y in edge], group, "bands", **look)


def _steps(corners: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The corners in ascending order, each reached level from the one before and then straight down."""
    ordered = sorted(map(tuple, corners))
    return [*ordered[:1], *(place for (x, _), (right, y) in pairwise(ordered) for place in ((x, y), (right, y)))]
