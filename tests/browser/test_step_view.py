"""The dashboard of a stepper in JupyterLab, while it plays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import Lab, picture, run_all, shades
from painted import pale_texts
from playwright.sync_api import Locator, Page, expect

TESTS = Path(__file__).parents[1]
STEPPER = """
import sys
sys.path.insert(0, {tests!r})
from fake_stepping import FakeStepping
from mlxbench_kernel.widgets.stepping import StepperView

fake = FakeStepping(size=4, rate={rate})
fake.take(200)
fake.branch("wide", at=120)
fake.set(learning_rate=0.01)
fake.take(150)
view = StepperView(fake)
fake.play()
view
"""
BUSY = """
import os, time
while not os.path.exists("enough"):
    time.sleep(0.1)
"""
DRAWN = """
(plot) => new Promise((done) => {
  let count = 0;
  plot.on("plotly_afterplot", () => { count += 1; if (count === 10) done(count); });
})
"""

FITS = """
() => {
  const plot = document.querySelector(".mlxbench-step .js-plotly-plot");
  const drawn = Number(plot.querySelector(".main-svg").getAttribute("width"));
  return Math.abs(drawn - plot.getBoundingClientRect().width) < 1;
}
"""


def opened(lab: Lab, page: Page, name: str, *cells: str, rate: int = 4) -> Locator:
    """The dashboard; of so many steps a second, as 20 are all that a page here can draw."""
    lab.write(f"{name}.ipynb", STEPPER.format(tests=str(TESTS), rate=rate), *cells)
    lab.notebook(page, f"{name}.ipynb")
    run_all(page)
    view = page.locator(".mlxbench-step")
    view.locator(".main-svg").first.wait_for(timeout=60_000)
    view.scroll_into_view_if_needed()
    return view


def button(view: Locator, label: str) -> Locator:
    return view.get_by_role("button", name=re.compile(rf"\b{label}$"))  # after its icon


def press(view: Locator, label: str) -> None:
    button(view, label).click()


def open_panel(view: Locator, title: str) -> None:
    view.locator(".jupyter-widget-Collapse-header", has_text=title).click()


def test_it_plays_and_is_driven(lab: Lab, page: Page) -> None:
    view = opened(lab, page, "plays", rate=20)
    plot = view.locator(".js-plotly-plot")
    assert plot.evaluate(DRAWN) == 10
    assert shades(plot) > 50
    # It is as wide as its place, also after that was changed.
    for _ in range(2):
        page.wait_for_function(FITS)
        page.keyboard.press("ControlOrMeta+b")
        page.wait_for_timeout(1000)
    picture(page, "step-plays")
    press(view, "Pause")
    expect(button(view, "Play")).to_be_visible()
    status = view.locator(".widget-html-content").first
    expect(status).to_have_text(re.compile(r"step \d+ · branch wide · paused"))
    before = status.inner_text()
    press(view, "Step")
    expect(status).not_to_have_text(before)
    view.get_by_placeholder("loss < 0.1").fill("losss < 1")
    page.keyboard.press("Enter")
    error = view.get_by_role("alert")
    expect(error).to_contain_text("did you mean loss?")
    picture(page, "step-error")
    view.get_by_placeholder("loss < 0.1").fill("loss < 1")
    page.keyboard.press("Enter")
    expect(error).to_be_hidden()
    expect(status).to_contain_text("loss < 1 holds")
    # What is drawn last is the last state, whatever was sent in between.
    steps = int(re.findall(r"step (\d+)", status.inner_text())[0])
    page.wait_for_function(
        "steps => { const { data } = document.querySelector('.mlxbench-step .js-plotly-plot');"
        "return data.some(t => t.name === 'wide' && Math.max(...t.x) === steps); }",
        arg=steps,
    )


def test_it_is_drawn_while_a_cell_runs(lab: Lab, page: Page) -> None:
    view = opened(lab, page, "busy", BUSY)
    running = page.locator(".jp-InputPrompt").last
    expect(running).to_have_text("[*]:")
    assert view.locator(".js-plotly-plot").evaluate(DRAWN) == 10
    press(view, "Pause")
    expect(button(view, "Play")).to_be_visible(timeout=30_000)
    expect(running).to_have_text("[*]:")
    (lab.folder / "enough").touch()
    page.get_by_text("MLX Bench | Idle").wait_for()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_can_be_read_in_both_themes(lab: Lab, page: Page, theme: str) -> None:
    view = opened(lab, page, theme)
    dark = theme.endswith("Dark")
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for label in ("Theme", theme):
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{label}$")).click()
    page.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark, timeout=15_000
    )
    press(view, "Pause")
    view.get_by_placeholder("loss < 0.1").fill("losss")
    page.keyboard.press("Enter")
    expect(view.get_by_role("alert")).to_be_visible()
    for panel in ("Settings", "Breakpoints", "Kept steps and checkpoints", "Journal", "Branches"):
        open_panel(view, panel)
        page.wait_for_timeout(500)
        picture(page, f"step-{'dark' if dark else 'light'}-{panel.partition(' ')[0].lower()}")
        assert not pale_texts(view)
    inks = view.evaluate(
        "view => [...view.querySelectorAll('.js-plotly-plot text')].map("
        "text => getComputedStyle(text).fill)"
    )
    assert len(inks) > 20
    bright = [sum(map(int, re.findall(r"\d+", ink)[:3])) > 3 * 128 for ink in inks]
    assert set(bright) == {dark}, set(inks)


AT_NAN = """
fake.pause()
fake.change(said="step 350: loss is nan; it begins with rank 1: Log", broke="nonfinite")
"""


def test_the_graph_is_opened_where_nan_begins(lab: Lab, page: Page) -> None:
    view = opened(lab, page, "nan", AT_NAN)
    press(view, "Open the graph at this operation")
    graph = view.locator(".mlxgraph")
    # The operation is selected: the details are of it.
    expect(graph.locator(".mlxgraph-details h3")).to_have_text("Log", timeout=30_000)
    expect(view).to_contain_text("it begins with rank 1: Log")
    assert graph.bounding_box()["width"] > 600  # type: ignore[index]
    graph.scroll_into_view_if_needed()
    picture(page, "step-nan-graph")
    press(view, "Close the graph")
    expect(graph).to_be_hidden()
