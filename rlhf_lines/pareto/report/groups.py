"""How groups look on the page: their marks, and their colours on light and dark screens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_lines.pareto.schema import Group, looks


# From matplotlib's names of markers to plotly's, with a character that looks like it.
SYMBOLS = {
    "o": ("circle", "●"),
    "s": ("square", "■"),
    "^": ("triangle-up", "▲"),
    "v": ("triangle-down", "▼"),
    "D": ("diamond", "◆"),
    "*": ("star", "★"),
    "P": ("cross", "✚"),
    "X": ("x", "✖"),
    "p": ("pentagon", "⬟"),
    "<": ("triangle-left", "◀"),
}
DARK_LUMINANCE = 0.3  # on the dark page (#14171c, luminance 0.009) a contrast of 6
OPACITIES = (1.0, 0.5, 0.45, 0.2, 0.13)


@dataclass(frozen=True)
class Mark(Group):
    """A group on the page.

    Attributes:
        key: its name in the page's own code, where no name from outside is used.
        symbol: its marker, as plotly names it.
        character: its marker in a text.
    """

    key: str
    symbol: str
    character: str

    def ink(self, opacity: float = 1.0) -> str:
        """The colour by its name in the style sheet, which has another one for dark screens."""
        return f"var(--{self.key}-{100 * opacity:g})"


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """The groups of these names, as `looks` orders them."""
    groups = enumerate(looks(names).values())
    return {group.name: Mark(*vars(group).values(), f"group-{i}", *SYMBOLS[group.marker]) for i, group in groups}


def palette(groups: Iterable[Mark]) -> str:
    """The style sheet that says what `Mark.ink` is on light and on dark screens."""
    inks = [(group.ink(opacity)[4:-1], group.colour, opacity) for group in groups for opacity in OPACITIES]
    light = "".join(f"{ink}:{faded(colour, opacity)};" for ink, colour, opacity in inks)
    dark = "".join(f"{ink}:{faded(on_dark(colour), opacity)};" for ink, colour, opacity in inks)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def faded(colour: str, opacity: float) -> str:
    """The colour (`#RRGGBB`) as CSS writes it with an opacity.

    >>> faded("#0072B2", 0.5), faded("#0072B2", 1.0)
    ('rgba(0,114,178,0.5)', '#0072B2')
    """
    return colour if opacity == 1.0 else f"rgba({','.join(map(str, bytes.fromhex(colour[1:])))},{opacity:g})"


def on_dark(colour: str) -> str:
    """The colour (`#RRGGBB`), mixed with so much white that it can be told from a dark page.

    >>> on_dark("#000000"), on_dark("#56B4E9")
    ('#999999', '#56B4E9')
    """
    for white in range(0, 101, 5):
        mixed = [round(c + (255 - c) * white / 100) for c in bytes.fromhex(colour[1:])]
        if luminance(mixed) >= DARK_LUMINANCE:
            break
    return "#" + "".join(f"{c:02X}" for c in mixed)


def luminance(channels: list[int]) -> float:
    """The relative luminance of red, green and blue of 0 to 255 (WCAG 2.2, "relative luminance")."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
