"""What is wrong is put down to the file and its line, or to the flag, with what was meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Literal

import pytest

from rlhf_lines.arguments import given_keys, parse
from rlhf_lines.config import RunConfig, read_fields
from rlhf_lines.stages import configs_of, read_configs
from rlhf_lines.train.ppo_config import ELSEWHERE, PPOConfig


class Color(StrEnum):
    """A choice, as libraries have them."""

    RED = "red"
    NO = "no"


@dataclass
class ThingConfig:
    """Something to configure."""

    output_dir: str = "out"
    weights: list[float] | None = None
    rate: float | None = None
    steps: int = 7
    quick: bool = False
    note: str | None = None
    names: list[str] | None = None
    color: Color = Color.RED
    size: Literal["small", "large"] = "small"
    extra: dict | str | None = field(default=None)

    def __post_init__(self) -> None:
        read_fields(self)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")


TYPES = (RunConfig, ThingConfig)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A function from the content of thing.yaml and flags to what is parsed."""
    monkeypatch.chdir(tmp_path)

    def run(content: str, *flags: str):
        (tmp_path / "thing.yaml").write_text(content)
        return parse(TYPES, [*(["--config", "thing.yaml"] if content else []), *flags], prog="rlhf-lines thing")

    return run


def test_numbers_below_zero_are_no_flags(given):
    (_, thing), _ = given("", "--weights", "-1e-3", "1", "-.5", "-2.", "-1E+2", "-inf", "--rate", "-2e0")
    assert thing.weights == [-0.001, 1.0, -0.5, -2.0, -100.0, -float("inf")] and thing.rate == -2.0


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("note: no", "note", "no"), ("note: 007", "note", "007"), ("note: 12e4", "note", "12e4"),
        ("note: 2024-01-01", "note", "2024-01-01"), ("note: null", "note", None), ("color: no", "color", "no"),
        ("quick: no", "quick", False), ("quick: 'off'", "quick", None), ("quick: 1", "quick", True),
        ("quick: 'yes'", "quick", True), ("rate: 1", "rate", 1.0), ("steps: 010", "steps", 10),
        ("names: [1, no, 007, x]", "names", ["1", "no", "007", "x"]), ("names: 1e3", "names", ["1e3"]),
        ("steps: 1_000", "steps", 1000), ("steps: 1e2", "steps", 100), ("extra: {a: 1e-4}", "extra", {"a": 1e-4}),
    ],
)  # fmt: skip
def test_a_value_is_what_its_field_holds(given, content, name, value):
    if content == "quick: 'off'":
        with pytest.raises(ValueError, match=r"thing\.yaml, line 1: quick holds 'off', expected true or false"):
            given(content)
        return
    (_, thing), kept = given(content)
    held = getattr(thing, name)
    assert held == value and isinstance(held, type(value))
    assert parse(TYPES, [f"--{name}={kept[name]}"], prog="x")[0][1] == thing if isinstance(value, str) else True


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("a: 1\nstepz: 3\n", [], r"^2 problems: \(1\) .*line 1: unknown key 'a'.*\(2\).*line 2: unknown key 'stepz'"),
        ("a: 1\nb: 1\nc: 1\nd: 1\n", [], r"thing.yaml has 4 unknown keys \(a, b, c ...\): it is no config of"),
        ("note: x\nsteps: true\n", [], "thing.yaml, line 2: steps holds True, expected a whole number"),
        ("steps: 1:30\n", [], "thing.yaml, line 1: steps holds '1:30', expected a whole number"),
        ("size: medium\n", [], "thing.yaml, line 1: size holds 'medium', expected small or large"),
        ("color: blue\n", [], "thing.yaml, line 1: color holds 'blue', expected red or no"),
        ("quick: 2\n", [], "thing.yaml, line 1: quick holds 2, expected true or false"),
        ("names: [1, [a]]\n", [], r"thing.yaml, line 1: names holds \['a'\], expected one value"),
        ("names: [a, null]\n", [], "thing.yaml, line 1: names holds None, expected one value"),
        ("note: [a]\n", [], r"thing.yaml, line 1: note holds \['a'\], expected one value"),
        ("note: x\nsteps: 0\n", [], "^config file thing.yaml, line 2: steps is 0, expected at least 1$"),
        (f"steps: {10**20}\n", [], f"thing.yaml, line 1: steps is {10**20}, expected at most {2**63 - 1}$"),
        ('note: ""', [], "thing.yaml, line 1: note is empty, expected a value$"),
        ("", ["--note="], "^note is empty, expected a value$"),
        ('output_dir: "a\\0b"', [], r"line 1: output_dir is 'a\\x00b', expected a text without the character NUL$"),
        ('extra: {a: ["\\0"]}', [], r"line 1: extra is .*, expected a text without the character NUL$"),
        ("", ["--note", "a\0"], r"^note is 'a\\x00', expected a text without the character NUL$"),
        # A wrong flag beside a config is not the config's fault.
        ("steps: 3\n", ["--steps", "0"], "^steps is 0, expected at least 1$"),
        ("note: x\n", ["--steps", "0"], "^steps is 0, expected at least 1$"),
        ("note: x\n", ["--step", "3"], "^unknown flag '--step': did you mean '--steps'"),
        ("steps: bad\n", ["--stepz=3"], "^unknown flag '--stepz=3': did you mean '--steps'"),
        ("steps: 3\n", ["--steps", "many"], "^argument --steps: invalid int value: 'many'"),
        ("note: x\n", ["3"], "^'3' belongs to no flag"),
        ("note: x\n", ["--config=thing.yaml"], r"--config is given 2 times \(thing.yaml, thing.yaml\)"),
        ("", ["--config="], "--config needs the path of a YAML file after it"),
        ("", ["--config", "--steps", "3"], "--config needs the path"),
    ],
)  # fmt: skip
def test_mistakes_are_put_down_to_where_they_are(given, content, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        given(content, *flags)
    assert "\n" not in str(error.value)


def test_a_bug_in_a_dataclass_of_ours_is_no_mistake_of_the_user(given, monkeypatch):
    code = {"__name__": "rlhf_lines.thing"}
    exec("def check(self): return {}[self.steps]", code)
    monkeypatch.setattr(ThingConfig, "__post_init__", code["check"])
    with pytest.raises(KeyError):
        given("steps: 99\n")


@pytest.mark.parametrize("content", ["", "weights: [9, 8]"])
def test_of_a_flag_given_twice_the_last_counts_before_what_the_file_has(given, content):
    (_, thing), kept = given(content, "--weights", "1", "-2", "--steps", "3", "--weights=4")
    assert thing.weights == kept["weights"] == [4.0]


@pytest.mark.parametrize("config", [["--config=thing.yaml"], ["--config", "thing.yaml"]])
def test_the_config_is_named_either_way(given, config):
    given("steps: 3\n")
    (_, thing), kept = parse(TYPES, [*config, "--note=a=b", "--steps", "1", "--steps", "4"], prog="x")
    assert (thing.steps, thing.note, kept) == (4, "a=b", {"steps": 4, "note": "a=b"})
    assert given_keys([*config, "--output-dir=x"]) == {"steps", "output_dir"}


def test_numbers_that_a_library_would_divide_by_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("output_dir: o\nper_device_train_batch_size: 0\n")
    arguments = ["--config", "c.yaml", "--bf16", "false", "--dataset_name=docstrings"]
    with pytest.raises(
        ValueError, match=r"^config file c\.yaml, line 2: per_device_train_batch_size is 0, expected at least"
    ):
        parse(configs_of("sft"), arguments, prog="rlhf-lines sft")
    flags = ["--per_device_train_batch_size", "1", "--seed", "-1", "--gradient_accumulation_steps=0"]
    with pytest.raises(
        ValueError, match=r"^2 problems: \(1\) gradient_accumulation_steps is 0, .*; \(2\) seed is -1, expected 0 to"
    ):
        parse(configs_of("sft"), [*arguments, *flags], prog="rlhf-lines sft")


def test_no_file_beside_the_script_adds_flags(given, tmp_path, monkeypatch):
    (tmp_path / "script.args").write_text("--steps 5")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "script.py")])
    assert given("")[0][1].steps == 7


