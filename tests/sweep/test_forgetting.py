"""Texts outside the task: which are read, and that their nll is the cross entropy of the merged models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_lines import data
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.models import load_tokenizer
from rlhf_lines.sweep import forgetting
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.finished.front import trace_front
from rlhf_lines.sweep.forgetting import ForgettingText, load_forgetting_texts, measure_forgetting
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store
from tests.sweep.by_hand import cross_entropy
from tests.sweep.small_run import write_run


SFT = MergeSpec("linear", (0.0, 0.0))
SOUP = MergeSpec("linear", (0.4, 0.6))
LINES = MergeSpec("linear", (0.4, 0.6), alpha=0.5, beta=1.5)
THREE = MergeSpec("linear", (0.5, -0.2, 1.5), beta=0.5)
TIES = MergeSpec("ties", (0.5, 0.5), options={"density": 0.4})
TEXTS = ["the quick brown fox.", "ab", "a longer text, with 'quotes' <and> more", "zz top\nand below", "abcabcabc"]


@pytest.fixture(scope="module")
def tokenizer(sft):
    return load_tokenizer(sft)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture(scope="module")
def rows(tokenizer) -> list[ForgettingText]:
    return [ForgettingText(text, tuple(tokenizer(text)["input_ids"][:20])) for text in TEXTS]


@pytest.fixture(scope="module")
def engine(sft, policies) -> LocalEngine:
    config = SweepConfig(
        sft_model=str(sft), policies=list(map(str, policies)), rewards=["a:b", "c:d"], output_dir="never"
    )
    adapters = [load_adapter(policy) for policy in policies]
    return LocalEngine(config, Merges(sft, adapters), adapters)


class Counting:
    """Passes on to another reader, notes what it was asked, and stops at a call."""

    def __init__(self, reader, stop_at: int | None = None) -> None:
        self.reader, self.stop_at, self.calls = reader, stop_at, []

    def nll(self, specs, rows):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(list(zip(specs, map(tuple, rows), strict=True)))
        return self.reader.nll(specs, rows)


# --- what is measured ---


def test_nll_is_the_cross_entropy_of_the_merged_models(store, rows, engine, dense_model):
    points = store.add_points("test", "mixed", [SFT, SOUP, LINES, THREE, TIES])
    points += store.add_points("test", "again", [LINES])  # shares its spec
    measure_forgetting(store, engine.nll, points, rows)
    assert store.forgetting_tokens().tolist() == [min(len(text), 20) - 1 for text in TEXTS]
    assert len(store.finished_forgetting()) == 5 * len(TEXTS)
    found = {point.spec: store.nll(point.spec_id) for point in points}
    for spec, nll in found.items():
        expected = [cross_entropy(dense_model(spec), row.token_ids) for row in rows]
        np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-4)
    # The specs differ by far more than that.
    means = [float(nll.sum()) for nll in found.values()]
    assert min(abs(a - b) for i, a in enumerate(means) for b in means[:i]) > 0.05


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_what_was_stopped_goes_on_without_repeating_texts(tmp_path, rows, engine, monkeypatch, stop_at):
    monkeypatch.setattr(forgetting, "CHUNK", 4)
    specs = [SOUP, TIES, LINES]
    for name, stops in (("whole", [None]), ("stopped", [stop_at, None])):
        calls = []
        (tmp_path / name).mkdir()
        for stop in stops:
            with Store(tmp_path / name) as store:
                reader = Counting(engine, stop)
                points = store.add_points("test", "lines", specs)
                if stop is None:
                    measure_forgetting(store, reader.nll, points, rows)
                else:
                    with pytest.raises(KeyboardInterrupt):
                        measure_forgetting(store, reader.nll, points, rows)
                calls += reader.calls
        asked = [pair for call in calls for pair in call]
        assert len(asked) == len(set(asked)) == len(specs) * len(rows)
        assert max(map(len, calls)) == 4
    with Store(tmp_path / "whole") as whole, Store(tmp_path / "stopped") as stopped:
        for spec_id in whole.specs():
            # Batches differ after a stop, and so does the last bit of a float32 sum.
            np.testing.assert_allclose(stopped.nll(spec_id), whole.nll(spec_id), rtol=1e-5)
        reader = Counting(engine)
        measure_forgetting(stopped, reader.nll, points, rows)
        assert reader.calls == []


def test_linear_specs_are_mixed_and_each_other_one_is_read_at_once(store, rows, engine):
    points = store.add_points("test", "mixed", [TIES, SOUP, SFT])
    reader = Counting(engine)
    measure_forgetting(store, reader.nll, points, rows)
    specs = [spec for call in reader.calls for spec, _ in call]
    assert set(specs[:4]) == {SOUP, SFT} and specs[-len(rows) :] == [TIES] * len(rows)
    lengths = [len(ids) for call in reader.calls for spec, ids in call if spec != TIES]
    assert lengths == sorted(lengths, reverse=True)


def test_a_resumed_run_has_the_same_texts(store, rows, engine):
    points = store.add_points("test", "lines", [SOUP])
    measure_forgetting(store, engine.nll, points, rows[:3])
    shorter = rows[0]._replace(token_ids=rows[0].token_ids[:5])
    for others in (rows, rows[:2], [shorter, *rows[1:3]]):
        with pytest.raises(ValueError, match=r"control texts, and the source now gives others: give the source of"):
            measure_forgetting(store, engine.nll, points, others)


def test_points_have_the_perplexity_of_the_texts(tmp_path, rows):
    folder = write_run(tmp_path / "run", ["rule:length", {"model": "rule:length", "name": "again"}])
    with Store(folder) as store:
        points = store.points("test")

        class Known:
            def nll(self, specs, rows):
                ids = {point.spec: point.spec_id for point in points}
                return [len(row) * 1.5 + ids[spec] / 8 for spec, row in zip(specs, rows, strict=True)]

        measure_forgetting(store, Known().nll, points, rows)
    front = trace_front(folder)
    lengths = [len(row.token_ids) for row in rows]
    for point, found in zip(points, front["points"], strict=True):
        nll = sum(length * 1.5 + point.spec_id / 8 for length in lengths)
        assert found["perplexity"]["mean"] == pytest.approx(np.exp(nll / sum(n - 1 for n in lengths)), rel=1e-12)
    assert front["forgetting"] == {"texts": 5, "tokens": sum(lengths) - 5, "source": "texts.txt"}
    assert {path.name for path in folder.glob("forgetting.*")} == {"forgetting.png", "forgetting.pdf"}


# --- what is read ---


def write(path: Path, texts) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts))
    return path


def test_the_first_different_texts_are_cut_at_their_end(tmp_path, tokenizer):
    path = write(tmp_path / "texts.jsonl", ["abcdef", "x", "", "abcdef", "abcdxyz", "zyx", "qrs", "tuv"])
    rows = load_forgetting_texts(str(path), 3, 4, tokenizer)
    # "x" has one token, "" none; "abcdxyz" reads as "abcdef" does; "tuv" would be the fourth.
    assert [row.text for row in rows] == ["abcdef", "zyx", "qrs"]
    assert [tokenizer.decode(row.token_ids) for row in rows] == ["abcd", "zyx", "qrs"]
    assert len(load_forgetting_texts(str(path), 100, 7, tokenizer)) == 5


def test_special_tokens_are_those_of_the_tokenizer(tmp_path, tokenizer):
    class WithStart:
        def __call__(self, text, **options):
            return {"input_ids": [1, *tokenizer(text, **options)["input_ids"]]}

    rows = load_forgetting_texts(str(write(tmp_path / "texts.jsonl", ["a", "bc"])), 5, 9, WithStart())
    assert [(row.text, row.token_ids[0], len(row.token_ids)) for row in rows] == [("a", 1, 2), ("bc", 1, 3)]


@pytest.mark.parametrize(
    ("splits", "read"),
    [(["train", "validation", "test"], "test"), (["train", "validation"], "validation"), (["train"], "train")],
)
def test_a_folder_gives_its_test_split_or_what_it_has(tmp_path, tokenizer, splits, read):
    for split in splits:
        write(tmp_path / f"{split}.jsonl", [f"{split} one", f"{split} two"])
    assert [row.text for row in load_forgetting_texts(str(tmp_path), 9, 99, tokenizer)] == [
        f"{read} one",
        f"{read} two",
    ]


def test_a_text_file_has_paragraphs(tmp_path, tokenizer):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\n\none\nline more\n \t\n\nb\n\r\n  two\r\n\r\n")
    assert [row.text for row in load_forgetting_texts(str(path), 9, 99, tokenizer)] == ["one\nline more", "two"]


def test_a_task_gives_the_texts_of_its_test_split(tokenizer):
    rows = load_forgetting_texts("docstrings", 7, 12, tokenizer)
    firsts: dict[tuple, str] = {}
    for row in data.load("docstrings", "text", "test"):
        firsts.setdefault(tuple(tokenizer(row["text"])["input_ids"])[:12], row["text"])
    assert [(row.token_ids, row.text) for row in rows] == list(firsts.items())[:7]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("news", ValueError, "the news task has no text"),
        ("{folder}/nowhere.txt", FileNotFoundError, "nowhere.txt does not exist"),
        ("{folder}/nowhere.jsonl", FileNotFoundError, "nowhere.jsonl does not exist"),
        ("{folder}/bytes.txt", ValueError, "is not UTF-8"),
        ("{folder}/one.jsonl", ValueError, "has 1 different texts of two tokens or more, expected at least 2"),
        ("{folder}/prompts.jsonl", ValueError, "lacks the column text for control; it has prompt"),
        ("{folder}", FileNotFoundError, "has no train split"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, tokenizer, source, error, words):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n")
    write(tmp_path / "one.jsonl", ["one", "one", "x"])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(error, match=words):
        load_forgetting_texts(source.replace("{folder}", str(tmp_path)), 9, 99, tokenizer)
