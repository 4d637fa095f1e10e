"""Figures that are drawn without pyplot and its global state, and saved as PNG or PDF, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.style import FAINT_INK, GRID, INK


SUFFIXES = (".png", ".pdf")
DPI = 160
# A name with dollar signs is a name, not a formula. Type 42 keeps text in a PDF selectable, as journals ask.
SETTINGS = {"font.family": "DejaVu Sans", "font.size": 11, "text.parse_math": False, "pdf.fonttype": 42}


@contextmanager
def saved_figure(paths: Sequence[str | Path], inches: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty matplotlib figure of this width and height, and saves it when the block ends without an error.

    The suffix of each path says its format. The files hold no date.

    Raises:
        ValueError: a suffix is neither `.png` nor `.pdf`.
        FileNotFoundError: the folder of a path does not exist.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"cannot draw {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot draw {path}: {path.parent} is not a folder; create it or check the path")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=inches, dpi=DPI, facecolor="white", layout="constrained")
        yield figure
        for path in paths:
            suffix = path.suffix.lower()
            dates = {"CreationDate": None} if suffix == ".pdf" else {}
            figure.savefig(path, format=suffix[1:], dpi=DPI, metadata=dates)
            figure.set_layout_engine("none")  # the next format keeps the places that were found for the first


def plain_axes(panel: Any) -> None:
    """Give a panel the look that all panels share: a faint grid behind the data and only two spines."""
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=FAINT_INK, labelsize=10)
    for name in ("xaxis", "yaxis"):
        getattr(panel, name).label.set(color=INK, fontsize=10, linespacing=1.3)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#AAAAAA")
