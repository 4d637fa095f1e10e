"""The run store gives back what it was given, all or none of it."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import numpy as np
import pytest

from rlhf_lines.artifact import write_record
from rlhf_lines.disk import DiskFault
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep import store as stores
from rlhf_lines.sweep.store import (
    RUN_STORE,
    Row,
    Store,
    StoredPoint,
    StoredPrompt,
    StoredText,
    Unscored,
    has_begun,
    has_measured,
    open_finished,
)


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


def row(spec: int, prompt: int, sample: int, **changes) -> Row:
    values = {"text": "text", "token_ids": (5, 3, 1), "kl": 0.5, "scores": {"short": 1.0, "kind": -2.0}, **changes}
    return Row(spec, prompt, sample, **values)


def shown(texts) -> dict[str, str]:
    """Prompts with what reward models are shown of them."""
    return {text: f"shown {text}" for text in texts}


def test_texts_and_numbers_are_stored_verbatim(store, tmp_path):
    kl, score = 0.1 + 0.2, 1e-17
    store.add(
        row(1, i, 0, text=text, token_ids=(7,) * i, kl=kl + i, scores={"r": score * i}) for i, text in enumerate(TEXTS)
    )
    # Read by a connection of its own: what another script sees.
    with sqlite3.connect(tmp_path / RUN_STORE) as database:
        found = database.execute("SELECT prompt, text, tokens, token_ids, kl FROM completions").fetchall()
        scores = database.execute("SELECT prompt, reward, score FROM scores ORDER BY prompt").fetchall()
    database.close()
    assert found == [(i, text, i, str([7] * i), kl + i) for i, text in enumerate(TEXTS)]
    assert scores == [(i, "r", score * i) for i in range(len(TEXTS))]


def test_prompts_and_rewards_are_stored_verbatim(store, tmp_path):
    ids = store.add_prompts("test", shown(TEXTS))
    store.add([row(1, ids[0], 0, scores={text: float(i) for i, text in enumerate(TEXTS)})])
    assert store.scores(1, "test", TEXTS).tolist() == [[float(i) for i in range(len(TEXTS))]]
    with Store(tmp_path) as again:
        assert again.add_prompts("test", shown(reversed(TEXTS))) == list(reversed(ids))
        assert again.add_prompts("validation", shown(TEXTS[:1])) == [len(TEXTS) + 1]
        assert again.prompts("test") == {
            i: StoredPrompt(*pair) for i, pair in zip(ids, shown(TEXTS).items(), strict=True)
        }


def test_points_share_specs_and_keep_their_ids(store, tmp_path):
    first = store.add_points("test", "lines", SPECS)
    soup = store.add_points("test", "rewarded_soup", SPECS[:1])
    validation = store.add_points("validation", "lines", SPECS[:1])
    assert len({point.id for point in first + soup + validation}) == 4
    assert [(point.group, point.spec) for point in first + soup] == [
        ("lines", SPECS[0]), ("lines", SPECS[1]), ("rewarded_soup", SPECS[0]),
    ]  # fmt: skip
    assert first[0].spec_id == soup[0].spec_id == validation[0].spec_id != first[1].spec_id
    with Store(tmp_path) as again:  # a resumed run asks again, in another order
        assert again.add_points("test", "lines", reversed(SPECS)) == list(reversed(first))
        assert again.points("test") == [*first, StoredPoint(soup[0].id, "rewarded_soup", SPECS[0], first[0].spec_id)]
        assert again.points("validation") == validation
        assert again.points("train") == []
        assert again.specs() == {point.spec_id: point.spec for point in first}
        assert again.splits() == ["test", "validation"]


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
    with sqlite3.connect(tmp_path / RUN_STORE) as database:
        assert database.execute("SELECT spec, prompt, sample FROM completions").fetchall() == [(1, 1, 0)]
        assert database.execute("SELECT reward, score FROM scores").fetchall() == [("kind", -2.0), ("short", 1.0)]
    database.close()


@pytest.fixture
def two_splits(store) -> dict[str, int]:
    """Two specs with two test prompts of two samples, stored in another order, and a validation prompt."""
    first = dict(zip("ab", store.add_prompts("test", shown("ab")), strict=True))
    ids = {**first, "v": store.add_prompts("validation", shown("v"))[0]}
    a, b, v = ids.values()
    store.add([row(1, b, 1, kl=3.0, scores={"b": 6.0, "a": 0.5}), row(1, a, 0, kl=1.0, scores={"a": 1.0, "b": -1.0})])
    store.add([row(2, a, 0, kl=9.0, scores={"a": 99.0, "b": 99.0}), row(1, v, 0, kl=8.0, scores={"a": 7.0, "b": 7.5})])
    store.add([row(1, a, 1, kl=0.5, scores={"a": 2.0, "b": 3.0}), row(1, b, 0, kl=4.0, scores={"a": 0.0, "b": 4.0})])
    return ids


def test_scores_and_kl_are_means_over_samples_in_the_order_of_prompts(store, two_splits):
    # Prompt a: a (1 + 2) / 2, b (-1 + 3) / 2, kl (1 + 0.5) / 2. Prompt b: a 0.5 / 2, b (6 + 4) / 2, kl (3 + 4) / 2.
    np.testing.assert_array_equal(store.scores(1, "test", ["a", "b"]), [[1.5, 1.0], [0.25, 5.0]])
    np.testing.assert_array_equal(store.scores(1, "test", ["b", "a"]), [[1.0, 1.5], [5.0, 0.25]])
    np.testing.assert_array_equal(store.kl(1, "test"), [0.75, 3.5])
    np.testing.assert_array_equal(store.scores(2, "test", ["a"]), [[99.0]])
    np.testing.assert_array_equal(store.scores(1, "validation", ["b", "a"]), [[7.5, 7.0]])
    np.testing.assert_array_equal(store.kl(1, "validation"), [8.0])


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_rows_come_back_in_order_whatever_the_page(store, two_splits, monkeypatch, page):
    monkeypatch.setattr(stores, "PAGE", page)
    a, b, v = two_splits.values()
    assert list(store.rows("test", ["b", "nobody's", "a"])) == [
        row(1, a, 0, kl=1.0, scores={"a": 1.0, "b": -1.0}),
        row(1, a, 1, kl=0.5, scores={"a": 2.0, "b": 3.0}),
        row(1, b, 0, kl=4.0, scores={"a": 0.0, "b": 4.0}),
        row(1, b, 1, kl=3.0, scores={"b": 6.0, "a": 0.5}),
        row(2, a, 0, kl=9.0, scores={"a": 99.0, "b": 99.0}),
    ]
    assert list(store.rows("validation", [])) == [row(1, v, 0, kl=8.0, scores={})]
    assert list(store.rows("test", ["a"], tokens=False)) == [
        one._replace(token_ids=()) for one in store.rows("test", ["a"])
    ]


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_scores_are_added_while_what_lacks_them_is_read(store, two_splits, tmp_path, monkeypatch, page):
    monkeypatch.setattr(stores, "PAGE", page)
    a, b, v = two_splits.values()
    keys = [(1, a, 0), (1, a, 1), (1, b, 0), (1, b, 1), (1, v, 0), (2, a, 0)]
    texts = {a: "shown a", b: "shown b", v: "shown v"}
    store.add_scores("new", [(*keys[1], 5.0)])
    for name in ("New", "newer", "zzz"):  # other rewards
        store.add_scores(name, [(*key, 8.0) for key in keys])
    left = [key for key in keys if key != keys[1]]
    assert store.count_unscored("new") == 5
    seen = []
    for number, found in enumerate(store.unscored("new")):
        seen.append(found)
        with Store(tmp_path) as other:  # another process can write: no read is left open
            other.add_scores("other", [(*found[:3], 0.0)])
        store.add_scores("new", [(*found[:3], float(number))])
    assert seen == [Unscored(*key, texts[key[1]], "text", (5, 3, 1)) for key in left]
    assert (store.count_unscored("new"), list(store.unscored("new"))) == (0, [])
    assert [r.scores["new"] for split in ("test", "validation") for r in store.rows(split, ["new"])] == [
        0.0, 5.0, 1.0, 2.0, 4.0, 3.0,
    ]  # fmt: skip
    assert store.count_unscored("a") == 0 and store.count_unscored("other") == 1


def test_further_scores_are_added_all_or_none(store, two_splits):
    a = two_splits["a"]
    with pytest.raises(sqlite3.IntegrityError):
        store.add_scores("new", [(1, a, 0, 1.0), (1, a, 0, 2.0)])
    assert store.count_unscored("new") == 6


def test_forgetting_texts_and_their_nll(store, tmp_path):
    texts = {text: 1 + i for i, text in enumerate(TEXTS)}
    ids = store.add_forgetting_texts(texts)
    assert store.add_forgetting_texts(dict(reversed(texts.items()))) == list(reversed(ids))
    assert store.forgetting_texts() == [StoredText(i, *item) for i, item in zip(ids, texts.items(), strict=True)]
    np.testing.assert_array_equal(store.forgetting_tokens(), np.arange(1, len(TEXTS) + 1))
    store.add_nll([(2, ids[2], 0.1 + 0.2), (2, ids[0], 4.0)])
    store.add_nll([(1, ids[0], 7.0)])
    np.testing.assert_array_equal(store.nll(2), [4.0, 0.1 + 0.2])
    with pytest.raises(sqlite3.IntegrityError):
        store.add_nll([(2, ids[1], 1.0), (2, ids[0], 1.0)])
    with Store(tmp_path) as again:
        assert again.finished_forgetting() == {(2, ids[2]), (2, ids[0]), (1, ids[0])}
        assert again.nll(3).tolist() == []


def test_a_store_that_is_read_stays_as_it_is(store, two_splits, tmp_path):
    store.finish()
    before = (tmp_path / RUN_STORE).read_bytes()
    with Store(tmp_path, reading=True) as again:
        assert len(list(again.rows("test", ["a"]))) == 5
    assert (tmp_path / RUN_STORE).read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [RUN_STORE]


@pytest.mark.parametrize("writing_log", [True, False], ids=["two files", "one file"])
def test_a_reader_stops_nothing_and_one_file_is_left(tmp_path, monkeypatch, writing_log):
    """A reader in the middle of a SELECT; without a file beside it (a network disk, say) the writer has patience."""
    monkeypatch.setattr(stores, "PATIENCE", 30.0 if writing_log else 0.2)
    if not writing_log:
        monkeypatch.setattr(stores, "JOURNAL", "DELETE")
    with Store(tmp_path) as store:
        store.add(row(1, prompt, 0) for prompt in range(300))
        reader = sqlite3.connect(f"file:{tmp_path / RUN_STORE}?mode=ro", uri=True)
        seen = reader.execute("SELECT prompt FROM completions")
        assert seen.fetchone() == (0,)
        if writing_log:
            store.add([row(2, 1, 0)])
        else:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                store.add([row(2, 1, 0)])
            assert len(seen.fetchall()) == 299
            store.add([row(2, 1, 0)])
        store.finish()
    assert [path.name for path in tmp_path.iterdir()] == [RUN_STORE]
    if writing_log:
        assert len(seen.fetchall()) == 299  # as it was when the reader began
    reader.close()
    with Store(tmp_path, reading=True) as store:
        assert len(store.finished()) == 301 and store._one("PRAGMA journal_mode") == "delete"


def scribble(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xa5" * 9000)


def other_format(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1")


DAMAGES = {
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "malformed|damaged"),
    "nothing": (lambda path: os.truncate(path, 0), "it is empty"),
    "scribbled": (scribble, "malformed|damaged"),
    "a text": (lambda path: path.write_text("hello " * 999), "file is not a database"),
    "format 1": (other_format, "format 1, and this version reads format 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_a_sentence_and_stays_as_it_is(tmp_path, damage):
    with Store(tmp_path) as store:
        store.add(row(1, prompt, 0, text="text" * 99) for prompt in range(300))
        store.finish()
    write_record(tmp_path, "sweep", {})
    spoil, words = DAMAGES[damage]
    spoil(tmp_path / RUN_STORE)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for reading in (True, False):
        with pytest.raises(ValueError, match=rf"cannot open .*run\.sqlite as a run store \(.*({words})"):
            open_finished(tmp_path, reading=reading)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damage_that_shows_late_is_a_sentence_too(store, tmp_path):
    store.add([row(1, 1, 0)])
    store._db.execute("UPDATE completions SET text = CAST(x'ff' AS TEXT)")
    store._db.commit()
    store.add_prompts("test", shown("a"))
    with pytest.raises(ValueError, match=r"as a run store .*decode to UTF-8"), store:
        list(store.rows("test", []))


def test_a_store_that_another_process_locks_is_a_sentence(store, tmp_path, monkeypatch):
    store.finish()
    monkeypatch.setattr(stores, "SHORT_PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / RUN_STORE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for reading in (True, False):
            with pytest.raises(ValueError, match=r"run\.sqlite is locked by another process .*: wait until"):
                Store(tmp_path, reading=reading)


def test_a_store_that_is_read_is_written_to_when_the_reader_leaves(store, tmp_path, monkeypatch):
    store.add(row(1, prompt, 0) for prompt in range(300))
    store.finish()
    monkeypatch.setattr(stores, "SHORT_PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / RUN_STORE)) as reader:
        seen = reader.execute("SELECT prompt FROM completions")
        assert seen.fetchone() == (0,)
        with Store(tmp_path) as again:  # a further score, say
            assert len(seen.fetchall()) == 299
            again.add([row(2, 1, 0)])
            again.finish()
    assert [path.name for path in tmp_path.iterdir()] == [RUN_STORE]


def test_a_full_disk_keeps_what_was_stored(tmp_path):
    said = r"no space left while writing .*run\.sqlite.*what was stored before is kept"
    with pytest.raises(DiskFault, match=said), Store(tmp_path) as store:
        store.add([row(1, 1, 0)])
        store._db.execute(f"PRAGMA max_page_count = {store._one('PRAGMA page_count')}")  # SQLite's own full disk
        store.add(row(2, prompt, 0, text="text" * 99) for prompt in range(999))
    with Store(tmp_path) as store:
        assert store.finished() == {(1, 1, 0)}
        store.add(row(2, prompt, 0, text="text" * 99) for prompt in range(999))
        store.finish()
    with Store(tmp_path, reading=True) as store:
        assert len(store.finished()) == 1000


def test_a_store_that_may_not_be_written_says_so_before_there_is_something_to_keep(store, tmp_path, monkeypatch):
    """As on a file system that is mounted read-only: `evaluate` asked a whole task before it was told."""
    store.add([row(1, 1, 0)])
    store.finish()
    write_record(tmp_path, "sweep", {})
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(f"file:{path}?mode=ro", uri=True, **more))
    with open_finished(tmp_path) as again:
        assert again.finished() == {(1, 1, 0)}
    with pytest.raises(DiskFault, match=r"run\.sqlite may not be .* \(Read-only file system\): change its permissions"):
        open_finished(tmp_path, reading=False)


def test_a_store_without_a_table_has_not_begun(tmp_path):
    """As a run leaves it that is killed, or whose disk is full, before its first table; the next one fills it."""
    assert not has_begun(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / RUN_STORE)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert (tmp_path / RUN_STORE).stat().st_size > 0 and not has_begun(tmp_path)
    with Store(tmp_path) as store:
        store.add([row(1, 1, 0)])
    assert has_begun(tmp_path)
    (tmp_path / RUN_STORE).write_bytes(b"no store" * 999)
    assert has_begun(tmp_path), "whoever opens it is told"


def test_only_a_finished_run_is_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no run\.sqlite: expected the output_dir of rlhf-lines sweep"):
        open_finished(tmp_path)
    Store(tmp_path).__exit__()
    with pytest.raises(FileNotFoundError, match="of a sweep that has not finished: go on with it"):
        open_finished(tmp_path)
    write_record(tmp_path, "sweep", {})
    with open_finished(tmp_path) as store:
        assert store.splits() == []


def test_facts_are_remembered_and_may_not_change(store, tmp_path):
    facts = {"seed": 3, "alphas": [0.5, 1.0], "policies": ["a", "b'\""], "dtype": None, "t": 0.1 + 0.2}
    store.remember(**facts)
    with Store(tmp_path) as again:
        again.remember(**facts)
        assert {key: again.recall(key) for key in facts} == facts
        with pytest.raises(ValueError, match=r"had alphas \[0.5, 1.0\], now it is \[0.5\].*without --resume"):
            again.remember(seed=3, alphas=[0.5])
        assert again.recall("alphas") == [0.5, 1.0]


def test_what_benchmarks_found_is_kept_by_task_and_spec_until_it_is_dropped(store, tmp_path):
    assert store.evaluations() == {}
    store.drop_evaluations("one")  # of which there is nothing
    found = {"value": 0.1 + 0.2, "values": None, "text": TEXTS[1]}
    one, two = (point.spec_id for point in store.add_points("test", "lines", SPECS))
    store.add_evaluation(two, "one", found)
    store.add_evaluation(one, "one", {})
    store.add_evaluation(one, "another", {"value": 1})
    store.add_evaluation(one, "another", {"value": 2})
    with Store(tmp_path, reading=True) as again:
        assert again.evaluations() == {"another": {one: {"value": 2}}, "one": {one: {}, two: found}}
    store.drop_evaluations("one")
    assert store.evaluations() == {"another": {one: {"value": 2}}}


def test_a_writer_that_ends_before_the_one_file_has_its_name_loses_nothing(tmp_path, monkeypatch):
    with Store(tmp_path) as store:
        (prompt,) = store.add_prompts("test", {"p": "p"})
        store.add_points("test", "sft", [MergeSpec("linear", (0.0, 0.0))])
        store.add([Row(1, prompt, sample, "t", (1,), 0.5, {"r": 1.0}) for sample in range(300)])
        with contextlib.closing(sqlite3.connect(f"file:{tmp_path / RUN_STORE}?mode=ro", uri=True)) as reader:
            assert reader.execute("SELECT COUNT(*) FROM completions").fetchone() == (300,)
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    store.finish()
    assert [path.name for path in tmp_path.iterdir()] == [RUN_STORE]
    with Store(tmp_path, reading=True) as store:
        assert len(store.finished()) == 300


def test_what_was_measured_is_a_completion(tmp_path):
    """A run that has stored nothing else has nothing to go on from."""
    assert not has_measured(tmp_path)
    spec = MergeSpec("linear", (1.0,))
    with Store(tmp_path) as store:
        store.remember(seed=3)
        (point,), (prompt,) = store.add_points("test", "lines", [spec]), store.add_prompts("test", {"a": "a"})
        assert not has_measured(tmp_path)
        store.add([Row(point.spec_id, prompt, 0, "b", (1,), 0.5, {})])
    assert has_measured(tmp_path)
