"""The figures of the page as plotly draws them, for a wide and for a narrow screen, with what each control changes.

Colours are names of the style sheet (`Group.ink`), so that one figure serves light and dark screens. A trace says in
`meta` which boxes must be checked for it to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from plotly import graph_objects as go

from rlhf_lines.pareto.figures.benchmarks import better_text, drawn_metrics, gained
from rlhf_lines.pareto.figures.canvas import bar_lengths, split_dominated
from rlhf_lines.pareto.figures.front import hull_places, places, staircase
from rlhf_lines.pareto.figures.kl import along_weights
from rlhf_lines.pareto.figures.validation import in_order
from rlhf_lines.pareto.report.content import Choice, Content, Measure, Tuned
from rlhf_lines.pareto.report.groups import Mark
from rlhf_lines.pareto.report.words import estimated, isolated, number, setting, settings, visible
from rlhf_lines.pareto.schema import Mean, PointEntry, label, shortened
from rlhf_lines.pareto.table import decimals, value_of
from rlhf_lines.pareto.utility import utilities


RING, COMPARED, SELECTED = "ring", "compared", "selected"  # the meta of traces around points, which the page fills
AROUND = (RING, COMPARED, SELECTED)
ROW = 0.7  # of the distance of two rows, that the points of a group take


def page_figures(content: Content) -> dict[str, dict[str, Any]]:
    """By the id of its element, every figure as JSON values.

    `figure` is what plotly draws at first on a wide screen, and `narrow` has the parts of its traces and of its layout
    that are others on a narrow one. `choices` has those that a control changes, by its id and by its value (that of a
    select, or 0 and 1 of a box), first on a wide and then on a narrow screen.
    """
    rewards = content.front["objectives"]
    switch = {"intervals": [{"intervals": False}, {}]}
    axes = {f"axis-{axis}": [{axis: reward} for reward in rewards] for axis in "xy"}
    figures: dict[str, tuple[Callable[..., go.Figure], Mapping[str, Any]]]
    if len(rewards) == 1:
        figures = {"front-figure": (rows_figure, switch)}
    elif len(rewards) <= 3:
        figures = {"front-figure": (front_figure, switch if content.flat else axes | switch)}
    else:
        figures = {"front-figure": (parallel_figure, {}), "pair-figure": (front_figure, axes | switch)}
    if any(point["kl"] for point in content.front["points"]):
        choices = [{"choice": choice} for choice in utility_choices(content)]
        figures["kl-figure"] = (kl_figure, {"kl-reward": [*choices, *({"reward": reward} for reward in rewards)]})
    if is_ternary(content):
        choices = [{}, *({"measure": measure} for measure in ternary_measures(content))]
        figures["ternary-figure"] = (ternary_figure, {"ternary-measure": choices})
    if any(point["perplexity"] for point in content.front["points"]):
        figures["forgetting-figure"] = (forgetting_figure, {"forgetting-reward": [{"reward": r} for r in rewards]})
    if metrics := drawn_metrics(content.front):
        choices = {"benchmarks-metric": [{"metric": metric} for metric in metrics]}
        figures["benchmarks-figure"] = (benchmarks_figure, choices)
    if content.predictions:
        figures["surrogate-figure"] = (surrogate_figure, {"surrogate-reward": [{"reward": r} for r in rewards]})
    for i, (tuned, schedule) in enumerate(validation_maps(content)):
        figures[f"validation-figure-{i}"] = (partial(validation_figure, tuned=tuned, schedule=schedule), {})
    return {key: _with_choices(partial(draw, content), choices) for key, (draw, choices) in figures.items()}


def utility_choices(content: Content) -> list[Choice | None]:
    """The preferences at which a utility may be drawn, first None: all objectives alike; none for one objective."""
    return [None, *content.choices] if len(content.front["objectives"]) > 1 else []


def utility_name(choice: Choice | None) -> str:
    """What the utility at a preference is called."""
    return "utility, all objectives alike" if choice is None else f"utility at {choice.ratio}"


def is_ternary(content: Content) -> bool:
    """Whether the weights are those of three policies, which are a place in a triangle."""
    return len(content.policy_names) == 3 and len(content.steps) > 1


def ternary_measures(content: Content) -> list[Measure]:
    """What may colour the weights, beside the utility."""
    return [*content.scores, *content.behaviour]


def validation_maps(content: Content) -> list[tuple[Tuned, str]]:
    """A map for every schedule that was tried for a group."""
    return [(tuned, schedule) for tuned in content.tuned for schedule in tuned.schedules]


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
    rewards = content.front["objectives"]
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
            traces += [*_staircase(content, group, best), *_hull(content, group)]
        hollow = {"symbol": f"{group.symbol}-open", "color": group.ink(0.5), "size": 8}
        traces += [cloud(dominated, group, 0.2, marker=hollow), cloud(best, group, 0.45)]
    return go.Figure([*traces, *_rings(narrow)], _layout(*(_score_title(reward, narrow) for reward in pair)))


def rows_figure(content: Content, *, intervals: bool = True, narrow: bool = False) -> go.Figure:
    """The scores of one objective, a row for each group, in which points stand below one another."""
    (reward,) = content.front["objectives"]
    traces = []
    for row, group in enumerate(content.groups.values()):
        points = content.points_of(group.name)
        heights = [row + ROW * ((i + 0.5) / len(points) - 0.5) for i in range(len(points))]
        scores = [point["scores"][reward] for point in points]
        bars = {"error_x": _bars(scores, group.ink(0.45)) if intervals else {"visible": False}}
        traces.append(_cloud(content, points, group, _means(scores), heights, narrow=narrow, **bars))
    layout = _layout(_score_title(reward, narrow), "")
    labels = [isolated(group.label, 14 if narrow else 28) for group in content.groups.values()]
    layout.yaxis.update(tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.5, -0.5])
    return go.Figure([*traces, *_rings(narrow)], layout)


def parallel_figure(content: Content, *, narrow: bool = False) -> go.Figure:
    """An axis for every objective, from the reference point (0) to the ideal point (1)."""
    front, rewards = content.front, content.front["objectives"]
    traces = []
    for group in reversed(content.groups.values()):
        best, dominated = split_dominated(front, content.points_of(group.name))
        for points, opacity in ((dominated, 0.2), (best, 0.5)):
            x, y, ids, texts = [], [], [], []
            for point in points:
                scores = [point["scores"][reward]["mean"] for reward in rewards]
                heights = utilities(scores, front["reference_point"], front["ideal_point"]).tolist()
                x += [*range(len(rewards)), None]
                y += [*heights, None]
                ids += [point["id"]] * (len(rewards) + 1)
                texts += [_hover_text(content, point)] * (len(rewards) + 1)
            look = {"color": group.ink(opacity), "symbol": group.symbol, "size": 7}
            line = {"color": group.ink(opacity), "width": 1.5, "dash": _dash(group)}
            traces.append(
                go.Scatter(
                    mode="lines+markers", x=x, y=y, customdata=ids, text=texts, marker=look, line=line,
                    meta=[group.key], hovertemplate="%{text}<extra></extra>", connectgaps=False,
                )
            )  # fmt: skip
    layout = _layout("", "0: reference point, 1: ideal point")
    labels = [isolated(reward, 10 if narrow else 18) for reward in rewards]
    places = {"tickvals": list(range(len(rewards))), "ticktext": labels, "ticklabeloverflow": "allow"}
    layout.xaxis.update(range=[-0.2, len(rewards) - 0.8], **places)
    layout.margin.r = 48
    return go.Figure([*traces, *_rings(narrow)], layout)


def kl_figure(
    content: Content, reward: str | None = None, choice: Choice | None = None, *, narrow: bool = False
) -> go.Figure:
    """The KL to the SFT model to the right, and upwards a score or, without one, the utility at a preference.

    The points of a group are joined along its weights.
    """
    preference = choice and choice.preference
    traces = []
    for group in reversed(content.groups.values()):
        points, joined = along_weights([point for point in content.points_of(group.name) if point["kl"]])
        kl, bars = [point["kl"] for point in points], {}
        if reward is None:
            heights = [content.utility(point, preference) for point in points]
        else:
            scores = [point["scores"][reward] for point in points]
            heights, bars = _means(scores), {"error_y": _bars(scores, group.ink(0.45))}
        look = {"mode": "markers"}
        if joined:
            look = {"mode": "lines+markers", "line": {"color": group.ink(0.5), "width": 2, "dash": _dash(group)}}
        bars |= {"error_x": _bars(kl, group.ink(0.2))}
        traces.append(_cloud(content, points, group, _means(kl), heights, narrow=narrow, **look, **bars))
    title = _axis_title(utility_name(choice), "higher is better", narrow)
    y = title if reward is None else _score_title(reward, narrow)
    return go.Figure([*traces, *_rings(narrow)], _layout(_axis_title("KL to SFT, nats", "lower is closer", narrow), y))


def ternary_figure(content: Content, measure: Measure | None = None, *, narrow: bool = False) -> go.Figure:
    """The weights of three policies in a triangle, coloured by a measure; one group at a time."""

    def value(point: PointEntry) -> float | None:
        if measure is None:
            return content.utility(point)
        found = measure.of(point)
        return found and found["mean"]

    steps = [step for step in content.steps if min(step.parts) >= 0]
    of_group: dict[str, list[tuple[PointEntry, list[float]]]] = {}
    for step in steps:
        for i in step.points:
            of_group.setdefault(content.by_id[i]["group"], []).append((content.by_id[i], step.parts))
    values = [found for each in of_group.values() for point, _ in each if (found := value(point)) is not None]
    ends = {"cmin": min(values, default=0), "cmax": max(values, default=1)}
    title = "utility" if measure is None else isolated(measure.name, 30)
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    traces = []
    for name, found in of_group.items():
        points, parts = zip(*found, strict=True)
        a, b, c = zip(*parts, strict=True)
        look = {"color": [value(point) for point in points], "colorscale": "Cividis", "size": 16 if narrow else 22}
        look |= {"symbol": "hexagon", "colorbar": bar, "showscale": True, "line": {"color": "var(--faint)", "width": 1}}
        traces.append(
            go.Scatterternary(
                mode="markers", a=a, b=b, c=c, marker=look | ends, customdata=[point["id"] for point in points],
                text=[_hover_text(content, point) for point in points], hovertemplate="%{text}<extra></extra>",
                meta=[f"ternary-{content.groups[name].key}"], cliponaxis=False,
            )
        )  # fmt: skip
    layout = _layout("", "")
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--faint)", "tickvals": [0.25, 0.5, 0.75]}
    axes = {
        f"{key}axis": {**axis, "title": {"text": isolated(name, 12 if narrow else 18)}}
        for key, name in zip("abc", content.policy_names, strict=True)
    }
    layout.update(ternary={"sum": 1, "bgcolor": "rgba(0,0,0,0)", **axes}, xaxis=None, yaxis=None)
    layout.margin.update(t=44, r=30, l=44)
    rings = [go.Scatterternary(**_ring_look(key, narrow), a=[], b=[], c=[], cliponaxis=False) for key in AROUND]
    return go.Figure([*traces, *rings], layout)


def forgetting_figure(content: Content, reward: str | None = None, *, narrow: bool = False) -> go.Figure:
    """Perplexity to the right and the mean score in a reward upwards."""
    reward = reward or content.front["objectives"][0]
    traces = []
    for group in reversed(content.groups.values()):
        points = [point for point in content.points_of(group.name) if point["perplexity"]]
        scores, perplexities = [p["scores"][reward] for p in points], [p["perplexity"] for p in points]
        bars = {"error_y": _bars(scores, group.ink(0.45)), "error_x": _bars(perplexities, group.ink(0.2))}
        traces.append(_cloud(content, points, group, _means(perplexities), _means(scores), narrow=narrow, **bars))
    title = _axis_title("perplexity of control texts", "lower: less forgotten", narrow)
    return go.Figure(traces, _layout(title, _score_title(reward, narrow)))


def benchmarks_figure(content: Content, metric: str | None = None, *, narrow: bool = False) -> go.Figure:
    """What a point gained to the right, and upwards a metric of a benchmark minus the SFT model's."""
    metric, objectives = metric or drawn_metrics(content.front)[0], content.front["objectives"]
    traces = []
    for group in reversed(content.groups.values()):
        points = [point for point in content.points_of(group.name) if metric in point["benchmark_changes"]]
        changes = [point["benchmark_changes"][metric] for point in points]
        found: list[Mean] = [{"mean": each["value"], "low": each["low"], "high": each["high"]} for each in changes]
        x = [gained(content.front, point) for point in points]
        bars = {"error_x": _bars(x, group.ink(0.2)), "error_y": _bars(found, group.ink(0.45))}
        traces.append(_cloud(content, points, group, _means(x), _means(found), narrow=narrow, **bars))
    title = _axis_title(utility_name(None), "higher is better", narrow)
    x_title = _score_title(objectives[0], narrow) if len(objectives) == 1 else title
    notes = ", ".join(filter(None, ["0: the SFT model", better_text(content.front, metric)]))
    layout = _layout(x_title, _axis_title(f"{shortened(visible(metric), 34)} less SFT's", notes, narrow))
    layout.yaxis.update(zeroline=True, zerolinecolor="var(--faint)")
    return go.Figure(traces, layout)


