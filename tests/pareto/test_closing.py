"""What a sweep says at its end is short, explains its words, and names files and commands that there are."""

from __future__ import annotations

import shlex

import pytest

from rlhf_lines import cli
from rlhf_lines.pareto import build_front, front_headline
from rlhf_lines.pareto.closing import FILES, MEANINGS, closing_text
from rlhf_lines.pareto.headline import DEPTH, SAYINGS


CHOSEN = "alpha 1, beta 1 and schedule linear of LiNeS were given."


@pytest.fixture
def front(make_points):
    points = make_points()
    for number, group in enumerate(("scaled", "reversed"), start=1):
        for point in [each for each in points if each["group"] == "lines"]:
            points.append({**point, "id": len(points), "group": group, "scores": point["scores"] - number / 2})
    return build_front(rewards=["helpful", "harmless"], split="test", seed=0, points=points, resamples=100)


@pytest.fixture
def text(front, tmp_path):
    for names, _ in FILES:
        for name in names:
            (tmp_path / name).touch()
    return closing_text(front, tmp_path, [CHOSEN])


def test_it_fits_a_screen(text):
    assert len(text.splitlines()) <= 35
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 110  # paths may be longer


def test_it_begins_with_the_verdicts_of_the_headline_without_numbers(front, text):
    verdicts = {entry["b"]: SAYINGS[entry["verdict"]] for entry in front["comparisons"] if entry["a"] == "lines"}
    names = {"rewarded_soup": "the rewarded soup", "scaled": "even scaling", "reversed": "reversed LiNeS"}
    sayings = "; ".join(verdicts[group].format(name) for group, name in names.items())
    depth = next(sentence for sentence in DEPTH.values() if sentence in front_headline(front))
    assert " ".join(text.split()).startswith(f"For these policies, {sayings}. {depth} {CHOSEN} ")


def test_the_table_has_what_one_chooses_from(front, text):
    best = front["fronts"]["lines"]["nondominated"]
    rows = [line.split()[0] for line in text.partition("\n id ")[2].partition("\n\n")[0].splitlines()[1:]]
    expected = [point["id"] for point in front["points"] if point["id"] in best or point["group"] == "sft"]
    assert list(map(int, rows)) == expected and best
    assert "*" not in text


def test_every_word_that_stands_there_is_explained_and_no_other(text, make_points, tmp_path):
    assert all(f"{word}: {meaning}" in " ".join(text.split()) for word, meaning in MEANINGS.items())
    points = [point for point in make_points() if point["group"] != "lines"]
    without = closing_text(
        build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20), tmp_path, []
    )
    assert "LiNeS" not in without and "control" not in without and "SFT: the model" in without
    for jargon in ("anchor", "outside", "routed", "nondominated"):
        assert jargon not in text


def test_it_names_files_that_are_there_and_commands_that_run(text, front, tmp_path):
    assert all(name in text for names, _ in FILES for name in names)
    (tmp_path / "kl.png").unlink()  # of greedy completions there is none
    assert "kl.png" not in closing_text(front, tmp_path, [])
    commands = [line.strip() for line in text.partition("\nNext\n")[2].splitlines()]
    assert [shlex.split(line)[1] for line in commands] == ["pick", "front", "serve"]
    for line in commands:
        _, *words = shlex.split(line.partition("  ")[0])
        options, rest = cli._parser().parse_known_args(words)
        assert (options.run_dir, rest) == (str(tmp_path), [])
