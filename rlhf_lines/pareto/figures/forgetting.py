"""The picture of forgetting: perplexity of texts outside the task against each reward."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.forgetting import Undone, damage_undone, sft_point
from rlhf_lines.pareto.schema import GROUPS, SFT, Front, Group, PointEntry, looks, shortened


SFT_LINE = {"color": GROUPS[SFT].colour, "linewidth": 0.8, "linestyle": canvas.line_style(GROUPS[SFT].dashes)}
KEY_WIDTH = 50  # characters of one line of the key below the panels


def plot_forgetting(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the picture of forgetting as PNG or PDF, as the suffix of `path` says, and return its path.

    One panel per reward: mean score to the right, perplexity of the texts outside the task upwards, one marker per
    point; the SFT model's perplexity is a line across. Arrows lead from each point of the rewarded soup to LiNeS at the
    same weights: how far an arrow comes down to the line is the share of the damage that LiNeS undoes
    (`damage_undone`). Its median over all weights and that of each single policy are written below the panels. Points
    that another point of their group dominates in the rewards are faint and hollow.

    Args:
        front: what `build_front` returns, with perplexities of some points.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: no point has a perplexity or the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    points = [point for point in front["points"] if point["perplexity"] is not None]
    if not points:
        raise ValueError(
            "no point of the front has a perplexity, so there is no forgetting to draw; "
            "name texts outside the task under control: in the sweep's config and sweep again"
        )
    rewards, rows = front["rewards"], damage_undone(front)
    groups = list(looks(point["group"] for point in points).values())
    with canvas.saved_panels([path, *others], len(rewards), len(groups), beside=0.6) as (figure, panels, columns):
        for panel, reward in zip(panels, rewards, strict=True):
            _draw_panel(panel, front, points, groups, rows, reward)
        _draw_legend(figure, front, groups, rows, columns)
    return Path(path)


def change(share: float) -> str:
    """How a share of the damage that is undone reads.

    >>> change(0.4), change(-0.25)
    ('40 % less', '25 % more')
    """
    return f"{100 * abs(share):.0f} % {'less' if share >= 0 else 'more'}"


def perplexity_label(front: Front) -> str:
    """The label of the axis of perplexities, in two lines."""
    about = front["forgetting"]
    texts, source = (f"{about['texts']} ", f"{shortened(about['source'], 24)}, ") if about else ("", "")
    return f"perplexity of {texts}control texts\n{source}lower is better"


def _draw_panel(
    panel: Any,
    front: Front,
    points: Sequence[PointEntry],
    groups: Sequence[Group],
    rows: Sequence[Undone],
    reward: str,
) -> None:
    sft = sft_point(front)
    if sft is not None and sft["perplexity"] is not None:
        panel.axhline(sft["perplexity"]["mean"], **SFT_LINE, zorder=2)
    places = {point["id"]: (point["scores"][reward]["mean"], point["perplexity"]["mean"]) for point in points}
    for row in rows:
        arrow = {
            "arrowstyle": "-|>",
            **canvas.GREY,
            "linewidth": 0.5,
            "shrinkA": 2,
            "shrinkB": 2,
            "mutation_scale": 5,
            "alpha": 0.7,
        }
        panel.annotate("", places[row["point"]], xytext=places[row["soup"]], arrowprops=arrow, zorder=2.5)
    for depth, group in enumerate(reversed(groups)):
        _draw_group(panel, front, [point for point in points if point["group"] == group.name], group, reward, 3 + depth)
    panel.margins(0.09)
    panel.set_xlim(*canvas.score_limits(front, reward))
    panel.set_xlabel(canvas.score_label(reward))
    panel.set_ylabel(perplexity_label(front))
    canvas.plain_axes(panel)


def _draw_group(panel: Any, front: Front, points: Sequence[PointEntry], group: Group, reward: str, depth: int) -> None:
    best, dominated = canvas.split_dominated(front, points)
    for drawn, strength in ((dominated, 0.12), (best, 0.4 if group.name in canvas.COMPARED else 0.25)):
        scores, perplexities = [point["scores"][reward] for point in drawn], [point["perplexity"] for point in drawn]
        look = {"dominated": drawn is dominated, "strength": strength}
        canvas.draw_points(panel, group, scores, perplexities, **look, depth=depth)


def _draw_legend(figure: Any, front: Front, groups: Sequence[Group], rows: Sequence[Undone], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [canvas.group_handle(group, group.label, joined=False) for group in groups]
    figure.legend(handles=handles, **canvas.UPPER_LEGEND, ncols=columns)
    keys = {}
    shares = [row["damage_undone"] for row in rows if row["damage_undone"] is not None]
    if shares:
        text = f"soup to LiNeS: {change(median(shares))} damage"
        if len(shares) > 1:
            text += f" (median of {len(shares)})"
        single = [row for row in rows if row["policy"] is not None and row["damage_undone"] is not None]
        if single:
            alone = ", ".join(f"{row['policy']} {change(row['damage_undone'])}" for row in single)
            text += "\n" + textwrap.fill(f"single policies: {alone}", 2 * KEY_WIDTH if columns > 2 else KEY_WIDTH)
        keys[text] = Line2D([], [], **canvas.GREY, linewidth=0.5, marker=">", markersize=3)
    if GROUPS[SFT] in groups:
        keys["SFT's perplexity"] = Line2D([], [], **SFT_LINE)
    keys["dominated"] = Line2D(
        [], [], **canvas.GREY, linestyle="none", marker="o", markerfacecolor="white", alpha=0.6, markersize=3
    )
    figure.legend(
        keys.values(), keys.keys(), **canvas.LOWER_LEGEND, ncols=1, title=f"{canvas.bars_text(front)}, and over texts"
    )
