"""How numbers, settings and texts are written on the page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from html import escape

from rlhf_lines.merge.rules.profile import options_text
from rlhf_lines.pareto.origin import weights_text
from rlhf_lines.pareto.schema import Mean, Spec, Value, shortened
from rlhf_lines.pareto.table import value_of


MINUS, NOTHING = "\u2212", "\u2013"
JOINERS = "\u200c\u200d\ufe0e\ufe0f"
# They shape letters of some scripts and join emoji; where they stand beside neither, they only hide.
_IDLE_JOINER = re.compile(
    f"(?<![\u0300-\u1fff\u2070-\ufdff\ufe0f-\ufefe\uff00-\U000dffff])[{JOINERS}]"
    "|[\u200c\u200d](?![\u0300-\u1fff\u2070-\ufdff\ufe10-\ufefe\uff00-\U000dffff])"
)
_DRAWN = {0x3000, *map(ord, " \t\n"), *map(ord, JOINERS)}
# Signs that stand before Arabic, Syriac and Kaithi numbers and words, which Unicode counts among the invisible ones.
_DRAWN |= {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
# Blanks that Unicode counts among letters and marks: fillers, the empty Braille cell, variation selectors.
_BLANK = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_BLANK |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0)}
# Control characters have pictures (U+2400); a space that breaks no line has the sign of that.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421, 0xA0: 0x237D}


class _Shown(dict):
    """What stands in place of every character, by its code, filled as texts need it."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        kind = unicodedata.category(character)
        if code in _DRAWN:
            shown = code
        elif code in _PICTURES:
            shown = _PICTURES[code]
        elif kind == "Cs":  # half of a surrogate pair, which UTF-8 cannot hold
            shown = 0xFFFD
        else:
            shown = f"⟨U+{code:04X}⟩" if kind in ("Cc", "Cf", "Zs", "Zl", "Zp") or code in _BLANK else code
        self[code] = shown
        return shown


_SHOWN = _Shown()


def visible(text: object) -> str:
    r"""`text` with a sign in place of every character that a page would not show, or that would turn text around.

    >>> visible("a\x00b\u202ec\xa0d")
    'a␀b⟨U+202E⟩c⍽d'
    """
    text = str(text)
    if text.isascii() and text.isprintable():  # most are
        return text
    idle = _IDLE_JOINER.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
    return idle.translate(_SHOWN)


def isolated(text: str, width: int = 60) -> str:
    """`text` on one line for plotly, which reads a few tags and entities in its texts; this leaves none to read.

    Text that runs from right to left does not turn its neighbours around.
    """
    return f"\u2068{escape(shortened(visible(text), width), quote=False)}\u2069"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, never -0.

    >>> number(-0.004, 2), number(-0.006, 2), number(None, 2)
    ('0.00', '−0.01', '–')
    """
    return NOTHING if value is None else f"{value:z.{digits}f}".replace("-", MINUS)


def estimated(estimate: Mean | Value, digits: int) -> tuple[str, str]:
    """An estimate and its interval."""
    ends = estimate["low"], estimate["high"]
    interval = NOTHING if None in ends else f"[{', '.join(number(end, digits) for end in ends)}]"
    return number(value_of(estimate), digits), interval


def percent(share: float | None) -> str:
    """A share in whole percents."""
    return NOTHING if share is None else f"{number(100 * share, 0)} %"


def signed(value: float | None, digits: int) -> str:
    """A difference, with its sign.

    >>> signed(0.25, 1), signed(-0.25, 2), signed(0.0, 1)
    ('+0.2', '−0.25', '0.0')
    """
    return f"{'+' if value is not None and round(value, digits) > 0 else ''}{number(value, digits)}"


def setting(value: float | str) -> str:
    """A setting as people write it, with four significant digits, never -0.

    >>> setting(1.0), setting(-12345.6), setting(-0.0), setting("auto")
    ('1', '−12350', '0', 'auto')
    """
    return value if isinstance(value, str) else f"{float(f'{value:.4g}'):z.15g}".replace("-", MINUS)


def weights(values: Sequence[float]) -> str:
    """The weights of the policies; the SFT model has none."""
    return weights_text(values) if any(values) else NOTHING


def settings(spec: Spec) -> str:
    """How a policy is made, without what is usual."""
    parts = [f"weights {weights(spec['weights'])}", f"alpha {setting(spec['alpha'])}", f"beta {setting(spec['beta'])}"]
    parts += [f"{key} {spec[key]}" for key in ("schedule", "rule") if spec[key] != "linear"]
    if spec.get("lines") == "before":
        parts.append("LiNeS before the rule")
    if spec["options"]:
        parts.append(options_text(spec["options"]))
    return ", ".join(parts)