def surrogate_figure(content: Content, reward: str | None = None, *, narrow: bool = False) -> go.Figure:
    """Predicted to the right and measured upwards, with the line on which both agree."""
    reward = reward or content.front["objectives"][0]
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


def validation_figure(content: Content, tuned: Tuned, schedule: str, *, narrow: bool = False) -> go.Figure:
    """The validation hypervolume of a group over alpha and beta for one schedule, a frame around what was chosen."""
    grid, chosen = tuned.tuning["grid"], tuned.tuning["chosen"]
    entries = {(e["alpha"], e["beta"]): value_of(e["hypervolume"]) for e in grid if e["schedule"] == schedule}
    alphas, betas = (in_order({pair[k] for pair in entries}) for k in (0, 1))
    # All maps share their colours.
    values = [value_of(entry["hypervolume"]) for each in content.tuned for entry in each.tuning["grid"]]
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
    several = f", schedule {isolated(schedule, 20)}" if len(tuned.schedules) > 1 else ""
    layout = _layout(f"beta ({isolated(label(tuned.group), 24)}{several})", "alpha", annotations=texts, shapes=frames)
    for axis in (layout.xaxis, layout.yaxis):
        axis.update(type="category", showgrid=False)
    return go.Figure(heat, layout)


def _rings(narrow: bool) -> list[go.Scatter]:
    """Around the points at the slider's weights, that which is selected, and that which it is compared with."""
    return [go.Scatter(**_ring_look(key, narrow), x=[], y=[]) for key in AROUND]


