"""The site has every page, and links lead somewhere, in the site as where files are read as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlhf_lines import merge


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # docs/site.py
PAGES = [*(ROOT / name for name in ABOVE), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
CODE = re.compile(r"```.*?^ *```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def pages_of(entries) -> list[str]:
    """The pages of a part of the navigation, in its order."""
    if isinstance(entries, str):
        return [entries]
    parts = entries if isinstance(entries, list) else entries.values()
    return [page for part in parts for page in pages_of(part)]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation():
    listed = pages_of(SETTINGS["nav"])
    assert sorted(listed) == sorted([*ABOVE.values(), *(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for link in (one or other for one, other in LINK.findall(text)):
        if link.startswith(("http", "mailto")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert target.is_relative_to(DOCS) or target.name in ABOVE, f"{link} is no page of the site"
        assert not anchor or anchor in slugs(target), link


def test_the_reference_has_all_names_of_merging():
    """The names that other people's programs import; the site's own build sees that each of them is there."""
    named = re.findall(r"^::: rlhf_lines\.([\w.]+)", (DOCS / "reference" / "merge.md").read_text(), re.MULTILINE)
    assert sorted(name.rpartition(".")[2] for name in named) == sorted(merge.__all__)
