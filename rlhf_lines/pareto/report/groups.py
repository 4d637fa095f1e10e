"""How groups look on the page: marks, names, and colours for light and dark screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lines.pareto.style import colour, dashes, label, marker, ordered


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
OPACITIES = (0.13, 0.2, 0.45, 0.5)


@dataclass(frozen=True)
class Group:
    """A group of points: `key` is its name in the page's own code, where no name from outside is used.

    `symbol` is plotly's and `character` looks like it; `dash` is SVG's.
    """

    key: str
    name: str
    label: str
    colour: str
    symbol: str
    character: str
    dash: str

    def ink(self, opacity: float = 1.0) -> str:
        """The style sheet's name of the colour, which is another one on a dark screen."""
        return f"var(--{self.key})" if opacity == 1.0 else f"var(--{self.key}-{100 * opacity:.0f})"


def page_groups(front: Mapping[str, Any]) -> dict[str, Group]:
    """The groups of a front by name, in the order in which they are listed."""
    names = ordered(point["group"] for point in front["points"])
    groups = {}
    for i, name in enumerate(names):
        dash = ",".join(f"{length * 1.5:g}px" for length in dashes(name, names)) or "solid"
        look = (colour(name, names), *SYMBOLS[marker(name, names)], dash)
        groups[name] = Group(f"group-{i}", name, label(name), *look)
    return groups


def palette(groups: Sequence[Group]) -> str:
    """The style sheet that says what `Group.ink` is on light and on dark screens."""
    light, dark = (
        "".join(f"{group.ink(opacity)[4:-1]}:{faded(of(group.colour), opacity)};" for group in groups
                for opacity in (1.0, *OPACITIES))
        for of in (str, on_dark)
    )  # fmt: skip
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def faded(colour: str, opacity: float) -> str:
    """The colour (`#RRGGBB`) as CSS writes it with an opacity.

    >>> faded("#0072B2", 0.5), faded("#0072B2", 1.0)
    ('rgba(0,114,178,0.5)', '#0072B2')
    """
    return colour if opacity == 1.0 else f"rgba({','.join(map(str, _channels(colour)))},{opacity:g})"


def on_dark(colour: str) -> str:
    """The colour (`#RRGGBB`), mixed with so much white that it can be told from a dark page.

    >>> on_dark("#000000"), on_dark("#56B4E9")
    ('#999999', '#56B4E9')
    """
    channels = _channels(colour)
    for white in range(0, 101, 5):
        mixed = [round(c + (255 - c) * white / 100) for c in channels]
        if luminance(mixed) >= DARK_LUMINANCE:
            break
    return "#" + "".join(f"{c:02X}" for c in mixed)


def luminance(channels: list[int]) -> float:
    """The relative luminance of red, green and blue of 0 to 255 (WCAG 2.2, "relative luminance")."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
