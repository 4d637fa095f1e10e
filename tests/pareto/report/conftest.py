"""One headless Chromium for all tests of the page, and a watch over everything that it opens."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from rlhf_lines.pareto.report import report_html
from tests.pareto.report.report_runs import MADE, make_completions, make_front


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
MUST_RUN = "RLHF_LINES_BROWSER_TESTS"  # set to 1 where a missing browser is a failure


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "no Chromium on PATH: the report's page is not tested (apt-get install chromium)"
        (pytest.fail if os.environ.get(MUST_RUN) == "1" else pytest.skip)(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """Returns an opener of HTML as a file, whose ``complaints`` and ``requests`` list what the pages did."""
    folder, contexts = tmp_path_factory.mktemp("pages"), []

    def opened(html, *, watched=True, **settings):
        path = folder / f"report {len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "offline": True, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a limit, for machines that are busy
        if watched:
            page.on("console", lambda message: opened.complaints.append(message.text))
            page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(path.as_uri())
        opened.requests.remove(path.as_uri())
        return page

    opened.complaints, opened.requests = [], []
    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(open_page, report):
    """The report in a window of a desktop; it takes seconds to open, so tests share it and leave its boxes checked."""
    return open_page(report)


@pytest.fixture
def quiet(open_page):
    """No page may complain to the console or ask for anything during a test."""
    open_page.complaints.clear()
    yield
    assert open_page.complaints == []
    assert open_page.requests == []


@pytest.fixture(scope="session")
def front():
    return make_front()


@pytest.fixture(scope="session")
def report(front):
    return report_html(front, make_completions(front, samples=2), MADE)
