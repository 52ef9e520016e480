"""The quickstart, as its reader sees it in JupyterLab."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab import Lab, picture
from playwright.sync_api import Browser

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"
RUN_SECONDS = 100


def test_the_launcher_offers_the_kernel(lab: Lab, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{lab.url}/lab?token={lab.token}&reset")
    card = page.locator('.jp-LauncherCard[title^="MLX Bench"]').first
    card.wait_for(timeout=60_000)
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0
    picture(page, "launcher")
    page.close()


def test_the_quickstart_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    shutil.copy(QUICKSTART, lab.folder / "quickstart.ipynb")
    page = browser.new_page(viewport={"width": 1300, "height": 5200})
    lab.notebook(page, "quickstart.ipynb")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    outputs = page.locator(".jp-Notebook")
    try:
        ended = outputs.get_by_text("ranks 0-1 ended")
        ended.wait_for(state="attached", timeout=RUN_SECONDS * 1000)
    finally:
        picture(page, "quickstart")
    text = outputs.inner_text()
    assert "[0-1] We are 2 ranks." in text
    assert "[0]   I am rank 0." in text and "[1]   I am rank 1." in text
    assert "digits recognised" in text
    assert outputs.locator(".js-plotly-plot").count() >= 2
    assert outputs.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    page.close()
