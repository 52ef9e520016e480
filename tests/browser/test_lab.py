"""The tutorials, as their readers see them in JupyterLab."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab import Lab, picture, run_all, shades
from playwright.sync_api import Browser, Locator, Page

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUN_SECONDS = 100


def test_the_launcher_offers_the_kernel(lab: Lab, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{lab.url}/lab?token={lab.token}&reset")
    card = page.locator('.jp-LauncherCard[title^="MLX Bench"]').first
    card.wait_for(timeout=60_000)
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0
    picture(page, "launcher")
    page.close()


def run_tutorial(lab: Lab, page: Page, name: str, height: int) -> Locator:
    """Open a tutorial, run all its cells, and wait until its ranks have ended.

    Then the page is made as high as all of it: to paint that while cells run takes their time.
    """
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", lab.folder)
    lab.notebook(page, f"{name}.ipynb")
    run_all(page)
    outputs = page.locator(".jp-Notebook")
    try:
        ended = outputs.get_by_text("ranks 0-1 ended")
        ended.wait_for(state="attached", timeout=RUN_SECONDS * 1000)
    finally:
        page.set_viewport_size({"width": 1300, "height": height})
        page.locator(".jp-WindowedPanel-outer").first.evaluate("panel => panel.scrollTo(0, 0)")
        picture(page, name)
    return outputs


def test_the_quickstart_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "00_quickstart", 5200)
    text = outputs.inner_text()
    assert "[0-1] We are 2 ranks." in text
    assert "[0]   I am rank 0." in text and "[1]   I am rank 1." in text
    assert "digits recognised" in text
    assert outputs.locator(".js-plotly-plot").count() >= 2
    # As which JupyterLab 4.6 shows errors too.
    assert outputs.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    page.close()


def test_when_things_go_wrong_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "01_when_things_go_wrong", 9000)
    text = outputs.inner_text()
    assert "ValueError: a bad file, for instance" in text
    assert "rank 0: all_sum  float32 [4]" in text and "rank 1: all_sum  float32 [8]" in text
    assert "rank 1 on" in text and "is back" in text
    assert "all losses and all weights are the same, bit by bit" in text
    for error in ("UsageError: ", "RuntimeError: ", "CollectiveMismatch: ", "CellTimeout: "):
        assert error in text
    page.close()


def test_lazy_graphs_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "02_lazy_graphs", 12_000)
    text = outputs.inner_text()
    assert "reads a value" in text and "was traced 4 times" in text
    assert "ranks 0, 1 agree" in text and "the ranks do not agree: collective 2 differs" in text
    assert "Log (node" in text and "CMake" in text
    views = outputs.locator(".mlxgraph-stage")
    assert views.count() == 7
    assert all(shades(view) > 40 for view in views.all())
    page.close()


def test_stepping_a_training_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "03_stepping_training", 7000)
    text = outputs.inner_text()
    assert "the losses of both ranks are the same, bit by bit" in text
    assert "step 71: spike(loss, 2) or step == 110 holds" in text
    assert "step 129 · branch clipped" in text and "stepper.set(**{'clip': 1.0})" in text
    view = outputs.locator(".mlxbench-step")
    assert view.count() == 1 and shades(view) > 40
    options = view.locator("option").all_text_contents()
    assert any("clipped: 69–129, from main" in each.replace("\xa0", " ") for each in options)
    page.close()


def test_unified_memory_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "04_unified_memory", 9000)
    text = outputs.inner_text()
    assert "were given back to the system" in text
    assert "not evaluated yet: total" in text
    grew = r"rank 0 grew while its cell ran, by [\d.]+ MB when it was found: log holds"
    assert re.search(grew, text)
    assert "del log" in text and "fits: " in text and "studio" in text
    view = outputs.locator(".mlxmem")
    assert view.count() == 1 and all(shades(each) > 4 for each in view.locator("canvas").all())
    page.close()


def test_language_models_runs_from_top_to_bottom(lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    outputs = run_tutorial(lab, page, "05_language_models", 14_000)
    text = outputs.inner_text()
    assert "tensor" in text and "as tensor" in text and "in collectives" in text
    assert "slithy toves" in text and "sword in hand" in text
    assert "the same text" in text and "2 of 2 answers differ" in text
    assert outputs.locator(".mlxgraph-stage").count() == 1
    view = outputs.locator(".mlxbench-step")
    assert view.count() == 1 and shades(view) > 40
    chat = outputs.locator(".mlxbench-chat")
    assert chat.count() == 1 and chat.get_by_text("Send").count() == 1
    page.close()
