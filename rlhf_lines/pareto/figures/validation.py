"""The heat map from which alpha, beta and the schedule were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.figures import canvas
from rlhf_lines.pareto.schema import GROUPS, SOUP, Front, GridEntry, ScalingEntry
from rlhf_lines.pareto.table import decimals, estimate_text, setting


# Even in lightness, and told apart by eyes without red or green cones.
COLOUR_MAP = "cividis"
MISSING = "#F2F2F2"
CELL_INCHES = (1.15, 0.62)
SIDE_INCHES = 1.3
LEAST_PANEL_INCHES = 3.4
HIGH_INCHES = 2.2


def plot_validation(front: Front, path: str | Path, *others: str | Path) -> Path:
    """Write the heat map of the validation hypervolume as PNG or PDF, as the suffix says, and return its path.

    One panel per schedule, beta to the right and alpha upwards, each in ascending order with `auto` last. Every cell
    says its value and the interval over prompts; pairs that were not tried are empty. The chosen cell has a frame. All
    panels share the colours.

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

    grid = validation["grid"]
    schedules = list(dict.fromkeys(row["schedule"] for row in grid))
    alphas, betas = (in_order({row[key] for row in grid}) for key in ("alpha", "beta"))
    values = [row["hypervolume"]["value"] for row in grid]
    colours = Normalize(min(values), max(values))
    width = max(LEAST_PANEL_INCHES, SIDE_INCHES + CELL_INCHES[0] * len(betas)) * len(schedules) + SIDE_INCHES
    height = HIGH_INCHES + CELL_INCHES[1] * max(2, len(alphas))
    with canvas.saved_figure([path, *others], (width, height)) as figure:
        panels = figure.subplots(1, len(schedules), squeeze=False).ravel()
        for panel, schedule in zip(panels, schedules, strict=True):
            rows = [row for row in grid if row["schedule"] == schedule]
            image = _draw_panel(panel, rows, alphas, betas, colours, decimals(values))
            panel.set_title(f"schedule: {schedule}", loc="left", fontsize=11, color=canvas.INK)
        _mark_chosen(figure, panels, schedules, alphas, betas, validation["chosen"])
        bar = figure.colorbar(image, ax=list(panels), shrink=0.9)
        bar.set_label("hypervolume\n(product of scores)", color=canvas.INK, fontsize=10, linespacing=1.3)
        bar.ax.tick_params(colors=canvas.FAINT_INK, labelsize=9)
        bar.outline.set_visible(False)
        figure.suptitle(
            f"{validation['prompts']} validation prompts, {validation['weights']} weights, higher is better",
            x=0.01,
            ha="left",
            fontsize=10.5,
            color=canvas.INK,
        )
    return Path(path)


def in_order(values: set[float | str]) -> list[float | str]:
    """Numbers in ascending order, then words.

    >>> in_order({"auto", 1.0, 0.5})
    [0.5, 1.0, 'auto']
    """
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _draw_panel(
    panel: Any,
    rows: Sequence[GridEntry],
    alphas: Sequence[float | str],
    betas: Sequence[float | str],
    colours: Any,
    digits: int,
) -> Any:
    import numpy as np

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
        panel.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    panel.set_xticks(range(len(betas)), [setting(beta) for beta in betas])
    panel.set_yticks(range(len(alphas)), [setting(alpha) for alpha in alphas])
    panel.set_xlabel("beta (added to the factor\nup to the last layer)", color=canvas.INK, fontsize=10)
    panel.set_ylabel("alpha (factor\nof the first layer)", color=canvas.INK, fontsize=10)
    panel.tick_params(colors=canvas.FAINT_INK, labelsize=10, length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    return image


def _mark_chosen(
    figure: Any,
    panels: Sequence[Any],
    schedules: Sequence[str],
    alphas: Sequence[float | str],
    betas: Sequence[float | str],
    chosen: ScalingEntry,
) -> None:
    from matplotlib.patches import Rectangle

    corner = (betas.index(chosen["beta"]) - 0.5, alphas.index(chosen["alpha"]) - 0.5)
    frame = {"fill": False, "edgecolor": GROUPS[SOUP].colour, "linewidth": 3.0}
    panels[schedules.index(chosen["schedule"])].add_patch(Rectangle(corner, 1, 1, **frame, clip_on=False, zorder=5))
    text = f"chosen: alpha {setting(chosen['alpha'])}, beta {setting(chosen['beta'])}, schedule {chosen['schedule']}"
    handles = [Rectangle((0, 0), 1, 1, **frame)]
    figure.legend(handles, [text], loc="outside lower left", frameon=False, fontsize=10, labelcolor=canvas.INK)
