"""A YAML file of settings, read so that it means what it looks like.

PyYAML follows YAML 1.1, where `1e-4` is a text, `010` is eight and `1:30` is ninety. Numbers here are those of YAML 1.2
and of JSON. `yes`, `no`, `on` and `off` stay switches, as everybody's YAML files have them; of a key that holds text,
`Settings.texts` has what was written. A key stands once and is not empty.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlhf_lines.errors import Problems, reason


class Settings(dict[str, Any]):
    """What a file says.

    Attributes:
        path: of the file; None of no file.
        lines: where each key stands, counted from 1.
        texts: of each key that holds plain values, what was written: a text, or a list of texts.
    """

    def __init__(self, content: dict | None = None, path: Path | None = None) -> None:
        super().__init__(content or {})
        self.path = path
        self.lines: dict[str, int] = {}
        self.texts: dict[str, str | list[str]] = {}

    def place(self, key: str | None = None) -> str:
        """Where something stands, to begin a sentence: the file, and the line of a key."""
        line = f", line {self.lines[key]}" if key in self.lines else ""
        return f"config file {self.path}{line}"


def read_settings(path: Path) -> Settings:
    """The settings in a file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it holds no YAML mapping, or a key twice, or one without a value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    with _yaml_of(path):
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.deep_construct = True  # refuses a value that holds itself
        node = loader.get_single_node()
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)  # before merge keys (<<) put more of them beside each other
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                key.tag = "tag:yaml.org,2002:str"  # `on: 1` has the key on, not true
    with _yaml_of(path):
        content = None if node is None else loader.construct_document(node)
    if not isinstance(content, dict):
        kinds = {type(None): "nothing", list: "a list", str: "one text"}
        what = kinds.get(type(content), f"one value, {content!r}")
        raise ValueError(f"config file {path} must be a mapping of keys to values (key: value), but holds {what}")
    settings = Settings(content, path)
    for key, value in node.value:
        settings.lines[key.value] = key.start_mark.line + 1
        if isinstance(value, yaml.ScalarNode):
            settings.texts[key.value] = value.value
        elif isinstance(value, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in value.value):
            settings.texts[key.value] = [item.value for item in value.value]
    return settings


@contextlib.contextmanager
def _yaml_of(path: Path) -> Iterator[None]:
    """Inside, what PyYAML says of the file becomes one sentence with the line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"config file {path} is not valid YAML{line}: {error.problem or reason(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"config file {path} is not valid YAML: {reason(error)}") from error


def _check_keys(root: yaml.Node, path: Path) -> None:
    """Refuse keys that stand twice in one mapping, and keys without a name or a value, wherever they are."""
    problems, seen, nodes = Problems(), set(), [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):  # an alias is a node seen before
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
            continue
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it
            line, name = key.start_mark.line + 1, key.value
            where = f"config file {path}, line {line}"
            if name in ("", "~", "null"):
                problems.add(f"{where}: a value without a key; write key: value")
            elif name in first and key.tag != _MERGE:
                problems.add(f"{where}: key {name!r} stands in line {first[name]} already; keep one of them")
            elif isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                problems.add(
                    f"{where}: {name} is empty, expected a value; write null for none, or leave the key out for the "
                    "default"
                )
            first.setdefault(name, line)
            nodes.append(value)
    problems.check()


_MERGE = "tag:yaml.org,2002:merge"
_INT, _FLOAT, _DATE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_AS_IN_YAML_1_2 = {
    _INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _FLOAT: re.compile(
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)"
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, with the numbers of YAML 1.2, and without its dates."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _DATE)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _tag, _pattern in _AS_IN_YAML_1_2.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), list("-+.0123456789"))
_Loader.add_constructor(_INT, _number)
