"""One YAML file and the command line, parsed into the dataclasses of a stage."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlhf_lines.config import is_list
from rlhf_lines.config_file import Settings, read_settings
from rlhf_lines.errors import Problems, alternatives, closest, is_about_input, is_of_machine, is_ours, reason
from rlhf_lines.redaction import tell


# Packages whose dataclasses are taken as they are, and the headings of their options in a stage's help, after ours.
LIBRARIES = {"trl": "options of TRL", "transformers": "options of transformers"}
# Numbers that TRL, transformers and PEFT check late, or divide by: the least and the most that they take.
RANGES = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "lora_r",
            "max_completion_length", "num_iterations",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), (0, math.inf)),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
}  # fmt: skip
LARGEST = 2**63 - 1  # whole number that torch and Python's own loops count to
MANY = 3  # unknown keys of a file that are told one by one
ON, OFF = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")  # as transformers reads a switch


def parse(dataclass_types: Sequence[type], arguments: list[str], *, prog: str) -> tuple[tuple, dict]:
    """The filled dataclasses, and the mapping of everything that was given (file, overridden by flags).

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: a key or flag is unknown, a value has the wrong type, a required one is missing, or the file is not
            a YAML mapping.
    """
    parser = _parser(dataclass_types, prog)
    settings = read_config(arguments, dataclass_types)
    others = _config_and_others(arguments)[1]
    flags = _flags(dataclass_types, others, prog)  # a mistake in a flag is told before one in the file
    given = parser.read_settings(settings)
    _check_values({**given, **flags}, parser.of_libraries, settings, flags)
    try:
        configs = parser.parse_args_into_dataclasses(others)
    except Exception as error:  # what the dataclasses of TRL and transformers think of the values
        if is_of_machine(error) or (is_ours(error) and not is_about_input(error)):
            raise
        message = str(error) if is_ours(error) else reason(error)
        if isinstance(error, json.JSONDecodeError):  # which does not know what it read
            key = next((key for key, value in {**given, **flags}.items() if value == error.doc), "a setting")
            message = f"{key} holds {error.doc!r}, which is not valid JSON: {message}"
        raise ValueError(_place(message, settings, flags) + message) from error
    return configs, {**given, **flags}


def _check_values(given: Mapping[str, Any], known: Collection[str], settings: Settings, flags: Collection[str]) -> None:
    problems = Problems()
    for key, (least, most) in RANGES.items():
        value = given.get(key)
        if key in known and isinstance(value, (int, float)) and not least <= value <= most:
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
            message = f"{key} is {value}, expected {expected}"
            problems.add(_place(message, settings, flags) + message)
    for key, value in given.items():
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST and key not in ("seed", "data_seed"):
            message = f"{key} is {value}, expected at most {LARGEST}"
            problems.add(_place(message, settings, flags) + message)
        items = value if isinstance(value, list) else [value]
        if "" in items and key not in known:  # a Path of it would be the current folder
            message = f"{key} is empty, expected a value"
            problems.add(_place(message, settings, flags) + message)
        if holds_nul(value):
            message = f"{key} is {value!r}, expected a text without the character NUL"
            problems.add(_place(message, settings, flags) + message)
    problems.check()


def holds_nul(value: object) -> bool:
    r"""Whether a text, or one inside a list or a mapping, holds the character that no path can.

    >>> holds_nul("a b"), holds_nul([{"model": "a\0b"}])
    (False, True)
    """
    if isinstance(value, Mapping):
        return any(map(holds_nul, (*value, *value.values())))
    return any(map(holds_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def _place(message: str, settings: Settings, flags: Collection[str]) -> str:
    """Where the setting is that a message is about, to precede it; nothing for a flag, whose name says where it is.

    It is about the first setting that it names; a conflict of several, none of which is named, is put down to the file.
    """
    named = next((word for word in re.findall(r"\w+", message) if word in settings or word in flags), None)
    return f"{settings.place(named)}: " if settings and named not in flags else ""


def given_keys(arguments: list[str], dataclass_types: Sequence[type] = ()) -> set[str]:
    """The names of the keys and flags that are given, known or not.

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: it is not a YAML mapping.
    """
    flags = {
        argument[2:].partition("=")[0].replace("-", "_")
        for argument in _config_and_others(arguments)[1]
        if argument.startswith("--")
    }
    return set(read_config(arguments, dataclass_types)) | flags


def read_config(arguments: list[str], dataclass_types: Sequence[type] = ()) -> Settings:
    """What the file says that `--config` names; empty without one.

    Args:
        arguments: of the command line.
        dataclass_types: one that also reads files of another kind has a static method `settings`, from the content
            and the path of a file to the settings it stands for.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds no YAML mapping, or one of those dataclasses refuses it.
    """
    path = config_path(arguments)
    if path is None:
        return Settings()
    settings = read_settings(path)
    tell(settings)  # before anything is said of its values
    for kind in dataclass_types:
        if hasattr(kind, "settings") and (meant := kind.settings(dict(settings), path)) != settings:
            settings = Settings(meant, path)
    return settings


def config_path(arguments: list[str]) -> Path | None:
    """The path that `--config` names.

    Raises:
        ValueError: it names none, or there are two.
    """
    return _config_and_others(arguments)[0]


def _config_and_others(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The path that `--config` names, or None, and the other arguments."""
    paths, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument == "--config" or argument.startswith("--config="):
            paths.append(argument.partition("=")[2] or next(rest, ""))
        else:
            others.append(argument)
    if len(paths) > 1:
        raise ValueError(f"--config is given {len(paths)} times ({', '.join(paths)}): a run has one config file")
    if paths and (not paths[0] or paths[0].startswith("--")):
        raise ValueError("--config needs the path of a YAML file after it")
    return (Path(paths[0]) if paths else None), others


