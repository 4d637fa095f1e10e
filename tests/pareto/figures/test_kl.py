"""Reward against KL: through what matplotlib was told to draw."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.pareto import build_front, plot_kl
from rlhf_lines.pareto.figures.canvas import score_limits
from rlhf_lines.pareto.figures.kl import along_weights, utility
from rlhf_lines.pareto.schema import GROUPS
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


def front_of(points, rewards):
    generator = np.random.default_rng(2)
    points = [point | {"kl": (point["group"] != "sft") * generator.gamma(2.0, size=40)} for point in points]
    return build_front(rewards=rewards, split="test", seed=0, points=points, resamples=20)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_point_stands_at_its_kl_and_its_score(make_points, count, monkeypatch, tmp_path):
    points, rewards = make_points(rewards=max(count, 2)), list("abc"[:count])
    front = front_of([{**point, "scores": point["scores"][:, :count]} for point in points], rewards)
    figure = saved_figure_of(plot_kl, front, tmp_path / "kl.png", monkeypatch)
    panels = [panel for panel in figure.axes if panel.axison]
    heights = [lambda point, name=name: point["scores"][name]["mean"] for name in rewards]
    if count > 1:  # by hand: the mean over objectives of (score - reference) / (ideal - reference)
        low, high = np.array(front["reference_point"]), np.array(front["ideal_point"])
        heights.insert(
            0, lambda p: float(np.mean((np.array([p["scores"][n]["mean"] for n in rewards]) - low) / (high - low)))
        )
    assert len(panels) == len(heights)
    for panel, height in zip(panels, heights, strict=True):
        drawn = {
            (line.get_color(), round(x, 9), round(y, 9))
            for line in panel.lines
            if line.get_linestyle() == "None"
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        }
        for point in front["points"]:
            place = round(point["kl"]["mean"], 9), round(height(point), 9)
            assert (GROUPS[point["group"]].colour, *place) in drawn
    labelled = dict(zip(rewards, panels[count > 1 :], strict=True))
    assert all(panel.get_ylim() == score_limits(front, name) for name, panel in labelled.items())
    assert_texts_are_whole_and_apart(figure)


def test_points_are_joined_along_the_weights_of_two_policies(make_points, monkeypatch, tmp_path):
    front = front_of(make_points(), ["a", "b"])
    front["points"] = front["points"][::-1]
    panel = saved_figure_of(plot_kl, front, tmp_path / "kl.png", monkeypatch).axes[1]
    by_id = {point["id"]: point for point in front["points"]}
    found = {
        line.get_color(): line.get_xdata()[:].tolist()
        for line in panel.lines
        if line.get_linestyle() != "None" and len(line.get_xdata()) == 5
    }
    # Of weights (0, 1) to (1, 0), the soup has ids 1 to 5 and LiNeS 6 to 10.
    for group, ids in (("rewarded_soup", range(1, 6)), ("lines", range(6, 11))):
        assert found[GROUPS[group].colour] == [by_id[i]["kl"]["mean"] for i in ids]


def test_only_two_shared_weights_make_a_line():
    def group(*preferences):
        return [{"preference": each and list(each)} for each in preferences]

    ordered, joined = along_weights(group((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)))
    assert joined and [point["preference"] for point in ordered] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    runs = group((1.0, 0.0), None)
    assert along_weights(runs) == (runs, False)
    assert not along_weights(group((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))[1]
    assert not along_weights(group((0.5, 0.5)))[1]


def test_a_flat_objective_has_no_utility(make_points):
    front = front_of(make_points(), ["a", "b"])
    front["ideal_point"][1] = front["reference_point"][1]
    low, high = front["reference_point"][0], front["ideal_point"][0]
    point = front["points"][3]
    assert utility(front, point) == pytest.approx((point["scores"]["a"]["mean"] - low) / (high - low) / 2)


def test_files_are_the_same_twice_and_a_front_without_kl_has_none(make_points, tmp_path):
    front = front_of(make_points(), ["a", "b"])
    for suffix in (".png", ".pdf"):
        first, second = (plot_kl(front, tmp_path / f"{i}{suffix}").read_bytes() for i in range(2))
        assert first == second
    for point in front["points"]:
        point["kl"] = None
    with pytest.raises(ValueError, match="no point of the front has a KL to the SFT model"):
        plot_kl(front, tmp_path / "kl.png")
