"""What the picture of several runs shows, and where."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto import build_front
from rlhf_lines.pareto.figures.comparison import plot_comparison
from rlhf_lines.pareto.runs import RunScores, compare_runs
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


@pytest.fixture
def compared(make_points):
    """A function from the number of rewards and the side of the last runs to a comparison of four runs."""

    def make(rewards=2, last_side="a"):
        names, settings = [f"r{k}" for k in range(rewards)], {"split": "test", "seed": 0}
        runs = []
        for seed in range(4):
            points = make_points(rewards=rewards, seed=seed)
            entries = build_front(points=points, policies=["one", "two"], rewards=names, resamples=50, **settings)[
                "points"
            ]
            scores = {point["id"]: point["scores"] for point in points}
            prompts = [f"p{i}" for i in range(40)]
            runs.append(RunScores(f"{seed}", "", prompts, entries, scores, side=last_side if seed > 1 else "a"))
        return compare_runs(runs, objectives=names, **settings)

    return make


def test_runs_are_dots_below_their_mean(compared, tmp_path, monkeypatch):
    comparison = compared()
    figure = saved_figure_of(plot_comparison, comparison, tmp_path / "comparison.png", monkeypatch)
    assert len(figure.axes) == 3
    assert_texts_are_whole_and_apart(figure)
    found = comparison["comparisons"][0]["hypervolume_difference"]
    _, dots, interval, mean = figure.axes[2].lines
    assert list(dots.get_xdata()) == [run["corrected"] for run in found["runs"]]
    assert list(interval.get_xdata()) == [found["low"], found["high"]]
    assert list(mean.get_xdata()) == [found["corrected"]]


def test_the_median_front_is_drawn_inside_of_what_any_and_all_attain(compared, tmp_path, monkeypatch):
    comparison = compared()
    figure = saved_figure_of(plot_comparison, comparison, tmp_path / "comparison.png", monkeypatch)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["LiNeS", "rewarded soup"]
    soup, lines = figure.axes[0].lines
    for line, name in ((soup, "rewarded_soup"), (lines, "lines")):
        corners = comparison["attainment"]["a"][name]["median"]
        drawn = set(zip(*(np.asarray(values).tolist() for values in line.get_data()), strict=True))
        inside = {tuple(c) for c in corners if np.greater(c, comparison["reference_point"]).all()}
        assert inside and inside <= drawn
    rectangles = comparison["comparisons"][0]["attainment_difference"]
    assert len(figure.axes[1].patches) == len(rectangles) > 0


def test_two_sides_are_two_curves_and_three_rewards_none(compared, tmp_path, monkeypatch):
    figure = saved_figure_of(plot_comparison, compared(last_side="b"), tmp_path / "sides.png", monkeypatch)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["LiNeS, a", "LiNeS, b"]
    assert_texts_are_whole_and_apart(figure)
    figure = saved_figure_of(plot_comparison, compared(rewards=3), tmp_path / "three.png", monkeypatch)
    assert len(figure.axes) == 1
    assert_texts_are_whole_and_apart(figure)