def _flags(dataclass_types: Sequence[type], arguments: list[str], prog: str) -> dict:
    """What the flags say, without the defaults."""
    parser = _parser(dataclass_types, prog)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    parser.check_flags(arguments)
    return vars(parser.parse_known_args(arguments)[0])


def _parser(dataclass_types: Sequence[type], prog: str):
    """TRL's parser of these dataclasses, with our sentences, and with a heading for each of them in its help."""
    from trl import TrlParser

    class Parser(TrlParser):
        def __init__(self, *args, **kwargs):
            self.hints: dict[str, Any] = {}  # of every field
            self.read_by_field: set[str] = set()  # names of fields with a parse
            self.of_libraries: set[str] = set()  # names of fields that a library defines
            self.elsewhere: dict[str, str] = {}  # from names that other versions of a stage have
            super().__init__(*args, **kwargs)
            accept_negative_numbers(self)
            headings = list(LIBRARIES.values())
            self._action_groups.sort(key=lambda group: headings.index(group.title) if group.title in headings else -1)

        def error(self, message: str):
            raise ValueError(f"{message}; see {prog} --help")

        def _add_dataclass_arguments(self, dtype):
            hints = get_type_hints(dtype)
            self.elsewhere |= getattr(dtype, "ELSEWHERE", {})
            for entry in map(copy, fields(dtype)):
                entry.type = self.hints[entry.name] = hints[entry.name]
                if "parse" in entry.metadata:
                    self.read_by_field.add(entry.name)
                    entry.type = list[str] if is_list(entry.type) else str
                    entry.metadata = {key: value for key, value in entry.metadata.items() if key != "parse"}
                if entry.init:
                    heading = _heading(dtype, entry.name)
                    if heading in LIBRARIES.values():
                        self.of_libraries.add(entry.name)
                    self._parse_dataclass_field(self._group(heading), entry)
            for action in self._actions:  # the library repeats the help of the switch that this turns off
                if action.option_strings[0].startswith("--no_") and action.const is False:
                    action.help = f"Turn {action.dest} off."

        def _group(self, title: str):
            found = (group for group in self._action_groups if group.title == title)
            return next(found, None) or self.add_argument_group(title)

        def check_flags(self, arguments: list[str]) -> None:
            """Refuse unknown flags and words that belong to none; of a flag given twice the last counts."""
            unknown = self.parse_known_args(arguments)[1]
            check_unknown(unknown, self._option_string_actions, prog, elsewhere=self.elsewhere)

        def read_settings(self, settings: Settings) -> dict[str, Any]:
            """Make the settings of a file the defaults, and return what is kept of them as given."""
            actions = {action.dest: action for action in self._actions if action.dest != "help"}
            problems, given, held = Problems(_unknown_keys(settings, actions, prog, self.elsewhere)), dict(settings), {}
            for key, value in ((key, value) for key, value in settings.items() if key in actions):
                kinds = _kinds(self.hints[key])
                text = all(_is_text(kind) for kind in kinds)
                texts = any(is_list(kind) and all(map(_is_text, get_args(kind))) for kind in kinds)
                if (text and not isinstance(value, list)) or (texts and key not in self.read_by_field):
                    value = given[key] = _written(value, settings.texts.get(key, value))
                try:
                    held[key] = _from_yaml(actions[key], value, None if key in self.read_by_field else kinds)
                except ValueError as error:
                    problems.add(f"{settings.place(key)}: {error}")
            problems.check()
            self.set_defaults_with_config(**held)
            return given

        def parse_args_into_dataclasses(self, arguments: list[str]):
            # Without look_for_args_file, a file beside the script could add flags that nobody gave.
            return super().parse_args_into_dataclasses(arguments, look_for_args_file=False)

    usage = f"{prog} [--config FILE] [--flag value ...]"
    return Parser(dataclass_types, prog=prog, usage=usage, allow_abbrev=False)


