"""How numbers, settings and points are written on the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lines.pareto.style import label, policy_names
from rlhf_lines.pareto.table import decimals


MINUS, NOTHING = "\u2212", "\u2013"
# Control characters have pictures (U+2400), so that nothing that was written is invisible; UTF-8 cannot hold half of a
# surrogate pair.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def visible(text: Any) -> str:
    r"""`text` with a picture in place of every character that a page would not show.

    >>> visible("a\x00b")
    'a␀b'
    """
    return str(text).translate(_PICTURES)


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, never -0.

    >>> number(-0.004, 2), number(-0.006, 2), number(None, 2)
    ('0.00', '−0.01', '–')
    """
    return NOTHING if value is None else f"{value:z.{digits}f}".replace("-", MINUS)


def interval(estimate: Mapping[str, float], digits: int) -> str:
    """The ends of the interval of an estimate."""
    return f"[{number(estimate['low'], digits)}, {number(estimate['high'], digits)}]"


def centre(estimate: Mapping[str, float]) -> float:
    """The mean, or the value where nothing was averaged."""
    return estimate["mean"] if "mean" in estimate else estimate["value"]


def estimated(estimate: Mapping[str, float] | None, digits: int) -> str:
    """An estimate with its interval."""
    return NOTHING if estimate is None else f"{number(centre(estimate), digits)} {interval(estimate, digits)}"


def percent(share: float | None) -> str:
    """A share in whole percents.

    >>> percent(0.251), percent(None)
    ('25 %', '–')
    """
    return NOTHING if share is None else f"{number(100 * share, 0)} %"


def setting(value: object) -> str:
    """A setting as people write it.

    >>> setting(1.0), setting(-12345.6), setting("auto"), setting(None)
    ('1', '−12350', 'auto', '–')
    """
    if value is None:
        return NOTHING
    return f"{float(f'{value:.4g}'):.15g}".replace("-", MINUS) if isinstance(value, int | float) else str(value)


def share(weight: float) -> str:
    """A weight with at most three decimals."""
    return f"{round(weight, 3):g}"


def weights(point: Mapping[str, Any]) -> str:
    """The weights of a point; the SFT model has none."""
    values = point["spec"].get("weights") or []
    return " / ".join(map(share, values)) if any(values) else NOTHING


def policy(front: Mapping[str, Any], index: int) -> str:
    """The name of a policy, or its number where the front does not know it."""
    names = policy_names(front)
    return names[index] if index < len(names) else f"policy {index + 1}"


def policy_alone(front: Mapping[str, Any], point: Mapping[str, Any]) -> str | None:
    """Which policy a point is, as it was trained, in words."""
    values = list(point["spec"].get("weights") or [])
    single = sorted(values) == [0.0] * (len(values) - 1) + [1.0] and point["group"] in ("rewarded_soup", "morlhf")
    return f"{policy(front, values.index(1.0))} alone" if single else None


def point_label(front: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """The group of a point and its weights, with the name of its policy if it is one alone."""
    parts = (label(point["group"]), policy_alone(front, point), weights(point))
    return ", ".join(part for part in parts if part not in (None, NOTHING))


def settings(point: Mapping[str, Any]) -> str:
    """How the policy of a point is made, without what is usual."""
    spec = point["spec"]
    parts = [f"weights {weights(point)}"]
    if "alpha" in spec:
        parts += [f"alpha {setting(spec['alpha'])}", f"beta {setting(spec.get('beta'))}"]
    parts += [f"{key} {spec[key]}" for key in ("schedule", "rule") if spec.get(key, "linear") != "linear"]
    if spec.get("options"):
        parts.append(json.dumps(spec["options"], ensure_ascii=False, separators=(",", ":")))
    return ", ".join(parts)


@dataclass(frozen=True)
class Measure:
    """What is measured of every point, and how it is written."""

    name: str
    unit: str
    digits: int
    of: Callable[[Mapping[str, Any]], Mapping[str, float] | None]

    def text(self, point: Mapping[str, Any]) -> str:
        """The estimate for a point."""
        return estimated(self.of(point), self.digits)


def measures(front: Mapping[str, Any]) -> list[Measure]:
    """The rewards in their order, then the KL and the perplexity if a point has them."""
    found = [(reward, "", lambda point, reward=reward: point["scores"][reward]) for reward in front["rewards"]]
    for key, name, unit in (("kl", "KL to SFT", "nats"), ("perplexity", "perplexity", "")):
        if any(point.get(key) for point in front["points"]):
            found.append((name, unit, lambda point, key=key: point.get(key)))
    return [Measure(name, unit, _digits(front["points"], of), of) for name, unit, of in found]


def _digits(points: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], Any]) -> int:
    return decimals([estimate["mean"] for estimate in map(of, points) if estimate])


@dataclass(frozen=True)
class Step:
    """One place of the slider: weights of the policies, in words, and the ids of the points that have them."""

    text: str
    points: list[int]


def weight_steps(front: Mapping[str, Any]) -> list[Step]:
    """The distinct weights, from the first policy's lowest to its highest, with their points.

    MORLHF runs have no weights of their group's choosing: theirs only say which run it is. A spec may have fewer
    weights than there are policies; the others are 0.
    """
    points = [p for p in front["points"] if p["group"] in front["fronts"] and p["group"] != "morlhf"]
    longest = max((len(point["spec"]["weights"]) for point in points), default=0)
    found: dict[tuple[float, ...], list[int]] = {}
    for point in points:
        values = point["spec"]["weights"]
        if any(values):
            found.setdefault((*values, *[0.0] * (longest - len(values))), []).append(point["id"])
    return [
        Step(" · ".join(f"{share(weight)} {policy(front, k)}" for k, weight in enumerate(values)), found[values])
        for values in sorted(found)
    ]
