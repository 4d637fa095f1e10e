"""The gains of the policies as a finished sweep prints them."""

from __future__ import annotations

from rlhf_lines.summary import gains_table


def test_a_gain_of_one_prompt_is_printed_without_an_interval():
    gain = {"policy": "runs/brief", "reward": "brief", "value": 1.25, "low": None, "high": None}
    alone, whole = gains_table([gain, {**gain, "low": 1.0, "high": 1.5}]).splitlines()[-2:]
    assert alone.split() == ["brief", "policy,", "brief", "score", "1.25"]
    assert whole.split() == ["brief", "policy,", "brief", "score", "1.25", "[1.00,", "1.50]"]
