"""A bar on a terminal, lines in a log; both show life before the first unit is done."""

from __future__ import annotations

import contextlib
import io

import pytest

from rlhf_lines import progress
from rlhf_lines.progress import Bar, beat, steps


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that bars see, which the test moves on."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    return now


def test_a_log_gets_a_line_at_the_start_every_half_minute_and_at_the_end(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log, Bar(total=100, desc="sweep", unit="completions") as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update()
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert lines[0] == "sweep: 0 of 100 completions, 00:00 so far, ? left"
    assert [line.split()[1] for line in lines] == ["0", "30", "60", "90", "100"]
    assert lines[1] == "sweep: 30 of 100 completions, 00:30 so far, 01:10 left"


def test_a_log_shows_life_before_the_first_unit_is_done(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log, Bar(total=2, desc="ppo", unit="update") as bar:
        for token in range(64):
            clock[0] += 1
            beat(f"token {token + 1} of 64")
        bar.numbers({"reward": "0.5"})
        clock[0] += 1
        bar.update()
    beat("nothing is open, so nothing is said")
    lines = log.getvalue().splitlines()
    assert [line.partition(" left")[2] for line in lines[:3]] == ["", ", token 30 of 64", ", token 60 of 64"]
    assert lines[-1].startswith("ppo: 1 of 2 update") and lines[-1].endswith("left, reward=0.5")


def test_what_is_soon_done_says_nothing_in_a_log(clock):
    with (
        contextlib.redirect_stderr(io.StringIO()) as log,
        Bar(total=None, desc="merge: measure", unit="numbers", unit_scale=True, late=True) as bar,
    ):
        for _ in range(29):
            clock[0] += 1
            bar.update(1e6)
        assert log.getvalue() == ""
        clock[0] += 1
        bar.update(1e6)
    assert log.getvalue() == "merge: measure: 30.0M numbers, 00:30 so far\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_parts_that_nobody_counts_are_told_by_name_and_time(clock, terminal):
    """On a terminal at once, in a log after half a minute; at the end a terminal has nothing of it."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with contextlib.redirect_stderr(stream), steps("plan", "loading libraries"):
        shown = stream.getvalue()
        clock[0] += 29
        beat("reading train rows")
        soon = stream.getvalue()
        clock[0] += 2
        beat("timing passes")
        late = stream.getvalue()
    if terminal:
        assert "plan: 00:00 so far" in shown and "plan: 00:29 so far, reading train rows" in soon
        assert "plan: 00:31 so far, timing passes" in late and stream.getvalue().split("\r")[-2].strip() == ""
    else:
        assert shown == soon == "" and stream.getvalue() == late == "plan: 00:31 so far, timing passes\n"


def test_a_terminal_keeps_one_line(clock):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with contextlib.redirect_stderr(terminal), Bar(total=4, desc="sweep", unit="completions") as bar:
        for _ in range(4):
            clock[0] += 1
            beat("token 3 of 64")
            clock[0] += 1
            bar.update()
    assert terminal.getvalue().count("\n") == 1 and "token 3 of 64" in terminal.getvalue()
    assert "4/4" in terminal.getvalue().splitlines()[-1] and "token" not in terminal.getvalue().split("\r")[-1]
    assert progress._open == []
