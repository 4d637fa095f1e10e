"""The dataclasses of a stage, whose fields say what they accept; `arguments` fills them.

A field says itself what its key accepts. Its annotation is what it holds once the dataclass is made; where that is no
text, number or switch, its metadata has a function `parse`, from what a flag (a text) or the YAML file gave, or from a
default as a user would write it, to what the field holds. Of a field that is a list, `parse` reads one item:

    rewards: list[RewardEntry] = field(metadata={"help": "Reward models: ...", "parse": RewardEntry.of})

`read_fields`, called by the dataclass's `__post_init__`, applies them, so that a config made in Python means the same.
A `parse` also takes what the field holds, so that typed values, as those of `dataclasses.replace`, mean themselves.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from rlhf_lines.errors import Problems


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


def missing_trackers(names: Iterable[str]) -> Iterator[str]:
    """A sentence for each tracker that `report_to` names and whose package is not installed."""
    for name in names:
        modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(map(importlib.util.find_spec, modules)):
            yield f"report_to names {name}, which is not installed: pip install {name}, or leave it out"


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
    return [read(item) for item in value] if is_list(hint) else read(value)


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


A_NAME = "a text without line breaks, and without blanks around it"


def is_name(value: object) -> bool:
    """Whether a user can call something by this and find it again: in tables, figures and flags.

    >>> [is_name(name) for name in ("r 2", "", " r2", 2)]
    [True, False, False, False]
    """
    return isinstance(value, str) and value == value.strip() != "" and value.isprintable()


def is_list(annotation: Any) -> bool:
    """Whether a field holds a list, or a list or None."""
    return list in (get_origin(annotation), *map(get_origin, get_args(annotation)))


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


def size_of(name: str, value: str | int) -> int:
    """What `parse_size` makes of a setting, whose name the error begins with.

    Raises:
        ValueError: the value is no size.
    """
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
