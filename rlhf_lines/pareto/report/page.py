"""The page as a string."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from rlhf_lines.pareto import look_at
from rlhf_lines.pareto.figures.benchmarks import drawn_metrics
from rlhf_lines.pareto.report import badly, facts, tables
from rlhf_lines.pareto.report.completions import Completions, columns, fitting, score_spreads
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.figures import (
    is_ternary,
    page_figures,
    ternary_measures,
    utility_choices,
    utility_name,
    validation_maps,
)
from rlhf_lines.pareto.report.groups import palette
from rlhf_lines.pareto.report.words import setting, visible
from rlhf_lines.pareto.schema import LINES, SFT, WORDS, Front, PointEntry, Value, label


MAX_BYTES = 8_000_000


def report_html(
    front: Front,
    completions: Completions | None,
    made: Mapping[str, Any],
    *,
    worths: Sequence[Value | None] = (),
    over_soup: Sequence[Value | None] = (),
    max_bytes: int = MAX_BYTES,
) -> str:
    """The report as one HTML page that needs no other file; the same arguments give the same page.

    Prompts that do not fit into `max_bytes` (UTF-8) are left out, evenly spaced, and the page says how many. About
    4.9 MB are the page itself with plotly.

    Args:
        front: what `build_front` returns; what it does not know leaves out its section.
        completions: what the points wrote; None leaves out the comparison.
        made: how it was made, all optional: `title`, `facts` (pairs of name and text), `versions` (name to
            version), `run` (the folder as a shell reads it), `commands` (pairs of purpose and command), `merges` (id of
            a point to the command that makes its policy), `example` (pairs of a reader and what it reads of one row)
            and `config` (text of `config.yaml`).
        worths: see `Content`.
        over_soup: see `Content`.
        max_bytes: size of the page.

    Raises:
        ValueError: a number of `front` is not finite.
    """
    content = Content(front, worths, over_soup)
    figures = page_figures(content)

    spreads: dict[str, float] = {}
    if completions is not None:
        sft = next((completions.spec_of.get(p["id"]) for p in front["points"] if p["group"] == SFT), None)
        spreads = score_spreads(completions, sft)

    def page(some: Completions | None, **shown: Any) -> str:
        return _page(content, figures, made, some, spreads, **shown)

    if completions is None:
        return page(None)
    # Around the completions every page is the same, but for how many there are, which no page says longer than this.
    around = len(page(completions.some(range(len(completions.prompts) - 1)), with_texts=False).encode())

    def size(some: Completions) -> int:
        return around + len(in_script(_columns(content, some, spreads)).encode())

    return page(fitting(completions, size, max_bytes))


def in_script(value: Any) -> str:
    r"""`value` as JSON that can stand inside a script element and means the same.

    No `<`, `>` or `&` is left, so nothing in it can end the element or begin a comment, nor a line separator that
    older JavaScript refuses, nor half of a surrogate pair, which UTF-8 cannot hold.

    >>> in_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def slider_values(content: Content) -> list[list[float]]:
    """The places of one slider a policy, for three or more; with two, one slider goes through the steps."""
    columns = list(zip(*(step.parts for step in content.steps), strict=True))
    return [sorted(set(column)) for column in columns] if len(columns) > 2 else []


