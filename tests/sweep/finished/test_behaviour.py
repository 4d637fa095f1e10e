"""What completions are like, read from a store made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.finished import behaviour
from rlhf_lines.sweep.finished.behaviour import common_start, end_tokens, read_behaviour, stopped_at_length
from rlhf_lines.sweep.store import Row, Store
from tests import tiny
from tests.sweep.small_run import write_run


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


@pytest.fixture
def with_stop(store, tmp_path):
    """The same, with the text of one cut completion that token 13 = "m" ended, as of an earlier version."""
    tokenizer = tiny.character_tokenizer("abcdefghijklmnopqrstuvwxyz ")
    tokenizer.save_pretrained(tmp_path / "sft")
    ids = tokenizer.convert_tokens_to_ids
    store.remember(stop=["m"], sft_model=str(tmp_path / "sft"))
    spec = store.points("test")[1].spec_id
    with store._db as database:
        for (text, whole), sample in zip([("abc", "abcm"), ("abcd", "abcd")], range(2), strict=True):
            written = json.dumps(ids(list(whole)))
            key = f"(SELECT id FROM prompts WHERE text = 'third') AND sample = {sample}"
            query = f"UPDATE completions SET text = ?, token_ids = ?, tokens = 4 WHERE spec = {spec} AND prompt = {key}"
            assert database.execute(query, (text, written)).rowcount == 1
        # Of the full length, and all of their text is there.
        key = f"spec = {spec} AND tokens = 4 AND prompt = (SELECT id FROM prompts WHERE text = 'first')"
        ids_of = json.dumps(ids(list("dcba")))
        database.execute(f"UPDATE completions SET text = 'dcba', token_ids = ? WHERE {key}", (ids_of,))
        database.execute(
            "UPDATE completions SET text = 'abcd', token_ids = ? WHERE token_ids = '[7, 8, 9, 3]'", (written,)
        )
    return store, tokenizer, spec


def test_what_a_stop_text_ended_at_the_longest_length_is_not_cut(with_stop):
    store, tokenizer, spec = with_stop
    third = next(number for number, prompt in store.prompts("test").items() if prompt.text == "third")
    assert stopped_at_length(store, tokenizer) == [(spec, third, 0)]
    expected = [[1, 1], [0, 0], [0, 1]]
    for stopped in (None, [(spec, third, 0)]):  # looked for with the tokenizer, or kept by the sweep
        if stopped:
            store.replace(stopped=stopped, sft_model="gone")
        sft, soup = read_behaviour(store, "test", ["kind"]).values()
        assert soup.cut.tolist() == expected
        assert sft.cut.tolist() == [[0, 0], [1, 0], [0, 0]]


def test_another_tokenizer_at_that_path_does_not_tell_what_a_stop_text_ended(with_stop, tmp_path):
    """Of it every text is another: all of the longest length were taken for ended, and no completion for cut."""
    store, _, _ = with_stop
    other = tiny.character_tokenizer(" zyxwvutsrqponmlkjihgfedcba")
    other.save_pretrained(tmp_path / "sft")
    assert stopped_at_length(store, other) is None
    assert all(each.cut is None for each in read_behaviour(store, "test", ["kind"]).values())


def test_a_page_of_completions_is_decoded_at_a_time(with_stop, monkeypatch):
    store, tokenizer, _ = with_stop
    expected, decode = stopped_at_length(store, tokenizer), behaviour.completion_texts
    pages = []

    def counted(tokenizer, prompt_ids, completion_ids):
        pages.append(len(completion_ids))
        return decode(tokenizer, prompt_ids, completion_ids)

    monkeypatch.setattr(behaviour, "completion_texts", counted)
    monkeypatch.setattr(behaviour, "PAGE", 2)
    assert len(expected) == 1 and stopped_at_length(store, tokenizer) == expected
    assert pages == [2, 2, 1]
    monkeypatch.setattr(behaviour, "PAGE", 1)
    assert stopped_at_length(store, tokenizer) == expected


def test_where_no_tokenizer_tells_what_a_stop_text_ended_no_share_is_cut(with_stop):
    store, _, _ = with_stop
    store.replace(sft_model="gone")
    assert all(each.cut is None for each in read_behaviour(store, "test", ["kind"]).values())
    store.replace(stop=[])
    assert read_behaviour(store, "test", ["kind"]).popitem()[1].cut.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_where_the_longest_length_is_not_known_no_share_is_cut(store):
    with store._db as database:
        database.execute("DELETE FROM meta")
    assert all(each.cut is None for each in read_behaviour(store, "test", ["kind"]).values())


def test_pick_tells_the_prompts_that_lost_most_as_the_store_has_them(tmp_path, capsys):
    """Ids and differences by hand: in standard deviations of the SFT model's over prompts, averaged over objectives."""
    rewards = ["rule:length", {"model": "rule:length", "name": "letters", "options": {"unit": "characters"}}]
    folder = write_run(tmp_path / "run", rewards)
    front = json.loads((folder / "front.json").read_text())
    with Store(folder, reading=True) as store:
        prompts = store.prompts("test")
        scores = {p.id: store.scores(p.spec_id, "test", ["length", "letters"]) for p in store.points("test")}
    start = common_start([prompt.scored_text for prompt in prompts.values()])
    assert next(iter(prompts)) != 0  # ids are not the places in the split
    (sft,) = [point["id"] for point in front["points"] if point["group"] == "sft"]
    spread = scores[sft].std(axis=0)
    told = 0
    for point in front["points"]:
        difference = scores[point["id"]] - scores[sft]
        loss = -(difference / np.where(spread > 0, spread, 1)).mean(axis=1)
        worst = [k for k in np.argsort(-loss, kind="stable") if loss[k] > 0]
        expected = [
            {"prompt": list(prompts)[k], "loss": pytest.approx(loss[k]),
             "differences": pytest.approx(dict(zip(["length", "letters"], difference[k], strict=True)))}
            for k in worst
        ]  # fmt: skip
        assert point["lost_most"] == expected
        assert cli.main(["pick", str(folder), "--point", str(point["id"])]) == 0
        out = capsys.readouterr().out
        assert ("lost most against the SFT model" in out) == bool(worst)
        for k in worst:
            shown = "…" * (start > 0) + prompts[list(prompts)[k]].scored_text[start:]
            line = next(
                line for line in out.splitlines() if line.startswith(f"    prompt {list(prompts)[k]} ({shown}): ")
            )
            numbers = [float(part.split()[1]) for part in line.rpartition("): ")[2].split(", ")]
            assert numbers == pytest.approx(difference[k], rel=1e-2)
            told += 1
    assert told > 0


@pytest.mark.parametrize(
    ("texts", "start"),
    [
        (["Say what it does.\n\nzip: a", "Say what it does.\n\nzlib: b"], "Say what it does.\n\n"),
        (["Say what", "Sing what"], ""),
        (["one two three", "one two four", "one six"], "one "),
        (["one two", "one two three"], "one "),
        (["one ", "one two"], ""),  # nothing would be left of the first
        (["same", "same"], ""),
        (["alone in the world"], ""),
        ([], ""),
    ],
)
def test_what_all_prompts_begin_with(texts, start):
    assert common_start(texts) == len(start)


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
    found = np.concatenate([each.tokens.ravel() for each in read_behaviour(store, "test", ["kind"]).values()])
    assert found.tolist() == [row[3] for row in rows]
