"""The offline task: given the name of a Python function or class, write the summary line of its docstring.

The corpus is the standard library of the interpreter that runs: its source files are parsed, never imported, and the
built-in modules, which have no source, are asked for their docstrings. One example:

    prompt      "textwrap.wrap:"
    completion  " Wrap a single paragraph of text, returning a list of wrapped lines."

Two wishes about a summary conflict, and both can be scored from the text alone:

    brief       says it in few words
    specific    names things: parameters, constants, types, numbers, conditions
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib
import inspect
import os
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lines.data.splits import SHARE, split_of


# Test suites and bundled applications: thousands of near-identical names that no one would ask about.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
LONGEST_NAME = 60  # characters
LONGEST_SUMMARY = 140  # characters
LONGEST_TEXT = 400  # characters: long docstrings are about one function, not about how summaries read
PREFERENCES = ("brief", "specific")

_CONDITION = {"if", "unless", "when", "whether", "otherwise", "until", "while", "except", "without", "given"}
_NUMBER_WORD = {"first", "second", "last", "zero", "one", "two", "three", "both", "all", "each", "every", "any", "no"}
_NAMED = re.compile(
    r"""
      \w*_\w+            # snake_case and dunder names
    | [a-z]+[A-Z]\w*     # camelCase
    | [A-Z][a-z]+[A-Z]\w*  # CamelCase
    | [A-Z]{2,}\w*       # CONSTANTS and placeholders
    | \w*\d\w*           # numbers
    | ["'`*|<(\[]        # quoted names, alternatives, argument lists
    | (?:None|True|False|int|str|bytes|float|list|dict|tuple|set|bool)\b
    """,
    re.VERBOSE,
)


class Entry(NamedTuple):
    """A documented object: its qualified name, the summary line and the whole docstring."""

    name: str
    summary: str
    docstring: str


def specificity(summary: str) -> int:
    """How many words of a summary name something or state a condition.

    Counted are identifiers, constants, quoted names, numbers, types, quantities and words of condition. The first word
    is left out: its capital says nothing.
    """
    words = summary.split()[1:]
    return sum(bool(_NAMED.match(word)) or word.lower().strip(".,;:") in _CONDITION | _NUMBER_WORD for word in words)


@functools.cache
def corpus() -> tuple[Entry, ...]:
    """Every documented function and class of the standard library, one per name, sorted by name."""
    found = {}
    with _no_garbage_collection():
        documented = [*_from_source(), *_from_builtins()]
    for name, docstring in documented:
        summary = " ".join(docstring.strip().split("\n\n")[0].split())
        usable = len(summary.split()) >= 2 and len(summary) <= LONGEST_SUMMARY and len(name) <= LONGEST_NAME
        if usable and summary.isascii():
            found.setdefault(name, Entry(name, summary, docstring))
    return tuple(found[name] for name in sorted(found))


def entries(split: str, share: float = SHARE) -> list[Entry]:
    """The entries of one split; `share` of all are for test, and as many for validation."""
    return [entry for entry in corpus() if split_of(prompt(entry), share) == split]


def prompt(entry: Entry) -> str:
    """What the policy reads: the name and a colon."""
    return f"{entry.name}:"


def completion(entry: Entry) -> str:
    """What the policy is to write: a blank and the summary."""
    return f" {entry.summary}"


def text(split: str) -> list[dict[str, str]]:
    """Rows `{"text"}`: name and the start of the docstring, as a language model reads them in pre-training."""
    return [{"text": f"{prompt(e)} {' '.join(e.docstring.split())[:LONGEST_TEXT]}"} for e in entries(split)]


def demonstrations(split: str) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}` for supervised fine-tuning."""
    return [{"prompt": prompt(e), "completion": completion(e)} for e in entries(split)]


def prompts(split: str) -> list[dict[str, str]]:
    """Rows `{"prompt"}`."""
    return [{"prompt": prompt(e)} for e in entries(split)]


def preferences(split: str, preference: str, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows `{"prompt", "chosen", "rejected"}` of two real summaries, the better one by a wish being chosen.

    Each name meets its own summary and, twice, the one of another name of the same split. `brief` chooses the one of
    fewer words (a difference of at least 3), `specific` the one with more specific words (at least 2). Pairs that
    are closer than this are left out: a reward model of such a pair would guess.

    Raises:
        ValueError: the preference is unknown.
    """
    if preference not in PREFERENCES:
        raise ValueError(
            f"preference {preference!r} is unknown to the docstrings task, which has {' and '.join(PREFERENCES)}"
        )
    owns = entries(split)
    draw = random.Random(f"{split}-{preference}-{seed}")
    others = [*draw.sample(owns, len(owns)), *draw.sample(owns, len(owns))]
    if preference == "brief":
        merit, least = (lambda summary: -len(summary.split())), 3
    else:
        merit, least = specificity, 2
    rows = []
    for own, other in zip(owns * 2, others, strict=True):
        difference = merit(own.summary) - merit(other.summary)
        if abs(difference) >= least:
            better, worse = (own, other) if difference > 0 else (other, own)
            rows.append({"prompt": prompt(own), "chosen": completion(better), "rejected": completion(worse)})
    return rows


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees have no cycles, but so many nodes that the collector would take longer than the parser."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _from_source():
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file that is invalid on purpose
            continue
        module = ".".join(parts).removesuffix(".__init__")
        yield from _documented(tree, module)


def _sources(root: Path) -> list[Path]:
    """Files of Python below a folder, sorted; folders that are skipped, installed packages among them, are not read."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = set(inside) - SKIPPED
        found += [Path(folder, file) for file in files if file.endswith(".py") and file[:-3] not in SKIPPED]
    return sorted(found)


def _documented(node: ast.AST, qualified_name: str):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{qualified_name}.{child.name}"
            if docstring := ast.get_docstring(child):
                yield name, docstring
            yield from _documented(child, name)
        elif isinstance(child, ast.stmt):
            yield from _documented(child, qualified_name)


def _from_builtins():
    for module_name in sorted(set(sys.builtin_module_names) - {"_ast"}):  # _ast: generated node classes
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            # Others put hooks of theirs in place of sys.excepthook and its like; sys keeps its own as __excepthook__.
            member = getattr(module, f"__{name}__", member) if name.endswith("hook") else member
            if not (inspect.isclass(member) or inspect.isroutine(member)):
                continue
            yield from _own_docstring(f"{module_name}.{name}", member)
            if inspect.isclass(member):
                for method_name, method in sorted(vars(member).items()):
                    # Slot wrappers ("Return self+value.") and __new__ repeat the same sentence for every type.
                    is_slot = isinstance(method, type(object.__init__)) or method_name == "__new__"
                    if (inspect.isroutine(method) or inspect.isgetsetdescriptor(method)) and not is_slot:
                        yield from _own_docstring(f"{module_name}.{name}.{method_name}", method)


def _own_docstring(name: str, member: object):
    docstring = getattr(member, "__doc__", None)
    if isinstance(docstring, str):
        yield name, docstring
