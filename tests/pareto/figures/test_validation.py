"""The heat map through what matplotlib was told to draw: places, texts, colours, frame."""

from __future__ import annotations

import sys
from itertools import product

import pytest

from rlhf_lines.pareto import plot_validation
from rlhf_lines.pareto.schema import GROUPS
from tests.pareto.drawn import assert_texts_are_whole_and_apart, saved_figure_of


def row(alpha, beta, schedule, value):
    volume = {"value": value, "low": value - 0.25, "high": value + 0.5}
    return {"alpha": alpha, "beta": beta, "schedule": schedule, "hypervolume": volume}


@pytest.fixture
def front():
    """Two schedules; pairs in no order, of which (auto, 1) was not tried."""
    pairs = [(a, b) for a, b in product(["auto", 1.0, 0.5], [1.0, 0.0, 0.25]) if (a, b) != ("auto", 1.0)]
    grid = [
        row(a, b, schedule, 1.0 + 0.125 * i + 0.5 * (schedule == "sqrt"))
        for schedule in ("linear", "sqrt")
        for i, (a, b) in enumerate(pairs)
    ]
    chosen = {"alpha": "auto", "beta": 0.25, "schedule": "sqrt"}
    validation = {"prompts": 30, "weights": 5, "reference_point": [0.0, 0.0], "grid": grid, "chosen": chosen}
    return {"rewards": ["a", "b"], "validation": validation}


def panels_of(figure):
    return [panel for panel in figure.axes if panel.get_title(loc="left")]


def test_every_pair_is_in_its_cell_with_its_interval(front, tmp_path, monkeypatch):
    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    panels = panels_of(figure)
    assert [panel.get_title(loc="left") for panel in panels] == ["LiNeS, linear", "LiNeS, sqrt"]
    alphas, betas = [0.5, 1.0, "auto"], [0.0, 0.25, 1.0]
    for panel, schedule in zip(panels, ("linear", "sqrt"), strict=True):
        assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "0.25", "1"]
        assert [text.get_text() for text in panel.get_yticklabels()] == ["0.5", "1", "auto"]
        (image,) = panel.images
        assert image.origin == "lower"
        values, texts = image.get_array(), {text.get_position(): text.get_text() for text in panel.texts}
        rows = [r for r in front["validation"]["grid"] if r["schedule"] == schedule]
        assert len(texts) == len(rows) == 8 and values.mask.sum() == 1 and values.mask[2, 2]
        for r in rows:
            i, j, volume = alphas.index(r["alpha"]), betas.index(r["beta"]), r["hypervolume"]
            assert values[i, j] == volume["value"]
            text = f"{volume['value']:.3f}\n[{volume['low']:.3f}, {volume['high']:.3f}]"
            assert texts[j, i] == text
        assert image.get_clim() == (1.0, 1.0 + 0.125 * 7 + 0.5)


def test_the_chosen_cell_alone_has_a_frame(front, tmp_path, monkeypatch):
    from matplotlib.colors import to_hex

    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    first, second = panels_of(figure)
    assert list(first.patches) == []
    (frame,) = second.patches
    assert frame.get_xy() == (0.5, 1.5) and (frame.get_width(), frame.get_height()) == (1, 1)
    assert to_hex(frame.get_edgecolor()).upper() == GROUPS["rewarded_soup"].colour and not frame.get_fill()
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "chosen"
    assert figure.legends[0].get_title().get_text() == "hypervolume, 30 validation prompts, 5 weights"


def test_every_tuned_group_has_its_map_in_the_same_colours(front, tmp_path, monkeypatch):
    grid = [row(alpha, 0.0, "linear", alpha) for alpha in (0.5, 1.0, 3.0)]
    chosen = {"alpha": 3.0, "beta": 0.0, "schedule": "linear"}
    front["validation"]["groups"] = {"scaled": {"grid": grid, "chosen": chosen, "at_edge": True}}
    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    panels = panels_of(figure)
    assert [panel.get_title(loc="left") for panel in panels] == ["LiNeS, linear", "LiNeS, sqrt", "even scaling"]
    assert {panel.images[0].get_clim() for panel in panels} == {(0.5, 3.0)}
    assert [len(panel.patches) for panel in panels] == [0, 1, 1]
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "chosen (at an edge of what was tried: even\nscaling)"
    assert_texts_are_whole_and_apart(figure, [text for panel in panels for text in panel.texts])


def test_a_text_is_readable_on_the_colour_of_its_cell(front, tmp_path, monkeypatch):
    from matplotlib.colors import to_rgb

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    front["validation"]["grid"] = [row(1.0, beta, "linear", float(beta)) for beta in range(40)]
    front["validation"]["chosen"] = {"alpha": 1.0, "beta": 3, "schedule": "linear"}
    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    (panel,) = panels_of(figure)
    (image,) = panel.images
    for text in panel.texts:
        j, i = text.get_position()
        cell = luminance(image.cmap(image.norm(image.get_array()[i, j]))[:3])
        dark, light = sorted((cell, luminance(text.get_color())))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, AA


@pytest.mark.parametrize("pairs", [[(0.5, 0.5)], [(0.5, 0.0), (1.0, 0.5), (2.0, 1.0)], list(product([1.0], range(9)))])
def test_a_list_of_pairs_a_single_one_and_a_long_row_can_be_drawn(front, pairs, tmp_path, monkeypatch):
    grid = [row(a, float(b), "linear", 1234.5) for a, b in pairs]
    chosen = {"alpha": pairs[-1][0], "beta": float(pairs[-1][1]), "schedule": "linear"}
    front["validation"] |= {"grid": grid, "chosen": chosen}
    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    (panel,) = panels_of(figure)
    assert len(panel.texts) == len(pairs) and len(panel.patches) == 1
    assert_texts_are_whole_and_apart(figure, panel.texts)
    # Every text stays inside its cell.
    for text in panel.texts:
        box = text.get_window_extent().transformed(panel.transData.inverted())
        j, i = text.get_position()
        assert j - 0.5 < box.x0 < box.x1 < j + 0.5 and i - 0.5 < box.y0 < box.y1 < i + 0.5


def test_no_text_is_cut_or_covers_another(front, tmp_path, monkeypatch):
    figure = saved_figure_of(plot_validation, front, tmp_path / "validation.png", monkeypatch)
    assert_texts_are_whole_and_apart(figure, [text for panel in panels_of(figure) for text in panel.texts])


def test_it_is_drawn_without_pyplot_and_the_same_every_time(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        first, second = (plot_validation(front, tmp_path / f"{i}{suffix}").read_bytes() for i in range(2))
        assert first == second and first.startswith(magic)


@pytest.mark.parametrize("validation", [None, {"grid": []}])
def test_a_front_without_validation_is_refused(validation, tmp_path):
    with pytest.raises(ValueError, match="no validation results to draw; a sweep has them when"):
        plot_validation({"validation": validation}, tmp_path / "validation.png")
