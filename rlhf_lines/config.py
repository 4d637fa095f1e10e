"""One YAML file and the command line, parsed into the dataclasses of a stage.

A field says itself what its key accepts. Its annotation is what it holds once the dataclass is made; where that is no
text, number or switch, its metadata has a function `parse`, from what a flag (a text) or the YAML file gave, or from a
default as a user would write it, to what the field holds. Of a field that is a list, `parse` reads one item:

    rewards: list[RewardEntry] = field(metadata={"help": "Reward models: ...", "parse": RewardEntry.of})

`read_fields`, called by the dataclass's `__post_init__`, applies them, so that a config made in Python means the same.
A `parse` also takes what the field holds, so that typed values, as those of `dataclasses.replace`, mean themselves.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from rlhf_lines.errors import Problems, closest
from rlhf_lines.redaction import tell


# Packages whose dataclasses are taken as they are, and the headings of their options in a stage's help, after ours.
LIBRARIES = {"trl": "options of TRL", "transformers": "options of transformers"}


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

    def __post_init__(self) -> None:
        read_fields(self)


def read_fields(config: object, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What every field was given, as a file says it, after all with a `parse` in their metadata hold what that makes.

    None stays None where the annotation has it.

    Args:
        config: a dataclass that has just been made.
        before: what the config that it was copied from was given: told again, to the letter, where it means the same.

    Raises:
        ValueError: a value means nothing; `InputProblems` if several do.
    """
    given, hints, problems = {}, get_type_hints(type(config)), Problems()
    for entry in (entry for entry in fields(config) if entry.init):
        value, read, hint = getattr(config, entry.name), entry.metadata.get("parse"), hints[entry.name]
        given[entry.name] = _as_written(value)
        if value is None and type(None) not in get_args(hint):
            problems.add(f"{entry.name} is empty, expected a value")
        elif value is not None and read is not None:
            with problems.collect():
                held = _read(read, hint, value)
                setattr(config, entry.name, held)
                said = (before or {}).get(entry.name)
                if said is not None and _read(read, hint, said) == held:
                    given[entry.name] = said
    problems.check()
    return given


def from_json(key: str, value: object) -> object:
    """What a text is the JSON of; a value that is no text as it is.

    Raises:
        ValueError: the text is no JSON.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"{key} holds {value!r}, which is no valid JSON: {error}") from None


def _read(read: Callable[[Any], Any], hint: Any, value: Any) -> Any:
    return [read(item) for item in value] if _is_list(hint) else read(value)


def _as_written(value: object) -> object:
    """What a file says of a value: of an entry the fields that are not at their defaults, as a mapping."""
    if isinstance(value, list):
        return [_as_written(item) for item in value]
    if not is_dataclass(value):
        return value
    defaults = {
        entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
        for entry in fields(value)
    }
    return {name: held for name, default in defaults.items() if (held := getattr(value, name)) != default}


def _is_list(annotation: Any) -> bool:
    """Whether a field holds a list, or a list or None."""
    return list in (get_origin(annotation), *map(get_origin, get_args(annotation)))


def parse(dataclass_types: Sequence[type], arguments: list[str], *, prog: str) -> tuple[tuple, dict]:
    """The filled dataclasses, and the mapping of everything that was given (file, overridden by flags).

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: a key or flag is unknown, a value has the wrong type, a required one is missing, or the file is not
            a YAML mapping.
    """
    parser = _parser(dataclass_types, prog)
    given, path = read_config(arguments, dataclass_types)
    known = {action.dest for action in parser._actions} - {"help"}
    for key in given:
        if key not in known:
            near = closest(key, known)
            suggestion = f"did you mean {near!r}?" if near else f"see {prog} --help for the known ones"
            raise ValueError(f"config file {path} has the unknown key {key!r}: {suggestion}")
    try:
        parser.set_defaults_with_config(**given)
        configs = parser.parse_args_into_dataclasses(_config_and_others(arguments)[1])
    except (TypeError, ValueError) as error:  # what the dataclasses of TRL and transformers think of the values
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: {message}" if path else message) from error
    return configs, {**given, **_flags(dataclass_types, arguments, prog)}


def given_keys(arguments: list[str], dataclass_types: Sequence[type] = ()) -> set[str]:
    """The names of the keys and flags that are given, known or not.

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: it is not a YAML mapping.
    """
    config, _ = read_config(arguments, dataclass_types)
    flags = {
        argument[2:].partition("=")[0] for argument in _config_and_others(arguments)[1] if argument.startswith("--")
    }
    return set(config) | flags


def read_config(arguments: list[str], dataclass_types: Sequence[type] = ()) -> tuple[dict, Path | None]:
    """The mapping in the file that `--config` names, and its path; `({}, None)` without one.

    Args:
        arguments: of the command line.
        dataclass_types: one that also reads files of another kind has a static method `settings`, from the content
            and the path of a file to the settings it stands for.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds no YAML mapping, or one of those dataclasses refuses it.
    """
    import yaml

    path, _ = _config_and_others(arguments)
    if path is None:
        return {}, None
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config file {path} must be a mapping of keys to values, not {type(config).__name__}")
    tell(config)  # before anything is said of its values
    for kind in dataclass_types:
        if hasattr(kind, "settings"):
            config = kind.settings(config, path)
    return config, path


def _config_and_others(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The path that `--config` names, or None, and the other arguments."""
    if "--config" not in arguments:
        return None, arguments
    position = arguments.index("--config")
    if position + 1 == len(arguments):
        raise ValueError("--config needs the path of a YAML file after it")
    return Path(arguments[position + 1]), arguments[:position] + arguments[position + 2 :]


