"""The page as a string."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from rlhf_lines.pareto.report import tables
from rlhf_lines.pareto.report.completions import Completions, columns, fitting
from rlhf_lines.pareto.report.facts import facts, swept
from rlhf_lines.pareto.report.figures import page_figures, schedules
from rlhf_lines.pareto.report.groups import page_groups, palette
from rlhf_lines.pareto.report.words import measures, point_label, setting, visible, weight_steps
from rlhf_lines.pareto.table import decimals


MAX_BYTES = 8_000_000


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
    content = _content(front, made)
    if completions is None:
        return _page(content, None)
    return _page(content, fitting(completions, lambda some: len(_page(content, some).encode()), max_bytes))


def in_script(value: Any) -> str:
    r"""`value` as JSON that can stand inside a script element and means the same.

    No `<`, `>` or `&` is left, so nothing in it can end the element or begin a comment, nor a line separator that
    older JavaScript refuses, nor half of a surrogate pair, which UTF-8 cannot hold.

    >>> in_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _content(front: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is filled with, except for the completions."""
    groups, steps, fronts = page_groups(front), weight_steps(front), front["fronts"].values()
    surrogates = (front.get("surrogate") or {}).values()
    predictions = [entry for surrogate in surrogates for entry in surrogate["predicted"]]
    return {
        "front": front,
        "made": made,
        "groups": groups,
        "steps": steps,
        "swept": swept(front),
        "facts": facts(front),
        "figures": page_figures(front, groups, predictions),
        "flat": len(front["rewards"]) == 2,
        "hulls": any(entry.get("hull") for entry in fronts),
        "bands": any(entry.get("attainment") for entry in fronts),
        "schedules": schedules(front),
        "predicted": len(predictions),
        "fitted": sum(len(surrogate["sampled"]) for surrogate in surrogates),
        "points_table": tables.points_table(front, groups),
        "weight_table": tables.weight_table(front, groups, steps),
        "volumes_table": tables.volumes_table(front, groups),
        "differences_table": tables.differences_table(front),
        "validation_table": tables.validation_table(front["validation"]) if front.get("validation") else None,
        "undone_table": tables.undone_table(front),
        "surrogate_table": tables.surrogate_table(front, groups, predictions),
        "style": Markup(_part("page.css") + palette(groups.values())),
        "label_of": partial(point_label, front),
    }


def _page(content: Mapping[str, Any], completions: Completions | None) -> str:
    """The page with these completions."""
    front, steps = content["front"], content["steps"]
    data = {"figures": content["figures"], "steps": [asdict(step) for step in steps], "completions": None}
    read, compared = [], None
    if completions is not None and completions.prompts:
        read = [point for point in front["points"] if point["id"] in completions.spec_of]
    if read:
        digits = {reward: measure.digits for reward, measure in zip(front["rewards"], measures(front), strict=False)}
        kl_digits = decimals([point["kl"]["mean"] for point in front["points"] if point.get("kl")])
        data["completions"] = columns(completions, digits, kl_digits)
        compared = _first_compared(read, steps[len(steps) // 2].points if steps else [])
    return _template().render(
        content,
        completions=completions,
        read=read,
        compared=compared,
        policy=_policy(_plotly(), _part("page.js")),
        data=Markup(in_script(data)),
        plotly=Markup(_plotly()),
        script=Markup(_part("page.js")),
    )


def _first_compared(read: Sequence[Mapping[str, Any]], ringed: Sequence[int]) -> tuple[int, int]:
    """The ids of the points whose completions are side by side at first: the soup and LiNeS at the slider's weights."""
    of = {point["group"]: point["id"] for point in reversed(read) if point["id"] in ringed}
    ids = [point["id"] for point in read]
    right = of.get("lines", next((i for i in ids if i in ringed), ids[-1]))
    left = of.get("rewarded_soup", next((i for i in ids if i != right), right))
    return left, right


@cache
def _template() -> Template:
    """The page's template, in which every value is escaped that is not markup of our own."""
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    environment.filters["setting"] = setting
    return environment.from_string(
        _part("page.html"),
        globals={"mark": tables.mark, "name": tables.name, "pairs_table": tables.pairs_table},
    )


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
