"""The figures of the page as plotly draws them, for a wide and for a narrow screen, with what each control changes.

Colours are names of the style sheet (`Group.ink`), so that one figure serves light and dark screens. A trace says in
`meta` which boxes must be checked for it to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from plotly import graph_objects as go

from rlhf_lines.pareto.figures.canvas import bar_lengths, split_dominated
from rlhf_lines.pareto.figures.front import BAND, hull_places, places, staircase
from rlhf_lines.pareto.figures.validation import in_order
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.groups import Mark
from rlhf_lines.pareto.report.words import estimated, isolated, number, setting, settings, visible
from rlhf_lines.pareto.schema import Mean, PointEntry, shortened
from rlhf_lines.pareto.table import decimals


RING = "ring"  # the meta of the trace of the points at the slider's weights, which the page fills


def page_figures(content: Content) -> dict[str, dict[str, Any]]:
    """By the id of its element, every figure as JSON values.

    `figure` is what plotly draws at first on a wide screen, and `narrow` has the parts of its traces and of its layout
    that are others on a narrow one. `choices` has those that a control changes, by its id and by its value (that of a
    select, or 0 and 1 of a box), first on a wide and then on a narrow screen.
    """
    rewards = content.front["rewards"]
    figures = {"front-figure": (front_figure, {"intervals": [{"intervals": False}, {}]})}
    if not content.flat:
        axes = {f"axis-{axis}": [{axis: reward} for reward in rewards] for axis in "xy"}
        figures["front-figure"] = (front_figure, axes | figures["front-figure"][1])
    if any(point["perplexity"] for point in content.front["points"]):
        figures["forgetting-figure"] = (forgetting_figure, {"forgetting-reward": [{"reward": r} for r in rewards]})
    if content.predictions:
        figures["surrogate-figure"] = (surrogate_figure, {"surrogate-reward": [{"reward": r} for r in rewards]})
    for i, schedule in enumerate(content.schedules):
        figures[f"validation-figure-{i}"] = (partial(validation_figure, schedule=schedule), {})
    return {key: _with_choices(partial(draw, content), choices) for key, (draw, choices) in figures.items()}


def _with_choices(draw: Callable[..., go.Figure], choices: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    def drawn(narrow: bool, **values: Any) -> dict[str, Any]:
        return draw(narrow=narrow, **values).to_plotly_json()

    first = [drawn(narrow) for narrow in (False, True)]
    others = [
        {key: [_changes(first[narrow], drawn(narrow, **values)) for values in each] for key, each in choices.items()}
        for narrow in (False, True)
    ]
    return {"figure": first[False], "narrow": _changes(*first), "choices": others}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in new.items() if old.get(key) != value}

    traces = [changed(old, new) for old, new in zip(before["data"], after["data"], strict=True)]
    return {"data": traces, "layout": changed(before["layout"], after["layout"])}


def front_figure(
    content: Content, x: str | None = None, y: str | None = None, *, intervals: bool = True, narrow: bool = False
) -> go.Figure:
    """Mean scores in two rewards: points, intervals, and for two rewards all about the front."""
    rewards = content.front["rewards"]
    pair = (x or rewards[0], y or rewards[:2][-1])

    def cloud(points: Sequence[PointEntry], group: Mark, opacity: float, **look: Any) -> go.Scatter:
        scores = [[point["scores"][reward] for point in points] for reward in pair]
        bars = [_bars(each, group.ink(opacity)) if intervals else {"visible": False} for each in scores]
        look |= {"error_x": bars[0], "error_y": bars[1]}
        return _cloud(content, points, group, *map(_means, scores), narrow=narrow, **look)

    traces = []
    for group in reversed(content.groups.values()):
        best, dominated = split_dominated(content.front, content.points_of(group.name))
        if content.flat and group.name in content.front["fronts"]:
            traces += [*_band(content, group), *_staircase(content, group, best), *_hull(content, group)]
        hollow = {"symbol": f"{group.symbol}-open", "color": group.ink(0.5), "size": 8}
        traces += [cloud(dominated, group, 0.2, marker=hollow), cloud(best, group, 0.45)]
    ring = {"symbol": "circle-open", "size": 15 if narrow else 20, "color": "var(--ink)", "line": {"width": 2}}
    traces.append(go.Scatter(mode="markers", x=[], y=[], marker=ring, hoverinfo="skip", meta=[RING]))
    return go.Figure(traces, _layout(*(_score_title(reward, narrow) for reward in pair)))


def forgetting_figure(content: Content, reward: str | None = None, *, narrow: bool = False) -> go.Figure:
    """Perplexity to the right and the mean score in a reward upwards."""
    reward = reward or content.front["rewards"][0]
    traces = []
    for group in reversed(content.groups.values()):
        points = [point for point in content.points_of(group.name) if point["perplexity"]]
        scores, perplexities = [p["scores"][reward] for p in points], [p["perplexity"] for p in points]
        bars = {"error_y": _bars(scores, group.ink(0.45)), "error_x": _bars(perplexities, group.ink(0.2))}
        traces.append(_cloud(content, points, group, _means(perplexities), _means(scores), narrow=narrow, **bars))
    title = _axis_title("perplexity of control texts", "lower: less forgotten", narrow)
    return go.Figure(traces, _layout(title, _score_title(reward, narrow)))


def surrogate_figure(content: Content, reward: str | None = None, *, narrow: bool = False) -> go.Figure:
    """Predicted to the right and measured upwards, with the line on which both agree."""
    reward = reward or content.front["rewards"][0]
    keys = ("predicted", "measured")  # both without rewards that were added when the sweep was over
    of = {entry["id"]: [entry[key].get(reward) for key in keys] for entry in content.predictions}
    values = [value for pair in of.values() for value in pair if value is not None]
    ends = [min(values), max(values)] if values else []
    dots = {"color": "var(--faint)", "dash": "dot", "width": 1}
    traces = [go.Scatter(mode="lines", x=ends, y=ends, hoverinfo="skip", line=dots)]
    for group in content.groups.values():
        points = [point for point in content.points_of(group.name) if point["id"] in of]
        x, y = ([of[point["id"]][k] for point in points] for k in (0, 1))
        traces.append(_cloud(content, points, group, x, y, narrow=narrow, meta=[]))
    short = shortened(visible(reward), 30)
    return go.Figure(traces, _layout(*(isolated(f"{short}: {key} mean score") for key in keys)))


def validation_figure(content: Content, schedule: str, *, narrow: bool = False) -> go.Figure:
    """The validation hypervolume over alpha and beta for one schedule, with a frame around what was chosen."""
    grid, chosen = content.front["validation"]["grid"], content.front["validation"]["chosen"]
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
    several = f" (schedule {isolated(schedule)})" if len(content.schedules) > 1 else ""
    layout = _layout(f"beta{several}", "alpha", annotations=texts, shapes=frames)
    for axis in (layout.xaxis, layout.yaxis):
        axis.update(type="category", showgrid=False)
    return go.Figure(heat, layout)


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
    content: Content,
    points: Sequence[PointEntry],
    group: Mark,
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
        "text": [_hover_text(content, point) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": [group.key],
    }
    return go.Scatter(mode="markers", x=x, y=y, **usual | look)


def _hover_text(content: Content, point: PointEntry) -> str:
    lines = [f"<b>{isolated(': '.join(content.names(point)))}</b>", isolated(settings(point["spec"]), 90)]
    for measure in content.measures:
        if found := measure.of(point):
            parts = [isolated(measure.name, 30), *estimated(found, measure.digits), measure.unit]
            lines.append(" ".join(parts).rstrip())
    return "<br>".join(lines)


def _means(estimates: Sequence[Mean]) -> list[float]:
    return [estimate["mean"] for estimate in estimates]


def _bars(estimates: Sequence[Mean], colour: str) -> dict[str, Any]:
    below, above = bar_lengths(estimates)
    lengths = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return lengths | {"thickness": 1, "width": 0, "color": colour}


def _line(places: Sequence[Sequence[float]], group: Mark, *boxes: str, **look: Any) -> list[go.Scatter]:
    if not places:
        return []
    x, y = zip(*places, strict=True)
    return [go.Scatter(mode="lines", x=x, y=y, hoverinfo="skip", meta=[group.key, *boxes], **look)]


def _staircase(content: Content, group: Mark, best: Sequence[PointEntry]) -> list[go.Scatter]:
    edge = staircase(places(best, content.front["rewards"]), content.front["reference_point"])
    dash = ",".join(f"{length * 1.5:g}px" for length in group.dashes) or "solid"
    look = {"shape": "vh", "color": group.ink(), "dash": dash, "width": 2}
    return _line(edge, group, line=look)


def _hull(content: Content, group: Mark) -> list[go.Scatter]:
    hull = hull_places(content.front, group.name, content.front["rewards"])
    return _line(hull, group, "hulls", line={"color": group.ink(), "width": 1, "dash": "dot"})


def _band(content: Content, group: Mark) -> list[go.Scatter]:
    """The edge of what 2.5 % of the resampled fronts attain, and back along the edge of what 97.5 % attain."""
    attainment = content.front["fronts"][group.name]["attainment"]
    if not attainment:
        return []
    outer, inner = (_steps(attainment[level]) for level in BAND)
    look = {"fill": "toself", "fillcolor": group.ink(0.13), "line": {"width": 0}}
    return _line([*outer, *reversed(inner)], group, "bands", **look)


def _steps(corners: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The corners in ascending order, each reached level from the one before and then straight down."""
    ordered = sorted(map(tuple, corners))
    return [*ordered[:1], *(place for (x, _), (right, y) in pairwise(ordered) for place in ((x, y), (right, y)))]