def _page(
    content: Content,
    figures: Mapping[str, Any],
    made: Mapping[str, Any],
    completions: Completions | None,
    spreads: Mapping[str, float],
    *,
    with_texts: bool = True,
) -> str:
    front = content.front
    choice = _first_choice(content)
    selected, step = _first_selected(content, choice)
    picks = _pick_commands(content, made)
    data = {
        "figures": figures,
        "steps": [asdict(step) for step in content.steps],
        "values": slider_values(content),
        "choices": [
            {
                "point": choice.point,
                "text": f"{choice.text}: {visible(content.label(content.by_id[choice.point]))}",
                "address": choice.address,
            }
            for choice in content.choices
        ],
        "utilities": [utility_name(each) for each in utility_choices(content)],
        "picks": picks,
        "groups": {point["id"]: content.groups[point["group"]].key for point in front["points"]},
        "sft": next((point["id"] for point in front["points"] if point["group"] == SFT), None),
        "badly": {point["id"]: _badly(content, point) for point in front["points"]},
        "selected": selected,
        "choice": choice,
        "step": step,
        "completions": None,
    }
    read, compared = [], None
    if completions is not None and completions.prompts:
        read = [point for point in front["points"] if point["id"] in completions.spec_of]
    if read:
        data["completions"] = _columns(content, completions, spreads) if with_texts else None
        compared = _first_compared(read, selected)
        data["selected"] = compared[1]
    return _template().render(
        content=content,
        front=front,
        figures=figures,
        made=made,
        completions=completions,
        read=read,
        picks=picks,
        step=step,
        compared=compared,
        is_ternary=is_ternary(content),
        utilities=data["utilities"],
        benchmark_names=drawn_metrics(front),
        ternary_names=[measure.name for measure in ternary_measures(content)],
        ternary_groups={content.by_id[i]["group"] for step in content.steps for i in step.points},
        validation_maps=validation_maps(content),
        values=data["values"],
        style=Markup(_part("page.css") + palette(content.groups.values())),
        policy=_policy(_plotly(), _part("page.js")),
        data=Markup(in_script(data)),
        plotly=Markup(_plotly()),
        script=Markup(_part("page.js")),
    )


def _columns(content: Content, completions: Completions, spreads: Mapping[str, float]) -> dict[str, Any]:
    digits = {reward: measure.digits for reward, measure in content.rewards.items()}
    return columns(completions, digits, content.kl.digits, spreads)


def _first_choice(content: Content) -> int:
    """The place of the preference that is nearest to equal; -1 without preferences."""
    evenness = [sum(part**2 for part in choice.preference) for choice in content.choices]
    return evenness.index(min(evenness)) if evenness else -1


def _first_selected(content: Content, choice: int) -> tuple[int, int]:
    """The id of the point that is selected at first, and the step of its weights.

    It is the best for a preference, by its place, or, without preferences, LiNeS at the weights in the middle.
    """
    middle = len(content.steps) // 2
    if content.choices:
        selected = content.choices[choice].point
    elif content.steps:
        of = {content.by_id[i]["group"]: i for i in content.steps[middle].points}
        selected = of.get(LINES, content.steps[middle].points[0])
    else:
        selected = content.front["points"][-1]["id"]
    return selected, next((k for k, step in enumerate(content.steps) if selected in step.points), middle)


def _first_compared(read: Sequence[PointEntry], selected: int) -> tuple[int, int]:
    """The ids of the points whose completions are side by side at first: the SFT model and the selected one.

    Where the selected one is the SFT model itself, any other is beside it.
    """
    ids = [point["id"] for point in sorted(read, key=lambda point: point["group"] != SFT)]
    right = selected if selected in ids else ids[-1]
    return next((i for i in ids if i != right), right), right


def _badly(content: Content, point: PointEntry) -> tuple[str, list[list[str]]]:
    """What a point does badly: a sentence, and the cells of `badly_table`."""
    cells = [[line.own, line.interval, line.sft, line.verdict] for line in badly.lines(content, point)]
    return visible(badly.told(content, point)), cells


def _pick_commands(content: Content, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The commands that pick what is picked on the page: one a preference, and the beginning of that of a point."""
    if "run" not in made:
        return None
    pick = f"rlhf-lines pick {visible(made['run'])}"
    preferences = (" ".join(repr(part).removesuffix(".0") for part in each.preference) for each in content.choices)
    return {
        "choices": [f"{pick} --preference {preference} --scale range" for preference in preferences],
        "point": f"{pick} --point ",
    }


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
    known = {"facts": facts, "tables": tables, "look_at": look_at, "label": label, "words": WORDS}
    return environment.from_string(_part("page.html"), globals=known)


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
