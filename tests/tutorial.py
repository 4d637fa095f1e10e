"""The blocks of a tutorial, in the order of a reader, and what it is to do what they say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lines import cli


ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tutorials"
PORT = "8000"  # that tutorials give a server
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")  # the first line of a block that is a file


class Block(NamedTuple):
    """A block of a page.

    Attributes:
        language: behind its fence.
        text: inside.
    """

    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a block of bash."""
        return [shlex.split(line) for line in self.text.replace("\\\n", " ").splitlines()]

    @property
    def needs_server(self) -> bool:
        """Whether it starts a server, or asks one."""
        return PORT in self.text


def blocks(page: str) -> Iterator[Block]:
    """All blocks of a tutorial."""
    yield from (Block(*found) for found in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8")))


def do(block: Block, defined: dict) -> None:
    """Write the file that a block is, or run its commands or its Python.

    Args:
        block: of a page.
        defined: names that Python before it has defined, to which it adds.
    """
    if named := _FILE.match(block.text):
        Path(named[1]).write_text(block.text)
    elif block.language == "python":
        exec(compile(block.text, "tutorial", "exec"), defined)
    else:
        assert block.language == "bash", f"nobody runs a block of {block.language}"
        for program, *arguments in block.commands:
            assert program == "rlhf-lines" and cli.main(arguments) == 0, arguments


def read(page: str) -> None:
    """Do what a tutorial says, but for what needs a server."""
    defined: dict = {}
    for block in blocks(page):
        if not block.needs_server:
            do(block, defined)
