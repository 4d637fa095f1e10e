"""`front.csv` gives back what `front.json` has of every point."""

from __future__ import annotations

import csv
import io

from rlhf_lines.pareto.spreadsheet import front_csv, measured_columns
from tests.pareto.damaged import DEMO, front_of


OF_EACH = ("score", "win_rate", "length_correlation", "at_matched_length")
NAMES = {f"{measure}_{objective}" for measure in OF_EACH for objective in "ab"} | {
    *("score_extra", "kl", "perplexity", "log_ratio", "tokens", "share_empty", "share_cut", "repetition", "distinct"),
    *("win_rate", "all_better", "all_worse"),
}


def text(number: float | None) -> str:
    return "" if number is None else repr(float(number))


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
            found = point["metrics"]
            for name in ("tokens", "share_empty", "share_cut", "repetition", "distinct", "win_rate"):
                assert row[f"{name}_{end}"] == text(found[name][end])
            for name in ("all_better", "all_worse"):
                assert float(row[f"{name}_{end}"]) == found["win_rate"][name][end]
            for name in ("a", "b"):
                assert float(row[f"win_rate_{name}_{end}"]) == found["win_rate"]["by_objective"][name][end]
                for measure in ("length_correlation", "at_matched_length"):
                    estimate = found[measure][name]
                    assert row[f"{measure}_{name}_{end}"] == text(estimate and estimate[end])
            assert row[f"kl_{end}"] == ""  # not measured
        assert [float(row[f"weight_{k}"]) for k in (1, 2)] == point["spec"]["weights"]
    assert {key for key in rows[0] if key.endswith("_mean")} == {f"{name}_mean" for name in NAMES}
    best = {row["point"]: row["nondominated"] for row in rows}
    assert best["0"] == "" and {best[str(i)] for i in front["fronts"]["lines"]["nondominated"]} == {"1"}


def test_names_of_scores_that_end_as_columns_do_are_kept_apart():
    columns = measured_columns(["a", "a_low", "low"], ["a_high"])
    assert len(set(columns)) == len(columns)
    assert {"score_a_low", "score_a_low_low", "score_a_high_high", "win_rate_low", "win_rate_low_mean"} < set(columns)
