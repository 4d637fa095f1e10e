"""How numbers, settings and texts are written on the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from rlhf_lines.pareto.schema import Mean, Spec, Value, shortened
from rlhf_lines.pareto.table import value_of


MINUS, NOTHING = "\u2212", "\u2013"
# Control characters have pictures (U+2400), so that nothing that was written is invisible; UTF-8 cannot hold half of a
# surrogate pair.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def visible(text: object) -> str:
    r"""`text` with a picture in place of every character that a page would not show.

    >>> visible("a\x00b")
    'a␀b'
    """
    return str(text).translate(_PICTURES)


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


def setting(value: float | str) -> str:
    """A setting as people write it, with four significant digits.

    >>> setting(1.0), setting(-12345.6), setting("auto")
    ('1', '−12350', 'auto')
    """
    return value if isinstance(value, str) else f"{float(f'{value:.4g}'):.15g}".replace("-", MINUS)


def share(weight: float) -> str:
    """A weight with at most three decimals."""
    return f"{round(weight, 3):g}"


def weights(values: Sequence[float]) -> str:
    """The weights of the policies; the SFT model has none."""
    return " / ".join(map(share, values)) if any(values) else NOTHING


def settings(spec: Spec) -> str:
    """How a policy is made, without what is usual."""
    parts = [f"weights {weights(spec['weights'])}", f"alpha {setting(spec['alpha'])}", f"beta {setting(spec['beta'])}"]
    parts += [f"{key} {spec[key]}" for key in ("schedule", "rule") if spec[key] != "linear"]
    if spec["options"]:
        parts.append(json.dumps(spec["options"], ensure_ascii=False, separators=(",", ":")))
    return ", ".join(parts)