def _flags(dataclass_types: Sequence[type], arguments: list[str], prog: str) -> dict:
    """What the command line gave, without the defaults."""
    parser = _parser(dataclass_types, prog)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_args(_config_and_others(arguments)[1]))


def _parser(dataclass_types: Sequence[type], prog: str):
    """TRL's parser of these dataclasses, with our sentences, and with a heading for each of them in its help."""
    from trl import TrlParser

    class Parser(TrlParser):
        def __init__(self, *args, **kwargs):
            self.read_by_field: set[str] = set()  # names of fields with a parse
            super().__init__(*args, **kwargs)
            headings = list(LIBRARIES.values())
            self._action_groups.sort(key=lambda group: headings.index(group.title) if group.title in headings else -1)

        def error(self, message: str):
            raise ValueError(f"{message}; see {prog} --help")

        def _add_dataclass_arguments(self, dtype):
            hints = get_type_hints(dtype)
            for entry in map(copy, fields(dtype)):
                entry.type = hints[entry.name]
                if "parse" in entry.metadata:
                    self.read_by_field.add(entry.name)
                    entry.type = list[str] if _is_list(entry.type) else str
                    entry.metadata = {key: value for key, value in entry.metadata.items() if key != "parse"}
                if entry.init:
                    self._parse_dataclass_field(self._group(_heading(dtype, entry.name)), entry)

        def _group(self, title: str):
            found = (group for group in self._action_groups if group.title == title)
            return next(found, None) or self.add_argument_group(title)

        def set_defaults_with_config(self, **config):
            actions = {action.dest: action for action in self._actions}
            return super().set_defaults_with_config(
                **{
                    key: _from_yaml(actions[key], value, as_it_is=key in self.read_by_field)
                    for key, value in config.items()
                }
            )

        def parse_args_into_dataclasses(self, *args, **kwargs):
            *parsed, remaining = super().parse_args_into_dataclasses(
                *args, **{**kwargs, "return_remaining_strings": True}
            )
            if remaining:
                raise ValueError(f"unknown flag {remaining[0]!r}; see {prog} --help")
            return tuple(parsed)

    usage = f"{prog} [--config FILE] [--flag value ...]"
    return Parser(dataclass_types, prog=prog, usage=usage, allow_abbrev=False)


def _heading(kind: type, name: str) -> str:
    """The heading of a field in the help: what the class that defines it says of itself, or whose class that is."""
    owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    of_library = LIBRARIES.get(owner.__module__.partition(".")[0])
    return of_library or inspect.getdoc(owner).partition("\n")[0].rstrip(".")


def _from_yaml(action: argparse.Action, value, *, as_it_is: bool):
    """What the flag would have made of the value: argparse converts texts only, and no parts of a list."""
    if value is None:
        if action.required:
            raise ValueError(f"{action.dest} is empty, expected a value")
        return None
    several = action.nargs in ("+", "*")
    items = value if several and isinstance(value, list) else [value]
    if not as_it_is and (several or action.type in (int, float)):
        items = [_one_value(action, item) for item in items]
    return items if several else items[0]


def _one_value(action: argparse.Action, value):
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