def test_the_help_of_a_switch_turned_off_says_so(capsys):
    from rlhf_lines.sweep.config import SweepConfig

    with pytest.raises(SystemExit):
        parse((SweepConfig,), ["--help"], prog="x")
    assert "Turn controls off." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("num_ppo_epochs", "num_iterations"),
        ("ppo-epochs", "num_iterations"),
        ("cliprange", "epsilon"),
        ("response_length", "max_completion_length"),
        ("total_episodes", "max_steps, which counts updates: total_episodes * num_iterations / "),
    ],
)
def test_what_ppo_was_called_in_trl_is_told_by_its_name_here(tmp_path, name, here):
    with pytest.raises(ValueError, match=re.escape(f"unknown flag '--{name}': here it is {here}")):
        read_configs("ppo", [f"--{name}", "4"])
    file = tmp_path / "ppo.yaml"
    file.write_text(f"{name.replace('-', '_')}: 4\n")
    with pytest.raises(ValueError, match=re.escape(f"unknown key '{name.replace('-', '_')}': here it is {here}")):
        read_configs("ppo", ["--config", str(file)])


def test_no_setting_of_ppo_is_told_to_be_another_one():
    known = {entry.name for entry in fields(PPOConfig)} | {"rewards", "model_name_or_path", "the"}
    assert not known & set(ELSEWHERE) and {re.match(r"\w+", here)[0] for here in ELSEWHERE.values()} <= known
