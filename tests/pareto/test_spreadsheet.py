"""`front.csv` gives back what `front.json` has of every point."""

from __future__ import annotations

import csv
import io

from rlhf_lines.pareto.spreadsheet import front_csv
from tests.pareto.damaged import DEMO, front_of


def test_every_point_is_a_row_with_the_digits_of_the_file():
    front = front_of(DEMO)
    front["points"][1]["label"] = 'a "label", with\nlines'
    front["metrics"] = ["extra"]
    for point in front["points"]:
        point["metrics"]["extra"] = {"mean": 0.1 + point["id"], "low": 0.0, "high": 1 / 3}
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    assert len(rows) == len(front["points"])
    for row, point in zip(rows, front["points"], strict=True):
        assert (int(row["point"]), row["group"], row["label"]) == (point["id"], point["group"], point["label"])
        for end in ("mean", "low", "high"):
            for name in ("a", "b"):
                assert float(row[f"score_{name}_{end}"]) == point["scores"][name][end]
            assert float(row[f"score_extra_{end}"]) == point["metrics"]["extra"][end]
            for name in ("tokens", "share_empty", "share_cut", "win_rate"):
                assert float(row[f"{name}_{end}"]) == point["metrics"][name][end]
            assert row[f"kl_{end}"] == ""  # not measured
        assert [float(row[f"weight_{k}"]) for k in (1, 2)] == point["spec"]["weights"]
    best = {row["point"]: row["nondominated"] for row in rows}
    assert best["0"] == "" and {best[str(i)] for i in front["fronts"]["lines"]["nondominated"]} == {"1"}
