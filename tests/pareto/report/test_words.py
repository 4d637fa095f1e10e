"""Numbers and texts as people read them."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.report.words import number, visible
from tests.pareto.report.report_runs import MINUS


@pytest.mark.parametrize(
    ("text", "shown"), [("a\tb\n", "a\tb\n"), ("\x00\r\x7f", "␀␍␡"), ("\ud800", "\ufffd"), (1, "1")]
)
def test_nothing_that_was_written_is_invisible(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.004, 2, "0.00"), (-0.006, 2, f"{MINUS}0.01"), (1234.5678, 1, "1234.6"), (None, 2, "\u2013")],
)
def test_numbers_are_written_for_people(value, digits, text):
    assert number(value, digits) == text
