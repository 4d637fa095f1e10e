"""What completions are like, read from a store made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.finished.behaviour import end_tokens, lost_prompts, read_behaviour
from rlhf_lines.sweep.store import Row, Store


MOST, END, OTHER_END = 4, 1, 2
SPECS = [MergeSpec("linear", weights) for weights in ((0.0, 0.0), (1.0, 0.0))]
PROMPTS = ["first", "second", "third"]
# By spec, prompt and sample: text, token ids, and the scores of brief and kind.
WRITTEN = [
    [
        [("a", (5, END), 1.0, 0.0), ("b c", (5, 6, END), 2.0, 0.0)],
        [("d", (7, 8, 9, 3), 3.0, 1.0), ("", (END,), 4.0, 1.0)],
        [("e", (6, OTHER_END), 5.0, 2.0), ("e", (6, OTHER_END), 6.0, 2.0)],
    ],
    [
        [("x", (9, 9, 9, 9), 0.0, 3.0), ("y", (9, 9, 9, END), 0.0, 3.0)],
        [(" \n", (END,), 3.0, 1.0), ("\t", (OTHER_END,), 4.0, 1.0)],
        [("z", (7, 8, 9, OTHER_END), -5.0, -2.0), ("z", (9, 8, 7, 6), -6.0, -2.0)],
    ],
]


@pytest.fixture
def store(tmp_path):
    """Two specs with two samples of each of three prompts, and a prompt of another split."""
    with Store(tmp_path) as store:
        store.remember(max_new_tokens=MOST, end_tokens=[END, OTHER_END])
        points = [*store.add_points("test", "sft", SPECS[:1]), *store.add_points("test", "soup", SPECS[1:])]
        store.add_points("validation", "soup", SPECS[1:])
        store.add_prompts("validation", {"elsewhere": "elsewhere"})
        prompts = store.add_prompts("test", {text: f"<{text}>" for text in PROMPTS})
        for point, of_spec in zip(points, WRITTEN, strict=True):
            for prompt, samples in zip(prompts, of_spec, strict=True):
                rows = [
                    Row(point.spec_id, prompt, i, text, ids, 0.0, {"brief": brief, "kind": kind})
                    for i, (text, ids, brief, kind) in enumerate(samples)
                ]
                store.add(rows)
        elsewhere = next(iter(store.prompts("validation")))
        store.add([Row(points[1].spec_id, elsewhere, 0, "", (END,), 0.0, {"brief": 9.0, "kind": 9.0})])
        yield store


def test_the_measures_are_those_of_what_is_stored(store):
    sft, soup = read_behaviour(store, "test", ["kind", "brief"]).values()
    assert sft.tokens.tolist() == [[2, 3], [4, 1], [2, 2]]
    assert sft.empty.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert sft.cut.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert sft.distinct.tolist() == [[1, 1], [1, 1], [0.5, 0.5]]
    assert sft.scores.tolist() == [[[row[3], row[2]] for row in samples] for samples in WRITTEN[0]]
    assert soup.empty.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert soup.cut.tolist() == [[1, 0], [0, 0], [0, 1]]  # of the full length, but ended, are two
    assert soup.distinct.mean() == pytest.approx(5 / 6)


def test_a_run_of_an_earlier_version_tells_end_tokens_by_its_short_completions(store):
    with store._db as database:
        database.execute("DELETE FROM meta WHERE key = 'end_tokens'")
    assert end_tokens(store) == {END, OTHER_END}
    _, soup = read_behaviour(store, "test", ["kind"]).values()
    assert soup.cut.tolist() == [[1, 0], [0, 0], [0, 1]]


def test_where_the_longest_length_is_not_known_no_share_is_cut(store):
    with store._db as database:
        database.execute("DELETE FROM meta")
    assert all(behaviour.cut is None for behaviour in read_behaviour(store, "test", ["kind"]).values())


def test_the_prompts_that_lost_most(store):
    ids = {prompt.text: i for i, prompt in store.prompts("test").items()}
    sft, soup = store.points("test")
    lost = lost_prompts(store, "test", soup.id, ["brief", "kind"])
    # first lost 1.5 in brief, whose spread is larger, and gained 3 in kind; second lost nothing
    assert lost == [(ids["third"], "third", {"brief": -11.0, "kind": -4.0})]
    of_brief = lost_prompts(store, "test", soup.id, ["brief"])
    assert [(prompt.text, prompt.differences["brief"]) for prompt in of_brief] == [("third", -11.0), ("first", -1.5)]
    assert lost_prompts(store, "test", soup.id, ["brief"], count=1)[0].text == "third"
    assert lost_prompts(store, "test", sft.id, ["brief"]) == []


@pytest.mark.parametrize(("split", "point", "what"), [("test", 77, "point 77"), ("validation", 3, "the SFT model")])
def test_a_point_that_is_not_there_is_named(store, split, point, what):
    with pytest.raises(ValueError, match=f"no {split} completions of {what}"):
        lost_prompts(store, split, point, ["brief"])


def test_prompts_with_different_numbers_of_completions_are_refused(store):
    spec, prompt = store.points("test")[0].spec_id, next(iter(store.prompts("test")))
    store.add([Row(spec, prompt, 2, "more", (END,), 0.0, {"brief": 1.0, "kind": 1.0})])
    with pytest.raises(ValueError, match=r"prompts have \[2, 3\] completions each"):
        read_behaviour(store, "test", ["kind"])


def test_a_score_that_is_missing_is_named(store):
    with pytest.raises(ValueError, match="sample 0 of prompt 2 under spec 1 has no score 'funny'"):
        read_behaviour(store, "test", ["kind", "funny"])


def test_scores_and_lengths_are_not_mixed_up_between_prompts(store):
    """The same rows in SQL."""
    rows = store._db.execute("SELECT spec, prompt, sample, tokens FROM completions WHERE prompt != 1 ORDER BY 1, 2, 3")
    found = np.concatenate([behaviour.tokens.ravel() for behaviour in read_behaviour(store, "test", ["kind"]).values()])
    assert found.tolist() == [row[3] for row in rows]
