r"""The tables for papers: what TeX would make of names, and that every number is there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.latex import escaped, front_tex
from rlhf_lines.pareto.schema import label
from rlhf_lines.pareto.table import p_text
from tests.pareto.damaged import DEMO, front_of


HOSTILE = r"50_% of #1 & $x^2$ {~} \input{/etc/passwd} <a|b> \"q\""


@pytest.fixture
def front(make_points):
    points = [{**p, "group": HOSTILE[:20] if p["group"] == "rewarded_soup" else p["group"]} for p in make_points()]
    return build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=100)


def test_no_character_keeps_its_meaning():
    text = escaped(HOSTILE + "\n\x00%")
    for character in "%#&$_":
        assert re.findall(rf"(?<!\\){re.escape(character)}", text) == []
    assert "\\input" not in text and "\n" not in text and "\x00" not in text
    assert text.startswith(r"50\_\% of \#1 \& \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{}input\{")


@pytest.mark.parametrize("name", ["[x]", "*", "*[2pt]"])
def test_a_name_is_no_argument_of_the_line_before(make_points, name):
    r"""TeX stopped at `\\`, or `\midrule`, and `[x]` on the next line: missing number."""
    points = [{**p, "group": name if p["group"] == "rewarded_soup" else p["group"]} for p in make_points()]
    rows = front_tex(build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=100)).splitlines()
    assert [row for row in rows if row.startswith(("[", "*"))] == []
    assert [row.split(" & ")[0] for row in rows if row.startswith("{}")] == ["{}" + name]
    assert len([row for row in rows if row.startswith("LiNeS & ")]) == 1


def test_every_measure_stands_with_its_interval(front):
    text = front_tex(front)
    for entry in front["fronts"].values():
        volume = entry["hypervolume"]
        assert f"${volume['corrected']:.3f}$ {{\\scriptsize $[{volume['low']:.3f}, {volume['high']:.3f}]$}}" in text
    [comparison] = front["comparisons"]
    value = comparison["hypervolume_difference"]
    assert f"${value['corrected']:.4f}$" in text or f"${value['corrected']:.3f}$" in text
    assert f"${p_text(value['adjusted_p_value'])}$" in text and comparison["verdict"] == "higher"
    assert "& higher (not at equal KL) \\\\" in text
    reason = "(no KL: it was not measured at every point)"
    note = f"% nothing is compared at equal KL, and so no group is called better {reason}."
    assert note in text.splitlines() and text.count("at equal KL") == 2  # and no column of it
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = [len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows]
    specs = [len(spec) for spec in re.findall(r"begin{tabular}{(l?r+)}", text)]
    assert columns == [specs[0]] * 3 + [specs[1]] * 2


def test_what_completions_are_like_stands_with_intervals():
    """Of the SFT model and of what one would choose, which here is every point."""
    front = front_of(DEMO)
    text = front_tex(front)
    for point in front["points"]:
        found, name = point["metrics"], escaped(f"{label(point['group'])} {point['label']}")
        rows = [line for line in text.splitlines() if line.startswith(f"{name} & ")]
        assert len(rows) == 2 + 2  # damage, wins, and of each objective
        wins = found["win_rate"]
        told = [[found[key] for key in ("share_empty", "share_cut")], [wins, wins["all_better"], wins["all_worse"]]]
        told += [[wins["by_objective"][objective]] for objective in "ab"]
        for row, estimates in zip(rows, told, strict=True):
            for mean in estimates:
                assert f"${mean['mean']:.3f}$ {{\\scriptsize $[{mean['low']:.3f}, {mean['high']:.3f}]$}}" in row
        r = found["length_correlation"]["a"]
        assert r is None or f"[{r['low']:.4f}, {r['high']:.4f}]" in rows[2]
        assert f"${found['distinct']['mean']:.3f}$ \\\\" in rows[0]  # without an interval


def test_without_completions_there_is_no_table_of_them(front):
    assert "point & tokens" not in front_tex(front)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tex_reads_it(front, tmp_path):
    (tmp_path / "table.tex").write_text(front_tex(front))
    document = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}"
    document += r"\begin{document}\input{table}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"], cwd=tmp_path, check=True)
