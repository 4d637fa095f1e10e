"""The heat maps from which alpha, beta and the schedule of every group were chosen."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.schema import GROUPS, LINES, SOUP, Front, Tuning, label, shortened
from rlhf_lines.pareto.table import decimals, estimate_text, setting


# Even in lightness, and told apart by eyes without red or green cones.
COLOUR_MAP = "cividis"
MISSING = "#F2F2F2"
FRAME = {"fill": False, "edgecolor": GROUPS[SOUP].colour, "linewidth": 2.0}
CELL_INCHES = (1.0, 0.36)
SIDE_INCHES = 0.6
HIGH_INCHES = 0.75


def plot_validation(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the heat map of the validation hypervolume as PNG or PDF, as the suffix says, and return its path.

    One panel per group and schedule, beta to the right and alpha upwards, each in ascending order with `auto` last.
    Every cell says its value and the interval over prompts; pairs that were not tried are empty. The chosen cell has a
    frame. All panels share the colours, and stand below one another where they do not fit into the width of a page.

    Args:
        front: what `build_front` returns, with `validation`.
        path: file to write; its folder must exist.
        others: further files of the same picture, such as a PDF beside a PNG.

    Raises:
        ValueError: the front has no validation results or the suffix is another one.
        FileNotFoundError: the folder of `path` does not exist.
    """
    validation = front["validation"]
    if validation is None or not validation["grid"]:
        raise ValueError(
            "the front has no validation results to draw; "
            "a sweep has them when its config gives several values of alpha, beta or schedule"
        )
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    tunings = {LINES: validation, **validation.get("groups", {})}
    maps = [
        (name, schedule, tuning)
        for name, tuning in tunings.items()
        for schedule in dict.fromkeys(row["schedule"] for row in tuning["grid"])
    ]
    values = [row["hypervolume"]["value"] for tuning in tunings.values() for row in tuning["grid"]]
    colours, digits = Normalize(min(values), max(values)), decimals(values)
    sizes = [tuple(len({row[key] for row in tuning["grid"]}) for key in ("alpha", "beta")) for _, _, tuning in maps]
    rows, cells = max(size[0] for size in sizes), max(size[1] for size in sizes)
    panel_width = SIDE_INCHES + CELL_INCHES[0] * cells
    across = max(1, min(len(maps), int(canvas.PAGE_INCHES / panel_width)))
    down = math.ceil(len(maps) / across)
    size = (max(canvas.COLUMN_INCHES, panel_width * across), (HIGH_INCHES + CELL_INCHES[1] * max(2, rows)) * down + 0.5)
    with canvas.saved_figure([path, *others], size) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, (name, schedule, tuning) in zip(panels, maps, strict=False):
            _draw_panel(panel, tuning, schedule, colours, digits)
            several = len({row["schedule"] for row in tuning["grid"]}) > 1
            title = label(name) + (f", {shortened(schedule)}" if several else "")
            panel.set_title(title, loc="left", fontsize=canvas.POINTS, color=canvas.INK)
        for panel in panels[len(maps) :]:
            panel.set_axis_off()
        frame = Rectangle((0, 0), 1, 1, **FRAME)
        edges = [label(name) for name, tuning in tunings.items() if tuning.get("at_edge")]
        text = f"chosen (at an edge of what was tried: {', '.join(edges)})" if edges else "chosen"
        about = f"hypervolume, {validation['prompts']} validation prompts, {validation['weights']} weights"
        figure.legend([frame], [textwrap.fill(text, 50)], **canvas.LOWER_LEGEND, title=about)
    return Path(path)


def in_order(values: set[float | str]) -> list[float | str]:
    """Numbers in ascending order, then words.

    >>> in_order({"auto", 1.0, 0.5})
    [0.5, 1.0, 'auto']
    """
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _draw_panel(panel: Any, tuning: Tuning, schedule: str, colours: Any, digits: int) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    rows = [row for row in tuning["grid"] if row["schedule"] == schedule]
    alphas, betas = (in_order({row[key] for row in tuning["grid"]}) for key in ("alpha", "beta"))
    values = np.full((len(alphas), len(betas)), np.nan)
    for row in rows:
        values[alphas.index(row["alpha"]), betas.index(row["beta"])] = row["hypervolume"]["value"]
    panel.set_facecolor(MISSING)
    image = panel.imshow(np.ma.masked_invalid(values), COLOUR_MAP, norm=colours, origin="lower", aspect="auto")
    for row in rows:
        i, j, volume = alphas.index(row["alpha"]), betas.index(row["beta"]), row["hypervolume"]
        text = estimate_text(volume, digits).replace(" [", "\n[")
        red, green, blue, _ = image.cmap(colours(volume["value"]))
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.46  # where black and white are equally readable
        look = {"fontsize": canvas.POINTS, "color": "white" if dark else "black", "linespacing": 1.05}
        panel.text(j, i, text, ha="center", va="center", **look)
    chosen = tuning["chosen"]
    if chosen["schedule"] == schedule:
        corner = (betas.index(chosen["beta"]) - 0.5, alphas.index(chosen["alpha"]) - 0.5)
        panel.add_patch(Rectangle(corner, 1, 1, **FRAME, clip_on=False, zorder=5))
    panel.set_xticks(range(len(betas)), [setting(beta) for beta in betas])
    panel.set_yticks(range(len(alphas)), [setting(alpha) for alpha in alphas])
    panel.set_xlabel("beta", color=canvas.INK, fontsize=canvas.POINTS)
    panel.set_ylabel("alpha", color=canvas.INK, fontsize=canvas.POINTS)
    panel.tick_params(colors=canvas.FAINT_INK, labelsize=canvas.POINTS, length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
