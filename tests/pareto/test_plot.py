"""The picture is written, and draws as a front only what is one."""

import sys

import pytest

from rlhf_lines.pareto import build_front, plot, plot_front


@pytest.fixture
def front(make_points):
    return build_front(rewards=["a", "b"], split="test", seed=0, points=make_points(), resamples=100)


class Panel:
    """Records what would be drawn."""

    def __init__(self):
        self.steps, self.lines = [], []

    def step(self, x, y, **style):
        self.steps.append((style["color"], list(x), list(y)))

    def plot(self, x, y, **style):
        self.lines.append((style, list(x)))

    def errorbar(self, **style):
        pass

    def fill_between(self, *args, **style):
        pass


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 10_000
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_two_rewards_give_one_picture_without_pyplot_and_its_global_state(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert png_size(plot_front(front, tmp_path / "front.png")) == (1400, 1000)


def test_three_rewards_give_a_panel_for_each_pair(make_points, tmp_path):
    front = build_front(rewards=["a", "b", "c"], split="test", seed=0, points=make_points(rewards=3), resamples=100)
    width, height = png_size(plot_front(front, tmp_path / "front.png"))
    assert width > 2.5 * height


def test_one_reward_cannot_be_drawn(front, tmp_path):
    with pytest.raises(ValueError, match="at least two rewards"):
        plot_front({**front, "rewards": ["a"]}, tmp_path / "front.png")


def test_names_with_markup_are_drawn_as_they_are(make_points, tmp_path):
    front = build_front(rewards=["$a_{$", "$^$"], split="test", seed=0, points=make_points(), resamples=100)
    assert png_size(plot_front(front, tmp_path / "front.png")) == (1400, 1000)


def test_a_dominated_point_is_faint_hollow_and_off_the_staircase(front):
    means = {point["id"]: point["scores"]["a"]["mean"] for point in front["points"]}
    assert front["fronts"]["lines"]["nondominated"] == [6, 7, 9, 10]
    panel = Panel()
    plot._draw_group(panel, front, "lines", ("a", "b"), "blue", "o", 3, staircase=True)
    (_, x, y) = panel.steps[0]
    # From the reference point through the four points in order, then down to the reference point.
    assert x == [front["reference_point"][0], means[6], means[7], means[9], means[10], means[10]]
    assert y == sorted(y, reverse=True) and y[-1] == front["reference_point"][1]
    faint, strong = panel.lines
    assert faint[1] == [means[8]] and faint[0]["markerfacecolor"] == "white" and faint[0]["alpha"] < 0.5
    assert strong[1] == [means[i] for i in (6, 7, 9, 10)] and "alpha" not in strong[0]


def test_the_legend_says_the_hypervolume_with_its_interval(front):
    panel = Panel()
    plot._draw_group(panel, front, "lines", ("a", "b"), "blue", "o", 3, staircase=True)
    volume = front["fronts"]["lines"]["hypervolume"]
    expected = f"LiNeS  {volume['value']:.3f} [{volume['low']:.3f}, {volume['high']:.3f}]"
    assert panel.lines[-1][0]["label"] == expected


def test_a_front_below_the_reference_point_has_no_staircase(front):
    panel = Panel()
    front = {**front, "reference_point": [100.0, 100.0]}
    plot._draw_group(panel, front, "lines", ("a", "b"), "blue", "o", 3, staircase=True)
    assert panel.steps == [] and len(panel.lines) == 2
