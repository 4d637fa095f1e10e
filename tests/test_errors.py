"""Several mistakes are told in one message, one mistake as it is; those that a library finds are sentences too."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
import safetensors
import torch
import yaml

from rlhf_lines.errors import InputProblems, Problems, about, is_about_input, is_of_machine, reason


def collected(*errors: Exception) -> Problems:
    problems = Problems()
    for error in errors:
        with problems.collect():
            raise error
    return problems


def test_nothing_wrong_passes():
    Problems().check()


def test_one_problem_stays_the_error_it_is():
    with pytest.raises(FileNotFoundError, match=r"^a is missing$"):
        collected(FileNotFoundError("a is missing")).check()


def test_several_are_numbered_on_one_line_each_told_once():
    problems = collected(FileNotFoundError("a is missing"), InputProblems(["b is 1; c", "d"]), ValueError("d"))
    problems.add("e")
    with pytest.raises(InputProblems) as caught:
        problems.check()
    assert str(caught.value) == "4 problems: (1) a is missing; (2) b is 1; c; (3) d; (4) e"
    assert caught.value.problems == ("a is missing", "b is 1; c", "d", "e")


def test_errors_of_ours_are_not_collected():
    with pytest.raises(KeyError):
        collected(KeyError("a"))


def test_sentences_that_are_known_are_told_together():
    Problems(sentence for sentence in ()).check()
    with pytest.raises(ValueError, match=r"^a is 1$"):
        Problems(["a is 1"]).check()
    with pytest.raises(InputProblems, match=r"^2 problems: \(1\) a is 1; \(2\) b is 2$"):
        Problems(["a is 1", "b is 2"]).check()


# --- what a library raises ---


def raised_by(call: Callable[[], object], seam: bool = True, *kinds: type[Exception]) -> Exception:
    """What a library's call raises, within `about` or not."""
    try:
        if seam:
            with about("the file x cannot be read", *kinds):
                call()
        call()
    except Exception as error:
        return error
    raise AssertionError("the call is meant to fail")


LIBRARIES = {
    "json": lambda: json.loads("{"),
    "yaml": lambda: yaml.safe_load("a: [1\nb: {"),
    "jinja2": lambda: jinja2.Template("{% if %}").render(),
    "sqlite3": lambda: sqlite3.connect("/nowhere/x"),
    "safetensors": lambda: safetensors.deserialize(b"12345678"),
    "torch": lambda: torch.load(Path(__file__)),
    "a folder": lambda: Path("/").read_text(),
    "text": lambda: b"\xff".decode(),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_a_library_says_of_the_input_is_one_sentence(library):
    error = raised_by(LIBRARIES[library])
    assert type(error) is ValueError and is_about_input(error) and error.__cause__ is not None
    assert str(error).startswith("the file x cannot be read: ") and "\n" not in str(error) and len(str(error)) < 500


def test_without_the_seam_it_is_a_bug():
    assert not any(is_about_input(raised_by(LIBRARIES[name], seam=False)) for name in ("json", "jinja2", "sqlite3"))


def test_other_kinds_than_those_meant_pass():
    assert type(raised_by(LIBRARIES["json"], True, OSError, KeyError)) is json.JSONDecodeError


def test_a_sentence_of_ours_passes_as_it_is():
    from rlhf_lines.config import parse_size

    assert str(raised_by(lambda: parse_size("4 apples"))).startswith("'4 apples' is not a size")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()], ids=repr)
def test_a_fault_of_the_machine_passes(error):
    def fail():
        raise error

    assert raised_by(fail) is error and is_of_machine(error) and not is_about_input(error)


def test_a_path_that_cannot_be_used_is_about_the_input_wherever_it_is_met():
    assert is_about_input(raised_by(lambda: Path("/").write_text("x"), seam=False))
    assert not is_about_input(raised_by(lambda: Path("/nowhere").read_text(), seam=False))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: x"),
        (ValueError("a is\n  \x1b[1mwrong\x1b[0m.\n"), "a is wrong"),
        (TypeError("no number"), "TypeError no number"),
        (AssertionError(), "AssertionError"),
        (ValueError("First. " + "Second, " * 90), "First"),
        (ValueError("long " * 100), "long " * 80 + "..."),
        (ValueError("longer " * 100), "longer " * 57 + "..."),
        (ValueError("x" * 500), "x" * 400 + " ..."),
    ],
)
def test_a_reason_is_one_line_of_what_matters(error, words):
    assert reason(error) == words
