"""Several mistakes are told in one message, one mistake as it is."""

from __future__ import annotations

import pytest

from rlhf_lines.errors import InputProblems, Problems


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
