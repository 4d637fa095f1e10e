r"""The tables for papers: what TeX would make of names, and that every number is there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.latex import escaped, front_tex
from rlhf_lines.pareto.table import p_text


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


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tex_reads_it(front, tmp_path):
    (tmp_path / "table.tex").write_text(front_tex(front))
    document = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}"
    document += r"\begin{document}\input{table}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"], cwd=tmp_path, check=True)
