"""What a sweep says at its end: what it found, the front to choose from, where its files are, and what to do next."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rlhf_lines.pareto.comparisons import OPPONENTS
from rlhf_lines.pareto.fixed_points import without_spread
from rlhf_lines.pareto.headline import SAYINGS, of_depth
from rlhf_lines.pareto.look_at import what_to_look_at
from rlhf_lines.pareto.schema import LINES, SOUP, Front, label
from rlhf_lines.pareto.table import WIDTH, few_prompts, interval_name, points_table


LOOKED_AT = 2  # sentences of what to look at; the page has all
# What the words of a closing text mean, told where they stand in it.
MEANINGS = {
    "SFT": "the model that the policies were trained from",
    "front": "the points that no other point of their group beats in every score",
    "rewarded soup": "SFT plus the weighted sum of what training changed in each policy",
    "LiNeS": "a rewarded soup with longer steps in later layers, times alpha in the first, alpha + beta in the last",
    "wise_ft": "single policies, in equal steps from SFT on",
    "search": "merges that were found on validation prompts, with factors over depth for each policy",
    "MORLHF": "policies that were trained on a weighted sum of rewards",
    "even scaling": "a control, one factor for all layers",
    "reversed LiNeS": "a control, LiNeS upside down",
}
FILES = (
    (("report.html",), "open it in a browser: fronts, completions side by side, all tables"),
    (("front.csv",), "all {points} points with all that was measured"),
    (("front.json", "run.sqlite"), "for programs: the fronts; every prompt, completion and score"),
    (("front.png", "kl.png"), "figures, also as .pdf; table.tex for papers"),
)


def closing_text(front: Front, run_dir: str | Path, chosen: Sequence[str]) -> str:
    """The closing text of a sweep, of at most 110 columns, without a trailing newline.

    Args:
        front: of the sweep.
        run_dir: its folder.
        chosen: sentences on which settings it chose.
    """
    few = few_prompts(front)
    prompts = f"{front['points'][0]['prompts']} {front['split']} prompts"
    found = _wrapped([_found(front), *chosen])
    table = points_table(front, only_front=True)
    scale = f"Means over {prompts} with their {interval_name(front)}s; higher is better. {few}".strip()
    looked_at = what_to_look_at(front)
    more = len(looked_at) - LOOKED_AT
    notes = [*looked_at[:LOOKED_AT], *([f"The page has {more} more of these."] if more > 0 else [])]
    blocks = [found, *table, _wrapped([scale]), _wrapped(notes, "- ")]
    words = _words("\n".join(blocks))
    return "\n\n".join(filter(None, [*blocks, _wrapped([words]), _files(front, run_dir), _next(front, run_dir)]))


def _found(front: Front) -> str:
    """What the comparisons of LiNeS say, without numbers; or that there is nothing that they could say."""
    if flat := without_spread(front):
        return flat
    entries = {entry["b"]: entry for entry in front["comparisons"] if entry["a"] == LINES}
    told = [entries[group] for group in OPPONENTS if group in entries]
    if not told:
        return ""
    names = ["the rewarded soup" if entry["b"] == SOUP else label(entry["b"]) for entry in told]
    sayings = "; ".join(SAYINGS[entry["verdict"]].format(name) for entry, name in zip(told, names, strict=True))
    depth = next(filter(None, (of_depth(front, entry) for entry in told)), "")
    return f"For these policies, {sayings}. {depth}".strip()


def _words(text: str) -> str:
    """What the words of a text mean that not everybody knows."""
    known = []
    for word, meaning in reversed(MEANINGS.items()):  # what one meaning says, one before it may explain
        if re.search(rf"\b{word}\b", text):
            known.insert(0, f"{word}: {meaning}")
            text += meaning
    return "; ".join(known) + "." if known else ""


def _files(front: Front, run_dir: str | Path) -> str:
    rows = []
    for names, meaning in FILES:
        if there := [name for name in names if (Path(run_dir) / name).is_file()]:
            rows.append((", ".join(there), meaning.format(points=len(front["points"]))))
    return _listed(f"Files in {run_dir}", rows) if rows else ""


def _next(front: Front, run_dir: str | Path) -> str:
    folder = shlex.quote(str(run_dir))
    equal = " ".join(["1"] * len(front["objectives"]))
    rows = [
        (
            f"rlhf-lines pick {folder} --preference {equal} --scale range",
            "the best merge, and the command that makes it",
        ),
        (f"rlhf-lines front {folder}", "all groups and differences, with intervals"),
        (f"rlhf-lines serve {folder} --scale range{_served(front)}", "a server of its mixes (needs vLLM)"),
    ]
    return _listed("Next", rows)


def _served(front: Front) -> str:
    """The group that is served, as a flag: the soup where the points of LiNeS, the default, have no one scaling."""
    specs = [point["spec"] for point in front["points"] if point["group"] == LINES]
    is_one = len({(spec["alpha"], spec["beta"], spec["schedule"]) for spec in specs}) == 1
    return "" if is_one else f" --group {SOUP}"


def _listed(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Rows of a name and what it is, below a title."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {meaning}" for name, meaning in rows)])


def _wrapped(sentences: Sequence[str], bullet: str = "") -> str:
    blank = " " * len(bullet)
    return "\n".join(
        textwrap.fill(text, WIDTH, initial_indent=bullet, subsequent_indent=blank) for text in sentences if text
    )