def accept_negative_numbers(parser: argparse.ArgumentParser) -> None:
    """Let a parser read `-1e-3` and `-inf` as numbers; argparse takes them for flags."""
    parser._negative_number_matcher = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\Z|-(?:inf|nan)\Z")


class Gather(argparse._StoreAction):
    """The lists of a flag given twice as one, in place of its default; of other flags the last counts."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Keep the values, behind those that the flag has had."""
        held = getattr(namespace, self.dest, self.default)
        is_more = isinstance(values, list) and held is not self.default
        setattr(namespace, self.dest, [*held, *values] if is_more else values)


def bare_switches(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """The arguments with switches that have no value: what is on stands in front, what is off is left out.

    Stages read a switch with a value or without one (`--overwrite true`), and so do all verbs. A word behind a switch
    that is no such value belongs to something else, and so does a single character, which may be the folder of a run
    (`compare --overwrite 1 2`); of a switch given twice the last counts, with `-` in its name or `_`.

    >>> bare_switches(["a", "--all", "1", "--overwrite", "False"], ["--all", "--overwrite"])
    ['--all', 'a', '1']

    Args:
        arguments: of the command line.
        switches: the flags that are switches.

    Raises:
        ValueError: a switch has another value behind its equals sign.
    """
    found: dict[str, bool] = {}
    others, rest = [], list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in switches:
            others.append(name + equals + value)
            continue
        if not equals:
            is_value = rest and len(rest[0]) > 1 and rest[0].lower() in (*ON, *OFF)
            value = rest.pop(0) if is_value else ON[0]
        if value.lower() not in (*ON, *OFF):
            raise ValueError(f"{name} is {value!r}, expected true or false")
        found[f"--{name[2:].replace('-', '_')}"] = value.lower() in ON
    return [name for name, on in found.items() if on] + others


def check_unknown(
    words: Sequence[str], known: Iterable[str], prog: str, *, elsewhere: Mapping[str, str] | None = None
) -> None:
    """Refuse the words of a command line that a parser did not take.

    Args:
        words: those.
        known: the flags that there are.
        prog: the command, whose help is named.
        elsewhere: from names that flags have in other programs to what they are here.

    Raises:
        ValueError: there are some; the first is told.
    """
    for word in words:
        if not word.startswith("-"):
            raise ValueError(f"{word!r} belongs to no flag: flags are written --flag value; see {prog} --help")
        flag = word.partition("=")[0]
        here, near = (elsewhere or {}).get(flag[2:].replace("-", "_")), closest(flag, known)
        suggestion = f": here it is {here};" if here else f": did you mean {near!r}?" if near else ";"
        raise ValueError(f"unknown flag {word!r}{suggestion} see {prog} --help")


def _unknown_keys(settings: Settings, known: Collection[str], prog: str, elsewhere: Mapping[str, str]) -> list[str]:
    """A sentence for each key that is unknown; one for all if they are many, because the file is then another's."""
    unknown = [key for key in settings if key not in known]
    if len(unknown) > MANY:
        first = ", ".join(unknown[:MANY])
        return [f"{settings.place()} has {len(unknown)} unknown keys ({first} ...): it is no config of {prog}"]
    near = {key: closest(key, known) for key in unknown}
    hints = {
        key: f"did you mean {near[key]!r}?" if near[key] else f"see {prog} --help for the known ones" for key in near
    }
    hints |= {key: f"here it is {elsewhere[key]}" for key in unknown if key in elsewhere}
    return [f"{settings.place(key)}: unknown key {key!r}: {hints[key]}" for key in unknown]


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What a field may hold beside None: of `list[float] | None` a list of floats, of `dict | str` one of two."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _is_text(kind: Any) -> bool:
    """Whether values of a kind are texts, any or some."""
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind is str or (isinstance(kind, type) and issubclass(kind, Enum))


def _heading(kind: type, name: str) -> str:
    """The heading of a field in the help: what the class that defines it says of itself, or whose class that is."""
    owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    of_library = LIBRARIES.get(owner.__module__.partition(".")[0])
    return of_library or inspect.getdoc(owner).partition("\n")[0].rstrip(".")


def _written(value: Any, text: Any) -> Any:
    """A value of a file where texts are expected: of what YAML takes for a number or a switch (no, 007), its text."""
    if isinstance(value, list) and isinstance(text, list):
        return [_written(*each) for each in zip(value, text, strict=True)]
    return value if isinstance(value, str | list | dict | None) else text


def _from_yaml(action: argparse.Action, value, kinds: Sequence[Any] | None):
    """What the flag would have made of a value, or of the parts of a list; a mapping stays one where it may be one.

    Args:
        action: of the flag.
        value: of the file.
        kinds: what the field may hold; None leaves the value to the field's own `parse`.
    """
    if value is None:
        if action.required:
            raise ValueError(f"{action.dest} is empty, expected a value")
        return None
    several = action.nargs in ("+", "*")
    items = value if several and isinstance(value, list) else [value]
    if kinds is not None and len(kinds) == 1:
        kind = get_args(kinds[0])[0] if is_list(kinds[0]) else kinds[0]
        if kind in (int, float, bool) or _is_text(kind):
            items = [_one_value(action, item, kind) for item in items]
    return items if several else items[0]


def _one_value(action: argparse.Action, value, kind: Any):
    if value is None or isinstance(value, (list, dict)):
        raise ValueError(f"{action.dest} holds {value!r}, expected one value")
    if _is_text(kind):
        if action.choices and value not in action.choices:
            raise ValueError(f"{action.dest} holds {value!r}, expected {alternatives(list(map(str, action.choices)))}")
        return value
    try:
        held = action.type(str(value)) if kind is bool or isinstance(value, str) else kind(value)
    except (TypeError, ValueError, OverflowError, argparse.ArgumentTypeError):
        held = value
    exact = not isinstance(value, float) or held == value or value != value
    if held is not None and not (isinstance(held, kind) and exact and (kind is bool or not isinstance(value, bool))):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{action.dest} holds {value!r}, expected {expected}")
    return held
