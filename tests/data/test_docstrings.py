"""The offline task: real summaries of the standard library, and two wishes about them that can be checked."""

from __future__ import annotations

import gc
import heapq
import inspect
import json
import os
import shutil
import string
import textwrap

import pytest

from rlhf_lines.data import docstrings
from rlhf_lines.data.docstrings import corpus, specificity


SPLITS = ("train", "validation", "test")


def test_the_corpus_is_large_sorted_and_has_no_name_twice():
    names = [entry.name for entry in corpus()]
    assert len(names) > 5000
    assert names == sorted(set(names))
    assert corpus() is corpus()


def test_every_entry_fits_a_small_model():
    for name, summary, docstring in corpus():
        assert len(name) <= 60 and len(summary) <= 140 and len(summary.split()) >= 2
        assert summary.isascii() and summary == " ".join(summary.split())
        assert docstring.strip()


@pytest.mark.parametrize("module", [textwrap, heapq, json, shutil, string], ids=lambda module: module.__name__)
def test_summaries_are_the_first_paragraphs_of_the_docstrings(module):
    found = {entry.name: entry for entry in corpus() if entry.name.startswith(f"{module.__name__}.")}
    checked = 0
    for name, member in vars(module).items():
        entry = found.get(f"{module.__name__}.{name}")
        if entry is None or not inspect.isfunction(member) or member.__module__ != module.__name__:
            continue
        docstring = inspect.getdoc(member)
        assert entry.docstring == docstring
        assert entry.summary == " ".join(docstring.split("\n\n")[0].split())
        checked += 1
    assert checked >= {"textwrap": 4, "heapq": 5, "json": 3, "shutil": 15, "string": 1}[module.__name__]


def test_functions_classes_methods_and_builtins_are_there_and_tests_are_not():
    summaries = {entry.name: entry.summary for entry in corpus()}
    assert summaries["textwrap.wrap"] == "Wrap a single paragraph of text, returning a list of wrapped lines."
    assert summaries["builtins.len"] == "Return the number of items in a container."
    assert "textwrap.TextWrapper.fill" in summaries and "builtins.str.upper" in summaries
    parts = {part for name in summaries for part in name.split(".")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "turtledemo"}
    assert "builtins.int.__add__" not in summaries  # "Return self+value." of every type


def test_every_file_is_read_but_those_of_what_is_skipped(tmp_path, monkeypatch):
    """In the order of their paths, and without a look into installed packages."""
    read = ["b.py", "a/__init__.py", "a/z.py", "a.py", "a/deep/er/x.py"]
    skipped = ["test.py", "tests/x.py", "a/tests/x.py", "site-packages/numpy/x.py", "a/b.txt"]
    for name in [*read, *skipped]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'def f():\n    """Of {name} it is."""\n')
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    looked = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda path: looked.append(str(path)) or scandir(path))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    found = [docstring for _, docstring in docstrings._from_source()]
    assert found == [f"Of {path.relative_to(tmp_path)} it is." for path in sorted(tmp_path / name for name in read)]
    assert str(tmp_path / "a") in looked and not any("site-packages" in path for path in looked)


def test_rows():
    entry = next(entry for entry in corpus() if entry.name == "textwrap.wrap")
    assert docstrings.prompt(entry) == "textwrap.wrap:"
    assert docstrings.completion(entry) == " Wrap a single paragraph of text, returning a list of wrapped lines."
    row = {"prompt": docstrings.prompt(entry), "completion": docstrings.completion(entry)}
    assert row in docstrings.demonstrations("train")
    assert {"prompt": row["prompt"]} in docstrings.prompts("train")
    (text,) = (row["text"] for row in docstrings.text("train") if row["text"].startswith("textwrap.wrap:"))
    assert text.startswith(row["prompt"] + row["completion"]) and len(text) <= len("textwrap.wrap: ") + 400


def test_splits_are_disjoint_and_hold_everything():
    prompts = {split: [row["prompt"] for row in docstrings.prompts(split)] for split in SPLITS}
    everything = [prompt for split in SPLITS for prompt in prompts[split]]
    assert len(everything) == len(set(everything)) == len(corpus())
    assert len(prompts["train"]) > 4000 and min(len(prompts["validation"]), len(prompts["test"])) > 400
    for split in SPLITS:
        assert [row["prompt"] for row in docstrings.demonstrations(split)] == prompts[split]
        assert [row["text"].split(": ")[0] + ":" for row in docstrings.text(split)] == prompts[split]


