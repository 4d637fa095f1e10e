"""Rows of a JSON or JSON Lines file, read line by line, so that what is broken can be named by its line.

The library `datasets` guesses a type for every column, fails where rows differ, and does not say where.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from rlhf_lines.errors import reason


GZIP = b"\x1f\x8b"


def read_json(path: Path) -> list[dict]:
    """The rows of a file: an object a line, or one array of objects.

    Raises:
        ValueError: the file is cut off, or is not UTF-8, or a line holds something else.
    """
    content = _unpacked(path)
    if content.lstrip()[:1] == b"[":
        found = _parsed(content, path, "")
        for number, row in enumerate(found, start=1):
            _check(row, path, f"row {number}")
        return found
    if _spans_lines(content):
        raise ValueError(
            f"dataset file {path} holds one object over several lines, expected rows: an object a line, or an array of "
            "objects"
        )
    return list(_lines(content, path))


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"dataset file {path} cannot be read: {reason(error)}") from error
    if not path.name.lower().endswith(".gz") and content.startswith(GZIP):
        raise ValueError(f"dataset file {path} is packed with gzip: call it {path.name}.gz")
    return content.removeprefix(b"\xef\xbb\xbf")  # a mark of UTF-8, as some editors write


def _lines(content: bytes, path: Path) -> Iterator[dict]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            row = _parsed(line, path, f"line {number} of ")
            _check(row, path, f"line {number}")
            yield row


def _parsed(content: bytes, path: Path, where: str):
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content.count(b"\n", 0, error.start)
        line = where or f"line {before + 1} of "
        raise ValueError(
            f"{line}dataset file {path} is not UTF-8 (byte {content[error.start]:#04x}): save the file as UTF-8"
        ) from error
    try:
        parsed = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        line = where or f"line {error.lineno} of "
        at = "is cut off" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else "is no JSON"
        what = f"{error.msg.removesuffix(' at')} at character {error.colno}"
        raise ValueError(f"{line}dataset file {path} {at} ({what}): mend the line, or leave it out") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}dataset file {path} cannot be read: {reason(error)}") from error
    if "\\ud" in text.lower():
        _refuse_half_characters(parsed, path, where)
    return parsed


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object: keep one of them")
    return found


def _refuse_half_characters(parsed, path: Path, where: str) -> None:
    rows = enumerate(parsed, start=1) if isinstance(parsed, list) and not where else [(0, parsed)]
    for number, row in rows:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where or f'row {number} of '}dataset file {path} holds half of a character "
                f"(\\u{ord(error.object[error.start]):04x}, a lone surrogate): mend the text, or leave out the row"
            ) from error


def _check(row: object, path: Path, where: str) -> None:
    if not isinstance(row, dict):
        short = json.dumps(row)[:60]
        raise ValueError(f"{where} of dataset file {path} holds {short}, expected an object with columns")


def _spans_lines(content: bytes) -> bool:
    """Whether the file is one object that was written for people, over several lines."""
    first, _, rest = content.lstrip().partition(b"\n")
    return first.strip() == b"{" and bool(rest.strip())
