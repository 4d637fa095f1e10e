"""docs/merge.md, as tests read it."""

from __future__ import annotations

import re
from pathlib import Path


PAGE = (Path(__file__).parents[2] / "docs" / "merge.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """All examples in a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first line starts so, without backticks around a cell."""
    (rows,) = re.findall(rf"^{re.escape(heading)}.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [re.split(r"(?<!\\)\|", row.strip("|")) for row in rows.splitlines()]
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in row] for row in cells]
