"""The page as a string."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from rlhf_lines.pareto.forgetting import damage_undone
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.report.completions import Completions, columns, fitting
from rlhf_lines.pareto.report.facts import facts, swept
from rlhf_lines.pareto.schema import looks


MAX_BYTES = 8_000_000
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


def report_html(
    front: Mapping[str, Any],
    completions: Completions | None,
    made: Mapping[str, Any],
    *,
    max_bytes: int = MAX_BYTES,
) -> str:
    """The report as one HTML page that needs no other file; the same arguments give the same page.

    Prompts that do not fit into `max_bytes` (UTF-8) are left out, evenly spaced, and the page says how many. About
    4.9 MB are the page itself with plotly.

    Args:
        front: what `build_front` returns; keys that it may lack leave out their section.
        completions: what the points wrote; None leaves out the comparison.
        made: how it was made, all optional: `title`, `facts` (pairs of name and text), `versions` (name to
            version), `commands` (pairs of purpose and command), `merges` (id of a point to the command that makes
            its policy) and `config` (text of `config.yaml`).
        max_bytes: size of the page.

    Raises:
        ValueError: a number of `front` is not finite.
    """
    data = {
        "front": front,
        "groups": _groups(front),
        "policies": policy_names(front["policies"]),
        "undone": damage_undone(front),
        "swept": swept(front),
        "facts": facts(front),
        "made": made,
        "completions": None,
    }
    page = _page(data)
    if completions is None:
        return page
    room = max_bytes - _size(page)
    data["completions"] = columns(fitting(completions, lambda some: _size(in_script(columns(some))), room))
    return _page(data)


def in_script(value: Any) -> str:
    r"""`value` as JSON that can stand inside a script element and means the same.

    No `<`, `>` or `&` is left, so nothing in it can end the element or begin a comment, nor a line separator that
    older JavaScript refuses, nor half of a surrogate pair, which UTF-8 cannot hold.

    >>> in_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def on_dark(colour: str) -> str:
    """The colour (`#RRGGBB`), mixed with so much white that it can be told from a dark page.

    >>> on_dark("#000000"), on_dark("#56B4E9")
    ('#999999', '#56B4E9')
    """
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for white in range(0, 101, 5):
        mixed = [round(c + (255 - c) * white / 100) for c in channels]
        if luminance(mixed) >= DARK_LUMINANCE:
            break
    return "#" + "".join(f"{c:02X}" for c in mixed)


def luminance(channels: list[int]) -> float:
    """The relative luminance of red, green and blue of 0 to 255 (WCAG 2.2, "relative luminance")."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _groups(front: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for group in looks(point["group"] for point in front["points"]).values():
        symbol, character = SYMBOLS[group.marker]
        groups.append(
            {
                "name": group.name,
                "label": group.label,
                "colour": group.colour,
                "dark_colour": on_dark(group.colour),
                "symbol": symbol,
                "character": character,
                "dash": ",".join(f"{length * 1.5:g}px" for length in group.dashes) or "solid",
            }
        )
    return groups


def _page(data: Mapping[str, Any]) -> str:
    plotly, script = _plotly(), _part("page.js")
    parts = {
        "policy": _policy(plotly, script),
        "style": _part("page.css"),
        "data": in_script(data),
        "plotly": plotly,
        "script": script,
    }
    # In one pass, so that what a part contains is never taken for the name of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _policy(*scripts: str) -> str:
    """The Content-Security-Policy: these scripts, the page's own styles and drawn images, nothing else."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


@cache
def _part(name: str) -> str:
    return files("rlhf_lines.pareto.report").joinpath(name).read_text(encoding="utf-8")


def _size(text: str) -> int:
    return len(text.encode())
