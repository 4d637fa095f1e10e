"""What MkDocs does before it makes the site: pages that lie above docs/ are pages of the site, too.

README.md is its front page. So nothing is written twice, and every link also leads somewhere where the files are read
as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `ABOVE`, whose links begin at the folder above docs/."""
    for name, page in ABOVE.items():
        text = (Path(config.config_file_path).parent / name).read_text(encoding="utf-8")
        text = re.sub(r'(\]\(|src=")docs/', r"\1", text)
        files.append(File.generated(config, page, content=_renamed(text)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to what lies above docs/ lead to its page."""
    return _renamed(markdown)


def _renamed(text: str) -> str:
    for name, page in ABOVE.items():
        text = re.sub(rf"\]\((\.\./)?{re.escape(name)}", f"]({page}", text)
    return text
