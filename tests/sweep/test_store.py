"""The run store gives back what it was given, all or none of it."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.store import FILE, Row, Store


SPECS = [MergeSpec("linear", (1.0, 0.0)), MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)]
TEXTS = [
    "plain",
    'it\'s "quoted"; DROP TABLE completions; --',
    "two\nlines\r\n\tand a tab",
    "<script>alert('&amp;')</script> **bold** [link](x)",
    "a NUL \0 in the middle",
    "ünïcödé \U0001f600 \u2028",
    "",
    "  spaces  ",
]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def row(point: int, prompt: int, sample: int, **changes) -> Row:
    values = {"text": "text", "tokens": 3, "kl": 0.5, "scores": {"short": 1.0, "kind": -2.0}, **changes}
    return Row(point, prompt, sample, **values)


def test_texts_and_numbers_are_stored_verbatim(store, tmp_path):
    kl, score = 0.1 + 0.2, 1e-17
    store.add(row(1, i, 0, text=text, tokens=i, kl=kl + i, scores={"r": score * i}) for i, text in enumerate(TEXTS))
    # Read by a connection of its own: what another script sees.
    with sqlite3.connect(tmp_path / FILE) as database:
        found = database.execute("SELECT prompt, text, tokens, kl FROM completions ORDER BY prompt").fetchall()
        scores = database.execute("SELECT prompt, reward, score FROM scores ORDER BY prompt").fetchall()
    database.close()
    assert found == [(i, text, i, kl + i) for i, text in enumerate(TEXTS)]
    assert scores == [(i, "r", score * i) for i in range(len(TEXTS))]


def test_prompts_and_rewards_are_stored_verbatim(store, tmp_path):
    ids = store.add_prompts("test", TEXTS)
    store.add([row(1, ids[0], 0, scores={text: float(i) for i, text in enumerate(TEXTS)})])
    assert store.scores(1, TEXTS).tolist() == [[float(i) for i in range(len(TEXTS))]]
    with Store(tmp_path) as again:
        assert again.add_prompts("test", list(reversed(TEXTS))) == list(reversed(ids))


def test_points_keep_their_ids_and_specs(store, tmp_path):
    first = store.add_points("test", "lines", SPECS)
    soup = store.add_points("test", "rewarded_soup", SPECS[:1])
    validation = store.add_points("validation", "lines", SPECS[:1])
    ids = [point for point, _ in first + soup + validation]
    assert len(set(ids)) == 4
    assert [spec for _, spec in first] == SPECS
    with Store(tmp_path) as again:  # a resumed run asks again, in another order
        assert again.add_points("test", "lines", reversed(SPECS)) == list(reversed(first))
        assert again.points("test") == [(i, "lines", s) for i, s in first] + [(soup[0][0], "rewarded_soup", SPECS[0])]
        assert again.points("validation") == [(validation[0][0], "lines", SPECS[0])]
        assert again.points("train") == []


def test_finished_rows_survive_a_killed_run(tmp_path):
    with Store(tmp_path) as store:
        assert store.finished() == set()
        store.add([row(1, 1, 0), row(1, 1, 1), row(2, 1, 0)])
    with Store(tmp_path) as store:
        assert store.finished() == {(1, 1, 0), (1, 1, 1), (2, 1, 0)}
        store.add([row(2, 1, 1)])
        assert store.finished() == {(1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1)}


def interrupted(rows):
    yield from rows
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([row(1, 2, 0), row(1, 1, 0)], sqlite3.IntegrityError),  # the second is there already
        ([row(1, 2, 0), row(1, 3, 0, scores={"r": None})], sqlite3.IntegrityError),  # fails after both completions
        ([row(1, 2, 0), row(1, 3, 0, kl=None)], sqlite3.IntegrityError),
        (interrupted([row(1, 2, 0)]), KeyboardInterrupt),
    ],
    ids=["twice", "no score", "no kl", "interrupted"],
)
def test_rows_are_added_all_or_none(tmp_path, rows, error):
    with Store(tmp_path) as store:
        store.add([row(1, 1, 0)])
        with pytest.raises(error):
            store.add(rows)
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("SELECT point, prompt, sample FROM completions").fetchall() == [(1, 1, 0)]
        assert database.execute("SELECT reward, score FROM scores").fetchall() == [("kind", -2.0), ("short", 1.0)]
    database.close()


def test_scores_and_kl_are_means_over_samples_in_the_order_of_prompts(store):
    # Stored in another order than that of the prompts; another point has other numbers.
    store.add([row(1, 20, 1, kl=3.0, scores={"b": 6.0, "a": 0.5}), row(1, 10, 0, kl=1.0, scores={"a": 1.0, "b": -1.0})])
    store.add([row(2, 10, 0, kl=9.0, scores={"a": 99.0, "b": 99.0})])
    store.add([row(1, 10, 1, kl=0.5, scores={"a": 2.0, "b": 3.0}), row(1, 20, 0, kl=4.0, scores={"a": 0.0, "b": 4.0})])
    # Prompt 10: a (1 + 2) / 2, b (-1 + 3) / 2, kl (1 + 0.5) / 2. Prompt 20: a 0.5 / 2, b (6 + 4) / 2, kl (3 + 4) / 2.
    np.testing.assert_array_equal(store.scores(1, ["a", "b"]), [[1.5, 1.0], [0.25, 5.0]])
    np.testing.assert_array_equal(store.scores(1, ["b", "a"]), [[1.0, 1.5], [5.0, 0.25]])
    np.testing.assert_array_equal(store.kl(1), [0.75, 3.5])
    np.testing.assert_array_equal(store.scores(2, ["a"]), [[99.0]])


def test_facts_are_remembered_and_may_not_change(store, tmp_path):
    facts = {"seed": 3, "alphas": [0.5, 1.0], "policies": ["a", "b'\""], "dtype": None, "t": 0.1 + 0.2}
    store.remember(**facts)
    with Store(tmp_path) as again:
        again.remember(**facts)
        assert {key: again.recall(key) for key in facts} == facts
        with pytest.raises(ValueError, match=r"had alphas \[0.5, 1.0\], now it is \[0.5\].*without --resume"):
            again.remember(seed=3, alphas=[0.5])
        assert again.recall("alphas") == [0.5, 1.0]
