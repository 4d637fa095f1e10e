"""No number that is printed, or written as text, is a zero with a minus: Python's `z` in its format sees to that."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_lines.pareto import build_front, front_table, pick, picked_text
from rlhf_lines.pareto.closing import closing_text
from rlhf_lines.pareto.headline import effect
from rlhf_lines.pareto.latex import front_tex
from rlhf_lines.pareto.spreadsheet import front_csv
from rlhf_lines.summary import gains_table


NEGATIVE_ZERO = re.compile(r"-0(\.0*)?(?![\d.])")
ROOT = Path(__file__).parents[1] / "rlhf_lines"
# Where what was measured becomes text; the page has a formatter of its own, `report.words.number`.
PLACES = (
    "pareto/*.py",
    "sweep/finished/*.py",
    "summary.py",
    "merge/outliers.py",
    "merge/output/*.py",
    "train/progress.py",
)


@pytest.fixture
def front():
    """Scores, KL and differences are so little below 0 that no digit of it is shown."""
    generator = np.random.default_rng(0)
    points = []
    for i, group in enumerate(["sft", *["rewarded_soup"] * 3, *["lines"] * 3]):
        k = (i - 1) % 3
        weights = [0.0, 0.0] if group == "sft" else [k / 2, 1 - k / 2]
        spec = {"rule": "linear", "weights": weights, "alpha": 0.0, "beta": 1.0, "schedule": "linear", "options": {}}
        noise = generator.normal(-3e-5, 1e-6, size=(60, 3))
        points.append(
            {"id": i, "group": group, "spec": spec, "scores": noise[:, :2] + [10 * (i > 5), 0], "kl": noise[:, 2]}
            | {"metrics": {"m": noise[:, 2], "tokens": noise[:, 2]}}
        )
    points[1]["spec"]["weights"] = [-1e-4, 1.0001]  # as a Bone Soup may have
    settings = {"policies": ["a", "b"], "sft_model": "s", "resamples": 50}
    return build_front(rewards=["one", "two"], metrics=["m"], split="test", seed=0, points=points, **settings)


def test_the_texts_of_a_front_have_no_negative_zero(front):
    assert front["points"][1]["kl"]["mean"] < 0 and front["points"][1]["scores"]["two"]["high"] < 0
    texts = {
        "table": front_table(front),
        "closing": closing_text(front, "run", []),
        "tex": front_tex(front),
        "pick": picked_text(front, pick(front, point=1).point, "run"),
        "csv": front_csv(front),
        "gains": gains_table([{"policy": "a", "reward": "r", "value": -0.001, "low": -0.002, "high": -0.0}]),
        "effects": " ".join(effect(-1e-5, base, "x") for base in (1.0, -1.0)) + effect(-0.0, -1.0, "x"),
    }
    assert {name: NEGATIVE_ZERO.findall(text) for name, text in texts.items()} == {name: [] for name in texts}
    assert "0.00 [0.00, 0.00]" in texts["gains"]


def test_what_is_measured_is_formatted_without_it_everywhere():
    """Specs of sizes, which have a comma, and of shares in percent are of numbers that are not below 0."""
    paths = [path for place in PLACES for path in ROOT.glob(place)]
    assert len(paths) > 50
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                spec = "".join(part.value if isinstance(part, ast.Constant) else "" for part in node.format_spec.values)
                if re.search("[fFgGeE]$", spec) and "z" not in spec and "," not in spec:
                    found.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}")
    assert found == []
