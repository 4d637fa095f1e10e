"""The picture is written, and draws as a front only what is one."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from rlhf_lines.pareto import build_front, plot_front
from rlhf_lines.pareto.figures.canvas import score_limits
from rlhf_lines.pareto.schema import GROUPS as LOOKS
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


GROUPS = ("scaled", "reversed", "morlhf")


@pytest.fixture
def front(make_points):
    """Two groups and the SFT model, with a hull that is easy to follow."""
    policies = ["runs/helpful", "runs/harmless"]
    front = build_front(
        rewards=["a", "b"], split="test", seed=0, points=make_points(), policies=policies, resamples=100
    )
    front["fronts"]["lines"]["hull"] = [6, 9, 10]
    return front


@pytest.fixture
def front_of_six(make_points):
    points = make_points()
    for group in GROUPS:
        for point in make_points(seed=4)[1:6]:
            points.append({**point, "id": len(points), "group": group})
    return build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=50)


class Drawn:
    """Records what a picture draws in the colour of a group."""

    def __init__(self, group):
        self.colour = LOOKS[group].colour
        self.steps, self.lines, self.bands = [], [], []

    def step(self, x, y, **style):
        self.keep(self.steps, style, list(x), list(y))

    def plot(self, x, y, **style):
        self.keep(self.lines, style, list(x))

    def errorbar(self, **style):
        pass

    def fill_between(self, *args, **style):
        self.keep(self.bands, style, *(np.asarray(arg) for arg in args))

    def keep(self, kind, style, *values):
        if style["color"] == self.colour:
            kind.append((style, *values))


@pytest.fixture
def drawn_of(monkeypatch, tmp_path):
    """A function from a front and one of its groups to what the picture draws of it, which matplotlib never sees."""

    def draw(front, group):
        drawn = Drawn(group)
        for name in ("step", "plot", "errorbar", "fill_between"):
            record = getattr(drawn, name)
            monkeypatch.setattr(
                f"matplotlib.axes.Axes.{name}", lambda axes, *args, record=record, **style: record(*args, **style)
            )
        plot_front(front, tmp_path / "front.png")
        return drawn

    return draw


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 10_000
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_two_rewards_give_one_picture_without_pyplot_and_its_global_state(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert png_size(plot_front(front, tmp_path / "front.png"))[0] == 3.25 * 400  # of a column


def test_three_rewards_give_a_panel_for_each_pair(make_points, tmp_path):
    front = build_front(rewards=["a", "b", "c"], split="test", seed=0, points=make_points(rewards=3), resamples=100)
    width, height = png_size(plot_front(front, tmp_path / "front.png"))
    assert width == 6.75 * 400 > 2 * height  # of both columns


def test_one_objective_has_a_row_for_each_group(make_points, tmp_path, monkeypatch):
    points = [{**point, "scores": point["scores"][:, :1]} for point in make_points()]
    front = build_front(rewards=["a"], split="test", seed=0, points=points, resamples=50)
    figure = saved_figure_of(plot_front, front, tmp_path / "front.png", monkeypatch)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["LiNeS", "rewarded soup", "SFT"]
    drawn = {}
    for line in panel.lines:
        if line.get_marker() not in ("None", "none", None):
            drawn.update(zip(line.get_xdata(), line.get_ydata(), strict=True))
    for point in front["points"]:
        row = ["lines", "rewarded_soup", "sft"].index(point["group"])
        assert abs(drawn[point["scores"]["a"]["mean"]] - row) < 0.35
    for group in ("lines", "rewarded_soup"):
        heights = [drawn[p["scores"]["a"]["mean"]] for p in front["points"] if p["group"] == group]
        assert np.diff(heights) == pytest.approx([0.7 / 5] * 4)
    assert_texts_are_whole_and_apart(figure)


def test_what_cannot_be_drawn_is_named(front, tmp_path):
    with pytest.raises(ValueError, match=r"front.svg: expected a name that ends in .png or .pdf"):
        plot_front(front, tmp_path / "front.svg")
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        plot_front(front, tmp_path / "absent" / "front.png")
    assert list(tmp_path.iterdir()) == []


def test_names_with_markup_are_drawn_as_they_are(make_points, tmp_path):
    front = build_front(rewards=["$a_{$", "$^$"], split="test", seed=0, points=make_points(), resamples=100)
    assert png_size(plot_front(front, tmp_path / "front.png"))[0] == 3.25 * 400  # of a column


def test_a_pdf_embeds_its_letters_and_knows_no_date(front, tmp_path):
    data = plot_front(front, tmp_path / "front.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontFile2" in data and b"/CIDFontType2" in data and b"/Type3" not in data
    assert b"CreationDate" not in data and b"ModDate" not in data


def test_the_same_front_gives_the_same_bytes_in_every_process(front, tmp_path):
    import json

    (tmp_path / "front.json").write_text(json.dumps(front))
    code = (
        "import json, sys; from rlhf_lines.pareto import plot_front\n"
        "folder = sys.argv[1]; front = json.load(open(folder + '/front.json'))\n"
        "[plot_front(front, f'{folder}/{sys.argv[2]}.{suffix}') for suffix in ('png', 'pdf')]"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path), seed], check=True, env=environment)
    for suffix in ("png", "pdf"):
        first, second = ((tmp_path / f"{seed}.{suffix}").read_bytes() for seed in ("1", "2"))
        assert first == second


def depth(line):
    """What is drawn with a higher number lies on top."""
    return line[0]["zorder"]


def test_a_dominated_point_is_faint_hollow_and_off_the_staircase(front, drawn_of):
    means = {point["id"]: point["scores"]["a"]["mean"] for point in front["points"]}
    assert front["fronts"]["lines"]["nondominated"] == [6, 7, 9, 10]
    drawn = drawn_of(front, "lines")
    (_, x, y) = drawn.steps[0]
    # From the reference point through the four points in order, then down to the reference point.
    assert x == [front["reference_point"][0], means[6], means[7], means[9], means[10], means[10]]
    assert y == sorted(y, reverse=True) and y[-1] == front["reference_point"][1]
    hull, faint, strong = sorted(drawn.lines, key=depth)
    assert hull[1] == [means[6], means[9], means[10]] and hull[0]["linewidth"] < 1
    assert faint[1] == [means[8]] and faint[0]["markerfacecolor"] == "white" and faint[0]["alpha"] < 0.5
    assert strong[1] == [means[i] for i in (6, 7, 9, 10)] and "alpha" not in strong[0]


def test_ablations_have_no_hull(front_of_six, drawn_of):
    for entry in front_of_six["fronts"].values():
        entry["hull"] = entry["nondominated"]
    for group, expected in (("lines", 1), ("rewarded_soup", 1), ("scaled", 0), ("morlhf", 0)):
        drawn = drawn_of(front_of_six, group)
        assert len(drawn.steps) == 1 and len(drawn.bands) == 0 and len(drawn.lines) == 2 + expected


def test_groups_differ_in_colour_marker_and_line(front_of_six, drawn_of):
    styles = []
    for group in ("lines", "rewarded_soup", *GROUPS):
        drawn = drawn_of(front_of_six, group)
        ((line, _, _),) = drawn.steps
        marks = max(drawn.lines, key=depth)[0]
        look = LOOKS[group]
        assert line["color"] == marks["color"] == look.colour and marks["marker"] == look.marker
        assert line["linestyle"] == ((0, look.dashes) if look.dashes else "solid")
        styles.append((line["color"], marks["marker"], line["linestyle"]))
    assert all(a != b for pair in combinations(styles, 2) for a, b in zip(*pair, strict=True))


def test_every_line_bears_its_name(front_of_six, monkeypatch, tmp_path):
    figure = saved_figure_of(plot_front, front_of_six, tmp_path / "front.png", monkeypatch)
    (panel,) = figure.axes
    colours = {text.get_text(): text.get_color() for text in panel.texts}
    for look in LOOKS.values():
        assert colours[look.label] == look.colour
        (text,) = [text for text in panel.texts if text.get_text() == look.label]
        own = [tuple(p["scores"][r]["mean"] for r in "ab") for p in front_of_six["points"] if p["group"] == look.name]
        assert any(text.xy == pytest.approx(place) for place in own)
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert next(text.get_text() for text in figure.legends[0].get_texts()) == "dominated"
    assert figure.legends[0].get_title().get_text() == "bars: 95 % intervals over 40 prompts"


def test_no_text_is_smaller_than_eight_points_and_axes_are_those_of_other_figures(front, monkeypatch, tmp_path):
    from matplotlib.text import Text

    figure = saved_figure_of(plot_front, front, tmp_path / "front.png", monkeypatch)
    assert {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()} == {8}
    (panel,) = figure.axes
    assert (panel.get_xlim(), panel.get_ylim()) == (score_limits(front, "a"), score_limits(front, "b"))
    assert (panel.get_xlabel(), panel.get_ylabel()) == tuple(f"{r}\nmean score, higher is better" for r in "ab")
    for reward, k in (("a", 0), ("b", 1)):
        low, high = score_limits(front, reward)
        scores = [point["scores"][reward] for point in front["points"]]
        assert low < min(front["reference_point"][k], *(score["low"] for score in scores))
        assert high > max(score["high"] for score in scores)


@pytest.mark.parametrize("rewards", [2, 3])
def test_no_text_is_cut_or_covers_another(make_points, rewards, monkeypatch, tmp_path):
    points = make_points(rewards=rewards)
    for group in (*GROUPS, "a group of the user with a long name"):
        for point in make_points(rewards=rewards, seed=4)[1:6]:
            points.append({**point, "id": len(points), "group": group})
    names = [f"a reward model with quite a long name {k}" for k in range(rewards)]
    front = build_front(rewards=names, split="test", seed=0, points=points, resamples=20)
    figure = saved_figure_of(plot_front, front, tmp_path / "front.png", monkeypatch)
    assert_texts_are_whole_and_apart(figure)


def test_single_policies_are_named_by_their_folders(front, make_points, monkeypatch, tmp_path):
    def names(front):
        (panel,) = saved_figure_of(plot_front, front, tmp_path / "front.png", monkeypatch).axes
        alone = [text for text in panel.texts if text.get_text().endswith(" alone")]
        return {text.get_text(): pytest.approx(text.xy) for text in alone}

    ends = {point["id"]: tuple(score["mean"] for score in point["scores"].values()) for point in front["points"]}
    # Weights (0, 1) have id 1 and (1, 0) have id 5.
    assert names(front) == {"harmless alone": ends[1], "helpful alone": ends[5]}
    points = make_points()
    points[1]["spec"]["rule"] = "sum"  # two times the policy
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, policies=front["policies"])
    assert names(front) == {"helpful alone": ends[5]}


def test_a_front_below_the_reference_point_has_no_staircase(front, drawn_of):
    drawn = drawn_of({**front, "reference_point": [100.0, 100.0]}, "rewarded_soup")
    assert drawn.steps == [] and len(drawn.lines) == 3  # hull, dominated, nondominated
