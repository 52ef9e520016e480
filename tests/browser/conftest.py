"""A real JupyterLab, and Debian's Chromium to look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import CHROMIUM, QUIET, Lab, running_lab
from needs import require
from playwright.sync_api import Browser, Page, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; while Playwright is there, an event loop runs in this thread."""
    require(bool(CHROMIUM), "no Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")) as lab:
        yield lab


@pytest.fixture
def height() -> int:
    """Of `page`, in pixels; a module whose views are higher has its own."""
    return 1150


@pytest.fixture
def page(browser: Browser, height: int) -> Iterator[Page]:
    """A page; what our views throw in it fails the test."""
    page = browser.new_page(viewport={"width": 1300, "height": height})
    errors: list[str] = []
    # anywidget loads our code from a blob; other errors are Jupyter's own.
    page.on("pageerror", lambda error: "blob:" in (error.stack or "") and errors.append(str(error)))
    yield page
    page.close()
    assert not errors
