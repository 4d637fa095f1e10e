r"""The measures of a front as LaTeX: `table.tex`, for `\input` in a paper that loads booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_lines.pareto.comparisons import MEASURES, adjusted_for
from rlhf_lines.pareto.fixed_points import without_spread
from rlhf_lines.pareto.headline import budgets_text
from rlhf_lines.pareto.look_at import likely_choices
from rlhf_lines.pareto.schema import BY_OBJECTIVE, SFT, WORDS, Comparison, Difference, Front, Mean, Value, label
from rlhf_lines.pareto.table import at_edges, decimals, few_prompts, interval_name, not_at_equal_kl, p_text, value_of


ESCAPED = {character: rf"\{character}" for character in "&%$#_{}"}
ESCAPED |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# Under the T1 encoding and its forerunner these stand for others.
ESCAPED |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
_ESCAPES = str.maketrans(ESCAPED)
EDGE = r"$^\dagger$"
EDGE_NOTE = f"{EDGE} chosen at an edge of what was tried"
OF_GROUPS = ("hypervolume", "expected_utility")
# What is measured of completions, of pairs of them, and of each objective.
LIKE = ("tokens", "share_empty", "share_cut", "repetition", "distinct")
JOINTLY = ("all_better", "all_worse")


def front_tex(front: Front) -> str:
    """Hypervolume and expected utility of every group, the differences between groups, and what completions are like.

    The latter is of the SFT model and of each group's ends and best point for equal preferences, see `likely_choices`:
    lengths and damage in one table, wins over the SFT model and what is left of gains at its lengths in others.

    Each number has its interval below it in small print; of a group, the highest values are not marked: the differences
    say what is more than noise.

    Args:
        front: what `build_front` returns.
    """
    prompts = front["points"][0]["prompts"]
    name = interval_name(front)
    head = [
        "% Made by rlhf-lines front; needs \\usepackage{booktabs}.",
        f"% {name}s over {prompts} {_commented(front['split'])} prompts, {front['resamples']} resamples.",
        *(f"% {few}." for few in [few_prompts(front)] if few),
        *(f"% {_commented(flat)}" for flat in [without_spread(front)] if flat),
    ]
    return "\n".join([*head, *_groups(front), *_differences(front), *_behaviour(front)]) + "\n"


def escaped(text: str) -> str:
    r"""`text` on one line as TeX prints it.

    >>> escaped("50_% & $x^2$ \\input")
    '50\\_\\% \\& \\$x\\textasciicircum{}2\\$ \\textbackslash{}input'
    """
    printable = (character for character in " ".join(text.split()) if character.isprintable())
    return "".join(printable).translate(_ESCAPES)


def _groups(front: Front) -> list[str]:
    fronts = front["fronts"]
    if not fronts:
        return []
    edges = [name for name in at_edges(front) if name in fronts]
    columns = [[escaped(label(name)) + EDGE * (name in edges) for name in fronts]]
    columns += [_estimates([entry[measure] for entry in fronts.values()]) for measure in OF_GROUPS]
    points = [sum(point["group"] == name for point in front["points"]) for name in fronts]
    return _tabular(
        ["group", "hypervolume", "expected utility", "points"],
        [*columns, list(map(str, points))],
        EDGE_NOTE if edges else "",
    )


def _differences(front: Front) -> list[str]:
    entries = front["comparisons"]
    if not entries:
        return []
    heads = ["difference"]
    columns = [[f"{escaped(label(entry['a']))} $-$ {escaped(label(entry['b']))}" for entry in entries]]
    for measure, words in MEASURES.items():
        found = [entry[f"{measure}_difference"] for entry in entries]
        if any(found):
            heads += [words, "$p$"]
            columns += [_estimates(found), [_p_value(each) for each in found]]
            if measure == "equal_kl":
                heads.append("KL (nats)")
                columns.append([budgets_text(front, entry, "--").replace(" to ", "--") for entry in entries])
    columns.append([_verdict(entry) for entry in entries])
    note = f"% p is adjusted (Holm) by each measure for {adjusted_for(entries)}; intervals are not."
    pairs = {f"{label(entry['a'])} - {label(entry['b'])}": entry["no_equal_kl"] for entry in entries}
    notes = [note, *(f"% {_commented(text)}." for text in not_at_equal_kl(pairs))]
    return ["", *notes, *_tabular([*heads, "verdict"], columns)]


def _behaviour(front: Front) -> list[str]:
    points = [point for point in front["points"] if point["group"] == SFT] + likely_choices(front)
    points = [point for point in points if point["metrics"].get("tokens") is not None]
    if not points:
        return []
    names = [f"{escaped(label(point['group']))} {escaped(point['label'])}" for point in points]

    def table(note: str, keys: Sequence[str], measures: Sequence[Sequence[Mean | None]]) -> list[str]:
        heads = [WORDS[key] for key in keys]
        return ["", f"% {note}", *_tabular(["point", *heads], [names, *map(_estimates, measures)])]

    metrics: list[dict[str, Any]] = [point["metrics"] for point in points]
    note = "What completions are like: tokens, and shares of completions or of their 4-grams."
    lines = table(note, LIKE, [[found[name] for found in metrics] for name in LIKE])
    wins = [found["win_rate"] or {} for found in metrics]
    if any(wins):
        note = "Completions against the SFT model's for the same prompt: win rate, and shares."
        columns = [[found or None for found in wins], *([found.get(key) for found in wins] for key in JOINTLY)]
        lines += table(note, ["win_rate", *JOINTLY], columns)
    for objective in front["objectives"]:
        of = [found.get("by_objective", {}).get(objective) for found in wins]
        others = [[found[name][objective] for found in metrics] for name in BY_OBJECTIVE]
        note = f"Wins in {_commented(objective)}, its correlation with length, its gain at equal lengths."
        lines += table(note, ["win_rate", *BY_OBJECTIVE], [of, *others])
    return lines


def _estimates(estimates: Sequence[Value | Mean | None]) -> list[str]:
    digits = decimals(value_of(each) for each in estimates if each is not None)
    return ["--" if each is None else f"${value_of(each):z.{digits}f}${_interval(each, digits)}" for each in estimates]


def _interval(estimate: Value | Mean, digits: int) -> str:
    ends = estimate["low"], estimate["high"]
    return "" if None in ends else rf" {{\scriptsize $[{', '.join(f'{end:z.{digits}f}' for end in ends)}]$}}"


def _verdict(entry: Comparison) -> str:
    """What is said of a pair, and that it is said without equal KL."""
    return entry["verdict"] if entry["no_equal_kl"] is None else f"{entry['verdict']} (not at equal KL)"


def _p_value(difference: Difference | None) -> str:
    p_value = difference and difference["adjusted_p_value"]
    return "--" if p_value is None else f"${p_text(p_value)}$"


def _tabular(heads: Sequence[str], columns: Sequence[Sequence[str]], note: str = "") -> list[str]:
    rows: Iterable[Sequence[str]] = zip(*columns, strict=True)
    return [
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(_row(row) for row in rows),
        r"\bottomrule",
        *([rf"\multicolumn{{{len(heads)}}}{{l}}{{\footnotesize {note}}} \\"] if note else []),
        r"\end{tabular}",
    ]


def _row(cells: Sequence[str]) -> str:
    r"""A row; the line before it ends with `\\` or `\midrule`, which would read a `[` or `*` here as their own."""
    row = " & ".join(cells) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row


def _commented(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
