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
    told = " ".join(text.split())
    of_others = {"wise_ft", "search", "MORLHF"}
    assert {word for word, meaning in MEANINGS.items() if f"{word}: {meaning}" in told} == MEANINGS.keys() - of_others
    points = [point for point in make_points() if point["group"] != "lines"]
    without = closing_text(
        build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20), tmp_path, []
    )
    assert "LiNeS" not in without and "control" not in without and "SFT: the model" in without
    for jargon in ("anchor", "outside", "routed", "nondominated"):
        assert jargon not in text


@pytest.mark.parametrize(("group", "word"), [("wise_ft", "wise_ft"), ("search", "search"), ("morlhf", "MORLHF")])
def test_the_best_group_is_explained_whichever_of_ours_it_is(make_points, tmp_path, group, word):
    """Of a single policy the front of wise_ft is shown, and nothing said what that is."""
    points = [
        {**point, "group": group} if point["group"] == "lines" else point
        for point in make_points()
        if point["group"] != "rewarded_soup"
    ]
    front = build_front(rewards=["a", "b"], split="test", seed=0, points=points, resamples=20)
    told = " ".join(closing_text(front, tmp_path, []).split())
    assert f"The front of the best group: {word}" in told and f"{word}: {MEANINGS[word]}" in told


def test_a_policy_stands_there_once(make_points, tmp_path):
    """Where groups have the same single policies, these filled the table."""
    points = make_points()
    for point in points:
        if point["group"] == "lines":
            point["spec"] = {**point["spec"], "beta": 0.0}
    settings = {"rewards": ["a", "b"], "split": "test", "seed": 0, "resamples": 20, "policies": ["p", "q"]}
    front = build_front(points=points, **settings)
    single = {point["id"] for point in front["points"] if point["single_policy"] is not None}
    assert len(single) == 4, "two of each group"
    table = closing_text(front, tmp_path, []).partition("\n id ")[2].partition("\n\n")[0]
    shown = [int(line.split()[0]) for line in table.splitlines()[1:]]
    best = set(front["fronts"]["lines"]["nondominated"])
    assert set(shown) - single == best - single | {0}
    assert len(single & set(shown)) == 2 and single & best <= set(shown)


def test_what_is_to_be_served_has_one_scaling(front, tmp_path):
    """Of alpha auto each point of LiNeS has its own, which the server refuses."""
    assert f"rlhf-lines serve {tmp_path} --scale range  " in closing_text(front, tmp_path, [])
    next(point for point in front["points"] if point["group"] == "lines")["spec"]["alpha"] = 0.7
    assert f"rlhf-lines serve {tmp_path} --scale range --group rewarded_soup  " in closing_text(front, tmp_path, [])


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
