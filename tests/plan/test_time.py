"""The arithmetic of time, by hand."""

from __future__ import annotations

import pytest

from rlhf_lines.plan.time import Tokens, at_depth, in_words, padded, written


def test_a_pass_takes_a_and_b_for_every_layer():
    assert at_depth({1: 5.0, 3: 9.0}, 30) == 3 + 2 * 30
    assert at_depth({2: 5.0}, 2) == 5.0  # a model that is tried as it is
    assert at_depth({1: 5.0, 3: 4.9}, 30) == 5.0  # noise: no layer gives time back


def test_rows_are_padded_to_the_longest_of_their_batch():
    assert padded([1, 5, 2, 3, 9], 2) == (5 + 3) / 2  # the fifth row has no neighbour
    assert padded([1, 5], 8) == 5
    assert padded([7], 1) == 7


def test_a_batch_takes_less_and_less_as_rows_end():
    """Steps take 1 + 2 r; of rows of 1, 3 and 4 tokens three draw the first token, two the next two, one the last."""
    by_steps = (1 + 2 * 3) + 2 * (1 + 2 * 2) + (1 + 2 * 1)
    assert written(3.0, 7.0, 3, batch=3, steps=4, mean=8 / 3) == pytest.approx(by_steps)
    assert written(3.0, 3.0, 1, batch=1, steps=4, mean=4) == 12
    assert written(3.0, 2.9, 3, batch=3, steps=4, mean=2) == 12  # noise


def test_tokens_are_cut_to_whole_rows_or_to_a_part_of_one():
    tokens = Tokens(8, 100)
    assert tokens.count == 800
    assert tokens.at_most(10**6) == tokens
    assert tokens.at_most(350) == Tokens(3, 100)
    assert tokens.at_most(40) == Tokens(1, 40)
    assert tokens.at_most(0) == Tokens(1, 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (7.26, "7.3 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (551, "9 min"),
        (5400, "1.5 h"),
        (86400, "24 h"),
        (8.64e5, "10 days"),
        (8.64e8, "10,000 days"),
    ],
)
def test_a_time_in_words(seconds, words):
    assert in_words(seconds) == words
