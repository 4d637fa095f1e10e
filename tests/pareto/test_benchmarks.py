"""Results of benchmarks in a front: their intervals, and what they are less the SFT model's, by formulas."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from rlhf_lines.pareto import build_front, front_table, paired_difference, pick
from rlhf_lines.pareto.benchmarks import Result, benchmark_changes, result_entry
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import Front, faults
from rlhf_lines.pareto.spreadsheet import front_csv
from rlhf_lines.pareto.table import benchmarks_table
from tests.pareto.asked import ANSWERS, BENCHMARKS, with_results


Z = 1.959963984540054  # of 95 %


def test_a_result_has_the_interval_of_its_standard_error():
    assert result_entry(Result(0.6, 0.1), Resampling()) == pytest.approx(
        {"mean": 0.6, "low": 0.6 - Z * 0.1, "high": 0.6 + Z * 0.1}, abs=1e-12
    )
    assert result_entry(Result(7.5), Resampling()) == {"mean": 7.5, "low": None, "high": None}


def test_changes_are_paired_by_documents():
    generator = np.random.default_rng(2)
    hard = generator.normal(size=40)
    theirs, ours = hard.tolist(), (hard + 0.1 + 0.05 * generator.normal(size=40)).tolist()
    sft = {"f": Result(float(np.mean(theirs)), 0.2, theirs), "g": Result(1.0, 0.3), "h": Result(1.0)}
    own = {"f": Result(float(np.mean(ours)), 0.2, ours), "g": Result(1.5, 0.4), "h": Result(0.5), "other": Result(1.0)}
    found = benchmark_changes(own, sft, Resampling())
    paired = paired_difference(ours, theirs)
    assert found["f"] == pytest.approx({"value": paired.value, "low": paired.low, "high": paired.high})
    assert found["f"]["high"] - found["f"]["low"] < 0.1 < Z * math.hypot(0.2, 0.2)  # two results alone say less
    assert found["g"] == pytest.approx({"value": 0.5, "low": 0.5 - Z * 0.5, "high": 0.5 + Z * 0.5})
    assert found["h"] == {"value": -0.5, "low": None, "high": None}
    assert set(found) == {"f", "g", "h"}
    assert benchmark_changes(sft, sft, Resampling())["f"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_answers_that_never_differ_leave_room_for_those_that_were_not_asked():
    answers = Result(0.75, 0.1, [1.0, 0.0, 1.0, 1.0] * 5)
    found = benchmark_changes({"f": answers}, {"f": Result(*answers)}, Resampling())["f"]
    assert found["value"] == 0.0 and found["low"] < -0.05 and found["high"] > 0.05


@pytest.fixture
def front(make_points):
    return build_front(
        rewards=["a", "b"],
        split="test",
        seed=0,
        points=with_results(make_points()),
        resamples=50,
        policies=["runs/one", "runs/two"],
        sft_model="sft",
        benchmarks=BENCHMARKS,
    )


def test_points_that_were_asked_have_the_results_as_metrics_and_others_null(front):
    assert list(faults(front, Front)) == []
    assert front["benchmarks"] == BENCHMARKS and front["metrics"] == []
    for point in front["points"]:
        values = ANSWERS.get(point["id"])
        assert (point["metrics"]["quiz/acc"] or {}).get("mean") == (values and sum(values) / len(values))
        assert set(point["benchmark_changes"]) == ({"quiz/acc", "text/perplexity"} if values else set())
    assert front["points"][0]["benchmark_changes"]["quiz/acc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert front["points"][6]["benchmark_changes"]["quiz/acc"]["value"] == pytest.approx(-0.2)


def test_a_point_is_picked_by_a_benchmark(front):
    assert pick(front, minimum={"quiz/acc": 0.5}, maximize="a", group="lines").point["id"] == 7
    with pytest.raises(ValueError, match=r"no point has a mean quiz/acc of at least 0\.9: the highest is 0\.6"):
        pick(front, minimum={"quiz/acc": 0.9}, maximize="a")


def test_tables_have_the_results(front):
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    for row, point in zip(rows, front["points"], strict=True):
        for end in ("mean", "low", "high"):
            found = point["metrics"]["quiz/acc"]
            assert row[f"quiz/acc_{end}"] == ("" if found is None else repr(found[end]))
    told = front_table(front, all_points=True)
    assert "quiz/acc: of a benchmark" in told and "text/perplexity: of a benchmark, lower is better" in told
    lines = benchmarks_table(front).splitlines()
    assert lines[0].split() == ["id", "group", "weights", "quiz/acc", "text/perplexity"]
    cells = {line.split()[0].strip("*"): line for line in lines[1 : 1 + len(ANSWERS)]}
    assert set(cells) == set(map(str, ANSWERS))
    assert "0.400 (-0.200)" in cells["6"] and "7.000 (+1.000)!" in cells["6"] and "0.600 (+0.000)" in cells["0"]
