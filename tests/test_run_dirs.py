"""A reader who goes from page to page finds the sweep that a command names: a page, or the demo, has made it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_A_SWEEP = ("front", "pick", "report", "score", "evaluate", "export", "serve")  # verbs whose first word is RUN_DIR
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(rlhf-lines [^`\n]+)`")


def commands(text: str) -> list[list[str]]:
    """The words of every command of ours in a page, of blocks and inside of sentences."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *INLINE.findall(text)]:
        if line.startswith("rlhf-lines "):
            try:
                found.append(shlex.split(line, comments=True)[1:])
            except ValueError:  # a text in quotes goes on in the next line
                found.append(line.split()[1:])
    return found


def test_every_run_that_a_page_names_is_made_by_a_page_or_a_config():
    made = {"RUN_DIR"}  # which stands for any
    for path in (ROOT / "configs").rglob("*.yaml"):
        made.add((yaml.safe_load(path.read_text()) or {}).get("output_dir"))
    of_pages = {path: commands(path.read_text(encoding="utf-8")) for path in PAGES}
    for words in (words for of_page in of_pages.values() for words in of_page):
        if words[0] == "sweep" and "--output_dir" in words:
            made.add(words[words.index("--output_dir") + 1])
    named = {
        (path.name, words[1])
        for path, of_page in of_pages.items()
        for words in of_page
        if words[0] in OF_A_SWEEP and len(words) > 1 and not words[1].startswith("-")
    }
    assert ("serve.md", "outputs/demo/sweep") in named and ("serve_it.md", "sweep") in named
    assert {(page, run) for page, run in named if run not in made} == set()
