"""Makes the pictures of a report in this folder: `python docs/screenshots.py outputs/demo/sweep/report.html`.

It needs playwright and a chromium on PATH, as the browser tests do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 900}


def main(report: str) -> None:
    """Write `report.png`, the first screen, and `report_completions.png`."""
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport=SIZE)
        page.goto(Path(report).resolve().as_uri())
        page.wait_for_selector("#front-figure .main-svg")
        page.wait_for_selector("#kl-figure .main-svg")
        page.screenshot(path=HERE / "report.png")
        page.locator("#compare").screenshot(path=HERE / "report_completions.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
