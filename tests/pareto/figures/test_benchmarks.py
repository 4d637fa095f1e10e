"""The picture of the alignment tax through what matplotlib was told to draw."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto import build_front, plot_benchmarks
from rlhf_lines.pareto.figures.kl import utility
from tests.pareto.asked import ANSWERS, BENCHMARKS, with_results
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


def front_of(points, rewards=("a", "b"), benchmarks=BENCHMARKS):
    return build_front(rewards=rewards, split="test", seed=0, points=points, resamples=50, benchmarks=benchmarks)


def test_every_metric_is_a_panel_of_changes_against_utility(make_points, tmp_path, monkeypatch):
    front = front_of(with_results(make_points()))
    figure = saved_figure_of(plot_benchmarks, front, tmp_path / "benchmarks.png", monkeypatch)
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "quiz/acc\nless SFT's, higher is better",
        "text/perplexity\nless SFT's, lower is better",
    ]
    by_id = {point["id"]: point for point in front["points"]}
    for panel, metric in zip(figure.axes, ("quiz/acc", "text/perplexity"), strict=True):
        drawn = {place for line in panel.lines for place in zip(*line.get_data(), strict=True)}
        changes = {i: by_id[i]["benchmark_changes"][metric]["value"] for i in ANSWERS}
        assert {(utility(front, by_id[i]), changes[i]) for i in ANSWERS} <= drawn
        (across,) = [
            line for line in panel.lines if list(line.get_ydata()) == [0.0, 0.0] and len(line.get_xdata()) == 2
        ]
        assert list(across.get_xdata()) == [0, 1]
        assert panel.get_xlabel() == "utility, objectives alike\nhigher is better"
    assert_texts_are_whole_and_apart(figure)


def test_of_one_objective_it_is_the_score(make_points, tmp_path, monkeypatch):
    points = [{**point, "scores": point["scores"][:, :1]} for point in with_results(make_points())]
    front = front_of(points, ["a"])
    figure = saved_figure_of(plot_benchmarks, front, tmp_path / "benchmarks.pdf", monkeypatch)
    assert {panel.get_xlabel() for panel in figure.axes} == {"a\nmean score, higher is better"}


def test_without_a_benchmark_there_is_nothing_to_draw(make_points, tmp_path):
    with pytest.raises(ValueError, match="no point of the front was asked a benchmark"):
        plot_benchmarks(front_of(make_points(), benchmarks=None), tmp_path / "benchmarks.png")
