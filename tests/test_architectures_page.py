"""The table of docs/architectures.md says what the tests draw."""

from __future__ import annotations

from pathlib import Path

from tests.architectures import ARCHITECTURES


PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


def table() -> str:
    """The table, from the list."""
    rows = ["| architecture | `model_type` | adapted modules | ppo | sweep |", "|---|---|---|---|---|"]
    for entry in ARCHITECTURES:
        modules = ", ".join(f"`{name}`" for name in entry.targets)
        ppo, sweep = (f"refused: {text}" if text else "tested" for text in (entry.not_trained, entry.refused))
        rows.append(f"| {entry.label} | `{entry.name}` | {modules} | {ppo} | {sweep} |")
    return "\n".join(rows)


def test_the_table_is_that_of_the_list():
    assert table() in PAGE.read_text(), f"put this into {PAGE.name}:\n\n{table()}"
