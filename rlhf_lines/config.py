"""One YAML file and the command line, parsed into the dataclasses of a stage."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lines.errors import closest


MAPPINGS = ("rewards", "groups")  # keys of the YAML file whose items may be mappings
LISTS = ("weights", "scalings")  # and those whose items may be lists
RECORD_KEYS = {"format", "spec", "policies"}  # of a merge_spec.json, which repeats its merge


@dataclass
class RunConfig:
    """What every stage understands."""

    overwrite: bool = field(
        default=False, metadata={"help": "Replace an existing output_dir once the new one is done."}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on with a stopped run of the same settings; keep a complete output_dir."},
    )


@dataclass
class DataConfig:
    """Where rows come from; docs/data.md has the sources and their columns."""

    dataset_name: str = field(
        metadata={
            "help": "A task (docstrings, tldr, hh_rlhf, news), a local JSONL or Parquet file, a folder of them, "
            "or a Hub id."
        }
    )
    dataset_path: str | None = field(
        default=None,
        metadata={"help": "Where the rows of a task are, in place of its Hub id: a file, a folder, or a Hub id."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "How the prompts of a file, a folder or a Hub id are written: plain, hh or summary."},
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave out rows whose prompt has more tokens than this."}
    )

    def load(self, kind: str, split: str, tokenizer):
        """The rows that the settings describe; see `rlhf_lines.data.load`."""
        from rlhf_lines import data

        return data.load(kind=kind, split=split, tokenizer=tokenizer, **vars(self))


@dataclass
class TrainingDataConfig(DataConfig):
    """Which rows a training stage reads."""

    max_samples: int | None = field(default=None, metadata={"help": "Read only the first so many rows."})


@dataclass
class PreferenceDataConfig(TrainingDataConfig):
    """Which pairs a reward model is trained on."""

    preference: str | None = field(
        default=None,
        metadata={
            "help": "Which preference of the task, where it has several (docstrings: brief, specific; hh_rlhf: "
            "harmless-base, helpful-base, helpful-online, helpful-rejection-sampled)."
        },
    )


def parse(dataclass_types: tuple[type, ...], arguments: list[str], *, prog: str) -> tuple[tuple, dict]:
    """The filled dataclasses, and the mapping of everything that was given (file, overridden by flags).

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: a key or flag is unknown, a value has the wrong type, a required one is missing, or the file is not
            a YAML mapping.
    """
    parser = _parser(dataclass_types, prog)
    given, path = read_config(arguments)
    known = {action.dest for action in parser._actions} - {"help"}
    for key in given:
        if key not in known:
            near = closest(key, known)
            suggestion = f"did you mean {near!r}?" if near else f"see {prog} --help for the known ones"
            raise ValueError(f"config file {path} has the unknown key {key!r}: {suggestion}")
    try:
        parser.set_defaults_with_config(**given)
        stages = parser.parse_args_into_dataclasses(_without_config(arguments))
    except (TypeError, ValueError) as error:  # what the dataclasses of TRL and transformers think of the values
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: {message}" if path else message) from error
    return stages, {**given, **_flags(dataclass_types, arguments, prog)}


def given_keys(arguments: list[str]) -> set[str]:
    """The names of the keys and flags that are given, known or not.

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: it is not a YAML mapping.
    """
    config, _ = read_config(arguments)
    flags = {argument[2:].partition("=")[0] for argument in _without_config(arguments) if argument.startswith("--")}
    return set(config) | flags


def _flags(dataclass_types: tuple[type, ...], arguments: list[str], prog: str) -> dict:
    """What the command line gave, without the defaults."""
    parser = _parser(dataclass_types, prog)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_args(_without_config(arguments)))


def _parser(dataclass_types: tuple[type, ...], prog: str):
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str):
            raise ValueError(f"{message}; see {prog} --help")

        def set_defaults_with_config(self, **config):
            actions = {action.dest: action for action in self._actions}
            return super().set_defaults_with_config(
                **{key: _from_yaml(actions[key], value) for key, value in config.items()}
            )

        def parse_args_into_dataclasses(self, *args, **kwargs):
            *parsed, remaining = super().parse_args_into_dataclasses(
                *args, **{**kwargs, "return_remaining_strings": True}
            )
            if remaining:
                raise ValueError(f"unknown flag {remaining[0]!r}; see {prog} --help")
            return tuple(parsed)

    return Parser(dataclass_types, prog=prog, allow_abbrev=False)


def _from_yaml(action: argparse.Action, value):
    """What the flag would have made of the value: argparse converts texts only, and no parts of a list."""
    if value is None:
        if action.required:
            raise ValueError(f"{action.dest} is empty, expected a value")
        return None
    if action.nargs in ("+", "*"):
        return [_one_value(action, item) for item in (value if isinstance(value, list) else [value])]
    return _one_value(action, value) if action.type in (int, float) else value


def _one_value(action: argparse.Action, value):
    if (isinstance(value, dict) and action.dest in MAPPINGS) or (
        isinstance(value, list) and action.dest in LISTS and action.type is str
    ):
        return value
    if isinstance(value, (list, dict)):
        raise ValueError(f"{action.dest} holds {value!r}, expected one value")
    if action.type not in (int, float):
        return value
    try:
        number = action.type(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and number != value and value == value):
        expected = "a whole number" if action.type is int else "a number"
        raise ValueError(f"{action.dest} holds {value!r}, expected {expected}")
    return number


def read_config(arguments: list[str]) -> tuple[dict, Path | None]:
    """The mapping in the file that `--config` names, and its path; `({}, None)` without one.

    A `merge_spec.json` is read as the settings that repeat its merge; see `rlhf_lines.merge.output.record`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds no YAML mapping, or a merge record of another format.
    """
    import yaml

    if "--config" not in arguments:
        return {}, None
    position = arguments.index("--config")
    if position + 1 == len(arguments):
        raise ValueError("--config needs the path of a YAML file after it")
    path = Path(arguments[position + 1])
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config file {path} must be a mapping of keys to values, not {type(config).__name__}")
    if config.keys() >= RECORD_KEYS:
        from rlhf_lines.merge.output.record import settings

        config = settings(path)
    return config, path


def _without_config(arguments: list[str]) -> list[str]:
    if "--config" not in arguments:
        return arguments
    position = arguments.index("--config")
    return arguments[:position] + arguments[position + 2 :]


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str | int) -> int:
    """A size in bytes: a number, alone or with KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    >>> parse_size("1.5GB"), parse_size("2 KiB"), parse_size(300)
    (1500000000, 2048, 300)

    Raises:
        ValueError: the text is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: expected a number with a unit, such as 4GB or 512MiB")
    number, unit, binary = match.groups(default="")
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit])
