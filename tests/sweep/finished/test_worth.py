"""The worth of a picked point, from the scores that the run keeps, and what `pick` prints of it."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.pareto import difference_of_best, may_be_best, pick, picked_worth, read_front
from rlhf_lines.sweep.finished.worth import corrected_differences, corrected_worths, worth_of
from rlhf_lines.sweep.store import Store
from tests.sweep.small_run import write_run


REWARDS = ["rule:length", {"model": "rule:length", "name": "second", "options": {"unit": "characters"}}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished sweep with two scores, one of which makes the front."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", REWARDS, ["length"])


def by_hand(run, ids, score):
    """The worth `[points, prompts]` of points, from every completion."""
    with Store(run, reading=True) as store:
        specs = {point.id: point.spec_id for point in store.points("test")}
        found = {}
        for row in store.rows("test", ()):
            found.setdefault((row.spec, row.prompt), []).append(score(row.text))
        prompts = list(store.prompts("test"))
    return np.array([[np.mean(found[specs[i], prompt]) for prompt in prompts] for i in ids])


@pytest.mark.parametrize(
    ("question", "score"),
    [
        ({"preference": [2.0]}, lambda text: -2.0 * len(text.split())),
        ({"minimum": {"length": -9.0}, "maximize": "second"}, lambda text: -len(text)),
    ],
)
def test_the_worth_is_that_of_every_prompt(run, question, score):
    front = read_front(run)
    picked = pick(front, **question)
    values = by_hand(run, picked.among, score)
    found, corrected = worth_of(run, front, picked), picked_worth(values, front["seed"])
    assert found.measured == pytest.approx(values.mean(axis=1).max(), rel=1e-12)
    ends = {name: getattr(corrected, name) for name in ("value", "low", "high")}
    assert (ends["low"] is None) == ("preference" in question)  # of four prompts most have one length in words
    assert found.corrected == {name: end and pytest.approx(end, rel=1e-9) for name, end in ends.items()}
    alike = {picked.among[row] for row in may_be_best(values, front["seed"])}
    assert set(found.alike) == alike - {picked.point["id"]}


def test_the_range_begins_at_the_reference_point(run):
    front = read_front(run)
    picked = pick(front, preference=[1.0], scale="range")
    (low,), (high,) = front["reference_point"], front["ideal_point"]
    if high > low:
        expected = (picked.point["scores"]["length"]["mean"] - low) / (high - low)
        assert worth_of(run, front, picked).measured == pytest.approx(expected, rel=1e-9)
    else:
        assert worth_of(run, front, picked).measured == 0.0


def test_picks_that_share_their_points_are_worth_what_each_is_alone(run):
    front = read_front(run)
    questions = [{"preference": [1.0], "scale": "range"}, {"minimum": {"length": -9.0}, "maximize": "second"}]
    picks = [*(pick(front, **question) for question in questions), pick(front, point=3)]
    alone = [worth_of(run, front, picked) for picked in picks]
    with Store(run, reading=True) as store:
        assert corrected_worths(store, front, picks) == [alone[0].corrected, alone[1].corrected, None]


def test_the_best_of_some_points_less_the_best_of_others(run):
    """By hand, from the lengths of the completions; the SFT model is one point, which was not chosen."""
    front = read_front(run)
    pair = pick(front, preference=[2.0]), pick(front, preference=[2.0], group="rewarded_soup")
    one = pair[0], pick(front, preference=[2.0], group="sft")
    a, *others = (by_hand(run, each.among, lambda text: -2.0 * len(text.split())) for each in (*pair, one[1]))
    with Store(run, reading=True) as store:
        found = corrected_differences(store, front, [pair, None, one, (pick(front, point=3), pair[1])])
    assert found[1] is found[3] is None
    for value, other in zip((found[0], found[2]), others, strict=True):
        expected = difference_of_best(a, other, front["seed"])
        assert value == pytest.approx(
            {"value": expected.value, "low": expected.low, "high": expected.high}, rel=1e-9, abs=1e-12
        )


def test_what_was_not_chosen_has_no_worth(run):
    front = read_front(run)
    assert worth_of(run, front, pick(front, point=3)) is None
    assert worth_of(run, front, pick(front, preference=[1.0], group="sft")) is None


def test_pick_prints_it(run, capsys):
    assert cli.main(["pick", str(run), "--preference", "1"]) == 0
    out = capsys.readouterr().out
    assert "corrected for having been picked" in out and "cannot be told apart from it: " in out
    assert cli.main(["pick", str(run), "--point", "2"]) == 0
    assert "corrected" not in capsys.readouterr().out