def _ring_look(key: str, narrow: bool) -> dict[str, Any]:
    size = 15 if narrow else 20
    looks = {
        RING: {"symbol": "circle-open", "size": size, "color": "var(--ink)", "line": {"width": 2}},
        COMPARED: {"symbol": "square-open", "size": size + 6, "color": "var(--accent)", "line": {"width": 1}},
        SELECTED: {"symbol": "square-open", "size": size + 6, "color": "var(--accent)", "line": {"width": 4}},
    }
    return {"mode": "markers", "marker": looks[key], "hoverinfo": "skip", "meta": [key]}


def _dash(group: Mark) -> str:
    return ",".join(f"{length * 1.5:g}px" for length in group.dashes) or "solid"


def _axis_title(quantity: str, note: str, narrow: bool) -> str:
    """A phone has room for less of it on each of two lines."""
    return f"{isolated(quantity, 28)}<br>({note})" if narrow else f"{isolated(quantity)} ({note})"


def _score_title(reward: str, narrow: bool) -> str:
    return _axis_title(f"{shortened(visible(reward), 34)}: mean score", "higher is better", narrow)


def _layout(x: str, y: str, **more: Any) -> go.Layout:
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--faint)", "zeroline": False}
    ink = {"color": "var(--ink)"}
    return go.Layout(
        template={},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, **ink},
        margin={"l": 56, "r": 20, "t": 12, "b": 52},
        # Margins grow on an axis' own side alone: the last label at the right edge would come and go with its margin.
        xaxis={"title": {"text": x, "standoff": 10}, "automargin": "bottom", **axis},
        yaxis={"title": {"text": y, "standoff": 10}, "automargin": "left", **axis},
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
    return go.Scatter(x=x, y=y, **{"mode": "markers"} | usual | look)


def _hover_text(content: Content, point: PointEntry) -> str:
    lines = [f"<b>{isolated(': '.join(content.names(point)))}</b>", isolated(settings(point["spec"]), 90)]
    for measure in [*content.scores, *content.behaviour, *content.wins[:1]]:
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
    edge = staircase(places(best, content.front["objectives"]), content.front["reference_point"])
    look = {"shape": "vh", "color": group.ink(), "dash": _dash(group), "width": 2}
    return _line(edge, group, line=look)


def _hull(content: Content, group: Mark) -> list[go.Scatter]:
    hull = hull_places(content.front, group.name, content.front["objectives"])
    return _line(hull, group, "hulls", line={"color": group.ink(), "width": 1, "dash": "dot"})
