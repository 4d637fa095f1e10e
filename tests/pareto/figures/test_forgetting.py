"""What is undone and kept against its formula; the picture through what matplotlib was told to draw."""

from __future__ import annotations

import sys

import pytest

from rlhf_lines.pareto import build_front, damage_undone, plot_forgetting
from rlhf_lines.pareto.figures.canvas import score_limits
from rlhf_lines.pareto.figures.forgetting import perplexity_label
from rlhf_lines.pareto.schema import GROUPS
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


SFT = 12.0
# Of the damage 3, a third of it remains at every weight but the third, where LiNeS makes it worse.
SOUP, LINES = SFT + 3.0, [SFT + 1.0, SFT + 1.0, SFT + 4.5, SFT + 1.0, SFT + 1.0]


def front_of(points, rewards, resamples):
    policies = ["runs/helpful", "runs/harmless", "runs/brief"][: len(rewards)]
    about = {"texts": 50, "tokens": 6400, "source": "a public corpus"}
    front = build_front(
        rewards=rewards,
        split="test",
        seed=0,
        points=points,
        resamples=resamples,
        policies=policies,
        forgetting=about,
    )
    heights = {"sft": [SFT], "rewarded_soup": [SOUP] * 5, "lines": LINES}
    for group, values in heights.items():
        for point, value in zip((p for p in front["points"] if p["group"] == group), values, strict=True):
            point["perplexity"] = {"mean": value, "low": value - 0.25, "high": value + 0.5}
    return front


@pytest.fixture
def front(make_points):
    return front_of(make_points(), ["a", "b"], 50)


def test_the_share_undone_and_the_reward_kept_follow_their_formulas(front):
    rows = damage_undone(front)
    assert [(row["soup"], row["point"]) for row in rows] == [(1, 6), (2, 7), (3, 8), (4, 9), (5, 10)]
    assert [row["damage_undone"] for row in rows] == pytest.approx([2 / 3, 2 / 3, -0.5, 2 / 3, 2 / 3])
    assert [row["policy"] for row in rows] == ["harmless", None, None, None, "helpful"]
    by_id = {point["id"]: point for point in front["points"]}
    for row in rows:
        sft, soup, lines = (by_id[i]["scores"] for i in (0, row["soup"], row["point"]))
        for reward in ("a", "b"):
            gain = soup[reward]["mean"] - sft[reward]["mean"]
            kept = (lines[reward]["mean"] - sft[reward]["mean"]) / gain
            assert row["reward_kept"][reward] == (pytest.approx(kept) if gain > 0 else None)
    assert any(None in row["reward_kept"].values() for row in rows)


def test_without_damage_there_is_no_share_and_without_sft_nothing_to_compare_with(front):
    front["points"][1]["perplexity"]["mean"] = SFT - 0.5
    assert damage_undone(front)[0]["damage_undone"] is None
    front["points"][2]["perplexity"] = None
    assert [row["soup"] for row in damage_undone(front)] == [1, 3, 4, 5]
    assert damage_undone(front, "reversed") == []
    del front["points"][0]
    assert damage_undone(front) == []


def test_every_point_an_arrow_for_every_weight_and_a_line_for_sft(front, tmp_path, monkeypatch):
    figure = saved_figure_of(plot_forgetting, front, tmp_path / "forgetting.png", monkeypatch)
    by_id = {point["id"]: point for point in front["points"]}
    assert len(figure.axes) == 2
    for panel, reward in zip(figure.axes, ("a", "b"), strict=True):
        places = {i: (p["scores"][reward]["mean"], p["perplexity"]["mean"]) for i, p in by_id.items()}
        drawn = {place for line in panel.lines for place in zip(*line.get_data(), strict=True)}
        assert set(places.values()) <= drawn
        arrows = {(text.xyann, text.xy) for text in panel.texts if not text.get_text()}
        assert arrows == {(places[i], places[i + 5]) for i in range(1, 6)}
        (across,) = [line for line in panel.lines if list(line.get_ydata()) == [SFT, SFT]]
        assert across.get_color() == GROUPS["sft"].colour and list(across.get_xdata()) == [0, 1]
        assert panel.get_xlabel() == f"{reward}\nmean score, higher is better"
        assert panel.get_xlim() == score_limits(front, reward)
        assert panel.get_ylabel() == perplexity_label(front)
    assert perplexity_label(front) == ("perplexity of 50 control texts\na public corpus, lower is better")


def test_a_dominated_point_is_faint_and_hollow(front, tmp_path, monkeypatch):
    figure = saved_figure_of(plot_forgetting, front, tmp_path / "forgetting.png", monkeypatch)
    hollow = [
        line for line in figure.axes[0].lines if line.get_color() == GROUPS["lines"].colour and line.get_alpha() == 0.4
    ]
    (line,) = [line for line in hollow if line.get_markerfacecolor() == "white"]
    assert front["fronts"]["lines"]["nondominated"] == [6, 7, 9, 10]
    assert list(line.get_ydata()) == [LINES[2]]


def test_the_shares_are_said_below_the_panels(front, tmp_path, monkeypatch):
    front["points"][10]["perplexity"]["mean"] = SFT + 1.5
    figure = saved_figure_of(plot_forgetting, front, tmp_path / "forgetting.png", monkeypatch)
    key = figure.legends[1].get_texts()[0].get_text()
    assert key.startswith("soup to LiNeS: 67 % less damage (median of 5)")
    assert key.endswith("single policies: harmless 67 % less, helpful 50 % less")


@pytest.mark.parametrize("rewards", [2, 3, 4])
def test_no_text_is_cut_or_covers_another(make_points, rewards, tmp_path, monkeypatch):
    names = [f"a reward model with quite a long name {k}" for k in range(rewards)]
    front = front_of(make_points(rewards=rewards), names, 20)
    for group in ("scaled", "reversed", "morlhf", "a group of the user with a long name"):
        for point in front["points"][1:4]:
            front["points"].append({**point, "id": len(front["points"]), "group": group})
    figure = saved_figure_of(plot_forgetting, front, tmp_path / "forgetting.png", monkeypatch)
    panels = [panel for panel in figure.axes if panel.axison]
    assert len(panels) == rewards
    texts = [text for panel in panels for text in panel.texts if text.get_text()]
    assert_texts_are_whole_and_apart(figure, texts)


def test_it_is_drawn_without_pyplot_and_the_same_every_time(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        first, second = (plot_forgetting(front, tmp_path / f"{i}{suffix}").read_bytes() for i in range(2))
        assert first == second and first.startswith(magic)


def test_a_front_without_perplexities_is_refused(make_points, tmp_path):
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=make_points(), resamples=20)
    with pytest.raises(ValueError, match=r"no point of the front has a perplexity.*control:"):
        plot_forgetting(front, tmp_path / "forgetting.png")
