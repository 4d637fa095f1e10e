"""The bars of a merge: one per phase, on a terminal only, and gone when the merge is."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines import cli
from tests.merge.rules.every_rule import WEIGHTS


class Terminal(io.StringIO):
    """What a terminal gets, and what stays on its screen."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for text in line.split("\r"):
                shown = text + shown[len(text) :]
            lines.append(shown.rstrip())
        return "\n".join(lines)


def command(given, rule: str, *flags: str) -> list[str]:
    inputs = ["--sft_model", str(given.sft), "--policies", *map(str, given.policies)]
    return ["merge", *inputs, "--weights", *map(str, WEIGHTS), "--rule", rule, "--output_dir", "out", *flags]


def on_a_terminal(arguments: list[str]) -> tuple[int, Terminal]:
    with contextlib.redirect_stderr(Terminal()) as terminal:
        return cli.main(arguments), terminal


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_bar_per_phase_and_nothing_left_of_them(inputs):
    status, terminal = on_a_terminal(command(inputs("float32"), "ties", "--save", "dense"))
    shown = terminal.getvalue()
    assert 0 < shown.index("merge: measure") < shown.index("merge: write")
    assert status == 0 and terminal.screen() == ""


def test_a_merge_that_only_measures_leaves_nothing_either(inputs):
    status, terminal = on_a_terminal(command(inputs("adapters"), "ties", "--save", "adapter", "--rank", "2"))
    assert status == 0
    assert "merge: measure" in terminal.getvalue() and terminal.screen() == ""


@pytest.mark.parametrize("rule", ["linear", "ties"])
def test_an_error_stands_alone(rule, inputs, copy_of):
    given = inputs("float32")
    broken = copy_of(given.policies[0])
    tensors = load_file(broken / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] * torch.nan}, broken / "model.safetensors")
    flags = ["--policies", str(broken), str(given.policies[1])]
    status, terminal = on_a_terminal(command(given, rule, "--save", "dense", *flags))
    assert status == 2 and "merge: " in terminal.getvalue()
    assert terminal.screen().startswith("rlhf-lines merge: 'lm_head.weight' of ")
    assert terminal.screen().count("\n") == 1


def test_a_file_gets_no_bars(inputs, capsys):
    assert cli.main(command(inputs("float32"), "ties", "--save", "dense")) == 0
    assert capsys.readouterr().err == ""
