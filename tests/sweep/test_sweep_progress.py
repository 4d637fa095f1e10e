"""One bar counts a whole sweep: completions of all phases and texts, those that a stopped run has left included."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from rlhf_lines import cli
from tests.sweep.of_a_run import ROWS, TEST, VALIDATION, read


pytestmark = pytest.mark.usefixtures("without_pictures")
LINE = re.compile(
    r"^sweep, (?P<phase>[a-z ]+?)( \(up to (?P<more>[\d,]+) more may come\))?: (?P<done>\d+) of (?P<total>\d+) "
    r"(?P<unit>[a-z ]+), \S+ so far, \S+ left"
)
TEXTS = 3
CHOOSING, MEASURING, READING = "validation prompts", "test prompts", "control texts"


@pytest.fixture
def told(flags, tmp_path, capsys):
    """A function from changes of the small sweep to its phases and totals, what it had done first and last, its unit.

    Phases and totals are those of the lines on stderr, each once.
    """
    (tmp_path / "texts.txt").write_text("\n\n".join(["a fox", "jumps", "over it"]))

    def run(*more: str, status: int = 0, **changes):
        capsys.readouterr()
        assert cli.main(["sweep", *flags(tmp_path / "sweep", **changes), *more]) == status
        err = capsys.readouterr().err
        (run.to_come,) = re.findall(r"^to come: (.*)$", err, flags=re.M)
        lines = [LINE.match(line) for line in err.splitlines() if line.startswith("sweep, ")]
        assert lines and all(lines)
        assert all(int(a["done"]) <= int(b["done"]) for a, b in itertools.pairwise(lines))
        phases = [
            (phase, int(total)) for (phase, total), _ in itertools.groupby((m["phase"], m["total"]) for m in lines)
        ]
        run.more = {int(line["total"]): int(line["more"] or 0) for line in lines if line["phase"] == CHOOSING}
        assert not any(line["more"] for line in lines if line["phase"] != CHOOSING)
        (unit,) = {line["unit"] for line in lines}
        return phases, (int(lines[0]["done"]), int(lines[-1]["done"])), unit

    return run


def stored(folder) -> int:
    return sum(read(folder, f"SELECT COUNT(*) FROM {table}")[0][0] for table in ("completions", "control"))


def test_completions_and_texts_of_all_phases_are_one_total(told, tmp_path):
    total = ROWS + (1 + 5 + 5) * TEXTS
    phases, done, unit = told(control=tmp_path / "texts.txt")
    assert phases == [(CHOOSING, total), (MEASURING, total), (READING, total)]
    test, texts = 11 * TEST, 11 * TEXTS  # the SFT model, and two groups at five weights
    assert told.to_come == (
        f"{ROWS - test} completions on validation prompts, then {test} completions on test prompts, then {texts} "
        "readings of control texts"
    )
    assert done == (0, total) and unit == "completions and texts"
    assert stored(tmp_path / "sweep") == total


def test_a_total_that_shrinks_is_corrected_where_it_becomes_known(told, tmp_path):
    """LiNeS with alpha 1 and beta 0 is the rewarded soup; of further groups, one is that, too."""
    groups = ['{"name": "plain", "alpha": 1}', '{"name": "half", "alpha": 0.5}']
    settings = {"scalings": ["1 0", "1 0.5 sqrt"], "groups": groups, "samples_per_prompt": 2}
    phases, done, unit = told(**settings)
    expected = (3 + 2 * 3) * VALIDATION * 2  # the SFT model and the two policies, which LiNeS with beta 0 is, too
    chosen_from = read(tmp_path / "sweep", "SELECT DISTINCT spec FROM points WHERE split = 'validation'")
    choosing = len(chosen_from) * VALIDATION * 2
    specs = read(tmp_path / "sweep", "SELECT DISTINCT spec FROM points WHERE split = 'test'")
    assert len(specs) in (1 + 5 + 5, 1 + 5 + 5 + 5)  # plain is the soup, and so may be the chosen one
    total = choosing + len(specs) * TEST * 2
    later = (1 + 4 * 5) * TEST * 2
    assert phases == [(CHOOSING, expected + later), (CHOOSING, choosing + later), (MEASURING, total)]
    assert choosing < expected
    assert done == (0, total) and unit == "completions" and stored(tmp_path / "sweep") == total


def test_merges_that_several_groups_have_are_counted_once_from_the_start(told, tmp_path):
    """Alpha 0.5 and 0 with beta 0 of LiNeS, of reversed LiNeS and of scaled; of them alpha 0 is the SFT model."""
    settings = {"scalings": ["0.5 0 sqrt", "0 0", "0.5 1"], "scaled_alphas": [0.5, 0], "controls": "true"}
    phases, _, _ = told(**settings)
    choosing = (3 + 3 * 3) * VALIDATION  # the anchors; 0.5 0, 0.5 1 and 0.5 1 reversed at 3 weights
    assert phases[0] == (CHOOSING, choosing + (1 + 4 * 5) * TEST)
    assert told.to_come.startswith(f"{choosing} completions on validation prompts, then")
    of_split = "SELECT COUNT(*) FROM completions c JOIN prompts p ON p.id = c.prompt WHERE split = 'validation'"
    assert read(tmp_path / "sweep", of_split) == [(choosing,)]
    specs = [json.loads(spec) for (spec,) in read(tmp_path / "sweep", "SELECT spec FROM specs")]
    assert {spec["schedule"] for spec in specs if spec["beta"] == 0} == {"linear"}


def test_predicted_weights_are_counted_before_and_after_they_are_known(told, tmp_path):
    groups = ['{"name": "plain"}']  # whose predictions are those of the soup
    phases, done, _ = told(
        sampler="map", num_weights=4, map_points=3, scalings=["0.5 1.5"], groups=groups, control=tmp_path / "texts.txt"
    )
    specs = read(tmp_path / "sweep", "SELECT DISTINCT spec FROM points")
    before, after, each = 1 + 4 + 4 + 3 * 3, len(specs), TEST + TEXTS
    assert 9 < after < before
    assert phases == [
        (MEASURING, (1 + 3 * 4 + 3 * 3) * each),
        (MEASURING, before * each),
        ("predicted weights", after * each),
        (READING, after * each),
    ]
    assert done == (0, after * each) and stored(tmp_path / "sweep") == after * each


@pytest.mark.parametrize("gain", [0, 1000])
def test_a_search_is_counted_at_most_and_then_as_it_was(told, tmp_path, gain):
    settings = {"sampler": "search", "search_points": 30, "search_gain": gain, "scalings": ["0.5 1.5"]}
    phases, done, _ = told(**settings)
    chosen_from = (3 + 3) * VALIDATION
    most = chosen_from + 30 * VALIDATION + (1 + 3 * 5) * TEST
    assert phases[0] == (CHOOSING, most)
    assert {step for step in phases if step[0] == "search on validation prompts"} == {(phases[1][0], most)}
    total = stored(tmp_path / "sweep")
    assert phases[-1] == (MEASURING, total) and done == (0, total)
    searched = read(
        tmp_path / "sweep", "SELECT COUNT(*) FROM points WHERE split = 'validation' AND \"group\" = 'search'"
    )
    assert searched == [(30,)] if gain == 0 else searched[0][0] < 30


def test_what_may_come_beyond_edges_is_told_before_it_does(told, tmp_path):
    """Of LiNeS alone, at 3 weights: the better one of two alphas is at an edge, so that one more comes, or two."""
    phases, _, _ = told(alphas=[0.5, 1.0], betas=[0.5], edge_extensions=2)
    first, each = (2 * 3 + 3) * VALIDATION + (1 + 5 + 5) * TEST, 3 * VALIDATION
    assert phases[:2] == [(CHOOSING, first), (CHOOSING, first + each)]
    assert told.to_come.startswith(
        f"{first - 11 * TEST} completions on validation prompts (up to {2 * each} more where the best scaling lies at "
        f"an edge of those given), then {11 * TEST} completions on test prompts"
    )
    expected = {first: 2 * each, first + each: each, first + 2 * each: 0}
    assert told.more == {total: expected[total] for total in told.more} and len(told.more) > 1


@pytest.mark.parametrize("calls", [1, 8])  # while it chooses, and after
def test_a_resumed_sweep_begins_at_what_is_there(told, tmp_path, rewards, calls):
    total = ROWS + (1 + 5 + 5) * TEXTS
    settings = {"control": tmp_path / "texts.txt", "batch_size": 16}
    rewards.FAIL_AT, rewards.ERROR = calls, KeyboardInterrupt
    phases, (first, last), _ = told(status=130, **settings)
    left = stored(tmp_path / ".sweep.partial")
    assert (first, last) == (0, left) and 0 < left < total and phases[-1] == ((CHOOSING, MEASURING)[calls > 1], total)
    rewards.FAIL_AT = None
    phases, done, _ = told("--resume", **settings)
    assert phases == [(CHOOSING, total), (MEASURING, total), (READING, total)] and done == (left, total)
    assert json.loads((tmp_path / "sweep" / "front.json").read_text())["points"]


def test_texts_that_were_read_are_counted_when_resumed(told, tmp_path, monkeypatch):
    total, settings = ROWS + (1 + 5 + 5) * TEXTS, {"control": tmp_path / "texts.txt"}
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lines.sweep.forgetting.CHUNK", 20)
        patch.setattr("rlhf_lines.sweep.run.Store.add_nll", stop_at_second())
        assert told(status=130, **settings)[1] == (0, ROWS + 20)
    assert told("--resume", **settings)[1] == (ROWS + 20, total)


def stop_at_second():
    """`Store.add_nll`, which Ctrl-C meets when it is called again."""
    from rlhf_lines.sweep.store import Store

    original, calls = Store.add_nll, []

    def add_nll(self, rows):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(self, rows)

    return add_nll