@pytest.mark.parametrize(
    ("prompt", "split"),
    [
        ("json.dumps:", "test"),
        ("textwrap.wrap:", "train"),
        ("builtins.len:", "train"),
        ("heapq.heappush:", "train"),
        ("shutil.copytree:", "train"),
    ],
)
def test_these_names_stay_where_they_are(prompt, split):
    assert [s for s in SPLITS if {"prompt": prompt} in docstrings.prompts(s)] == [split]


@pytest.mark.parametrize(
    ("summary", "counted"),
    [
        ("Return the length.", []),
        ("None of it counts first.", ["first."]),
        ("Return True if x is None, else False.", ["True", "if", "None,", "False."]),
        ("Compute sqrt2 of the first arg_name when given.", ["sqrt2", "first", "arg_name", "when", "given."]),
        ("The MAX_SIZE of an int in bytes.", ["MAX_SIZE", "int", "bytes."]),
        ("Serialize obj to a JSON formatted str.", ["JSON", "str."]),
        (
            "A 'quoted' or `code`, *args (optional) <tag> [x].",
            ["'quoted'", "`code`,", "*args", "(optional)", "<tag>", "[x]."],
        ),
        ("Like camelCase and CamelCase, not Capital.", ["camelCase", "CamelCase,"]),
        ("An interface of strings, listing integers and boolean sets.", []),
        ("Do it Unless, otherwise; until: both.", ["Unless,", "otherwise;", "until:", "both."]),
        ("Wait 10 seconds or x86 or __init__.", ["10", "x86", "__init__."]),
        ("", []),
        ("One", []),
    ],
)
def test_specificity_counts_these_words(summary, counted):
    assert specificity(summary) == len(counted)
    # One by one, behind a first word that never counts.
    alone = [word for word in summary.split()[1:] if specificity(f"It {word}")]
    assert alone == counted


MERITS = {"brief": (lambda text: -len(text.split()), 3), "specific": (lambda text: specificity(text.strip()), 2)}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("preference", MERITS)
def test_preferences_obey_their_wish(preference, split):
    merit, least = MERITS[preference]
    own = {row["prompt"]: row["completion"] for row in docstrings.demonstrations(split)}
    real = set(own.values())
    rows = docstrings.preferences(split, preference)
    assert len(rows) > 0.4 * len(own)
    for row in rows:
        assert row.keys() == {"prompt", "chosen", "rejected"}
        assert merit(row["chosen"]) - merit(row["rejected"]) >= least
        assert {row["chosen"], row["rejected"]} <= real and own[row["prompt"]] in (row["chosen"], row["rejected"])
    assert min(merit(row["chosen"]) - merit(row["rejected"]) for row in rows) == least
    prompts = [row["prompt"] for row in rows]
    assert max(prompts.count(prompt) for prompt in prompts[:200]) == 2  # every name is drawn twice
    # A judge that only knows whether a summary is the name's own must not win.
    share = sum(row["chosen"] == own[row["prompt"]] for row in rows) / len(rows)
    assert share == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("preference", MERITS)
def test_preferences_are_the_same_in_every_run(preference):
    assert docstrings.preferences("test", preference) == docstrings.preferences("test", preference)
    assert docstrings.preferences("test", preference) != docstrings.preferences("test", preference, seed=1)


@pytest.mark.parametrize("preference", ["long", "", None])
def test_an_unknown_preference_is_refused(preference):
    with pytest.raises(ValueError, match="unknown to the docstrings task, which has brief and specific"):
        docstrings.preferences("train", preference)


def test_the_corpus_does_not_depend_on_hooks_that_others_put_in_place(monkeypatch):
    """torch.distributed replaces sys.excepthook, IPython sys.displayhook: one row less is another shuffle."""
    before = docstrings.corpus()
    assert "sys.excepthook" in {entry.name for entry in before}
    monkeypatch.setattr("sys.excepthook", lambda *args: None)
    monkeypatch.setattr("sys.displayhook", lambda value: None)
    docstrings.corpus.cache_clear()
    try:
        assert docstrings.corpus() == before
        assert gc.isenabled()
    finally:
        docstrings.corpus.cache_clear()
