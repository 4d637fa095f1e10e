"""A figure as matplotlib holds it when it is saved, for tests of what is drawn and where."""

from __future__ import annotations

from itertools import combinations


def saved_figure_of(draw, front, path, monkeypatch):
    """The figure that ``draw(front, path)`` saves, laid out, so that every text has its place."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (save(self, *args, **kw), kept.append(self)))
    assert draw(front, path) == path
    monkeypatch.setattr(Figure, "savefig", save)
    return kept[0]


def assert_texts_are_whole_and_apart(figure, texts=()):
    """Legends, labels of axes and ``texts`` lie on the page, and none covers another."""
    boxes = [text.get_window_extent() for text in [*figure.legends, *texts]]
    for panel in figure.axes:
        labels = (panel.xaxis.label, panel.yaxis.label, panel.title)
        boxes += [label.get_window_extent() for label in labels if label.get_text()]
    width, height = figure.canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
