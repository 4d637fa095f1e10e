"""Numbers and texts as people read them."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.report.words import number, visible
from tests.pareto.report.report_runs import MINUS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x00\r\x7f\x85", "␀␍␡⟨U+0085⟩"),
        ("\ud800", "\ufffd"),
        (1, "1"),
        ("a\u200bb\ufeff\u00ad\u2060", "a⟨U+200B⟩b⟨U+FEFF⟩⟨U+00AD⟩⟨U+2060⟩"),  # of no width
        ("\u202eevil\u202c \u2066x\u2069 \u200e\u061c", "⟨U+202E⟩evil⟨U+202C⟩ ⟨U+2066⟩x⟨U+2069⟩ ⟨U+200E⟩⟨U+061C⟩"),
        ("1\u00a0000\u202f000", "1⍽000⟨U+202F⟩000"),  # spaces that look like another
        ("\u2028\u2029\u3164\u2800", "⟨U+2028⟩⟨U+2029⟩⟨U+3164⟩⟨U+2800⟩"),
        ("\U000e0041\U000e0100", "⟨U+E0041⟩⟨U+E0100⟩"),  # tags and selectors that can hide a text
        ("pass\u200dword \u200c", "pass⟨U+200D⟩word ⟨U+200C⟩"),
        ("👩\u200d💻 ❤\ufe0f נ\u200cש", "👩\u200d💻 ❤\ufe0f נ\u200cש"),  # joiners at their work
        ("日本\u3000語 é ü ש", "日本\u3000語 é ü ש"),
    ],
)
def test_nothing_that_was_written_is_invisible(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.004, 2, "0.00"), (-0.006, 2, f"{MINUS}0.01"), (1234.5678, 1, "1234.6"), (None, 2, "\u2013")],
)
def test_numbers_are_written_for_people(value, digits, text):
    assert number(value, digits) == text
