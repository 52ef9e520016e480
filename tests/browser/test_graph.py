"""The view of a graph in JupyterLab and in Notebook 7, as a person uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, picture, run_all, shades
from playwright.sync_api import Browser, Locator, Page, expect

MODEL = """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
from mlx_lm.models.llama import Model, ModelArgs

model = Model(ModelArgs(model_type="llama", hidden_size=32, num_hidden_layers=6, vocab_size=50,
    intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5))
optimizer = optim.Adam(1e-3)
x = mx.random.randint(0, 50, (2, 8))
mx.eval(model.parameters(), x)
loss_and_grad = nn.value_and_grad(model, lambda x: nn.losses.cross_entropy(model(x), x).mean())

def step(x):
    loss, gradients = loss_and_grad(x)
    optimizer.update(model, gradients)
    return loss
"""
GRAPH = "%mlx_graph step(x)"
BUSY = "import time\ntime.sleep(4)"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    errors: list[str] = []
    # anywidget loads our code from a blob; other errors are Jupyter's own.
    page.on("pageerror", lambda error: "blob:" in (error.stack or "") and errors.append(str(error)))
    yield page
    page.close()
    assert not errors


@pytest.fixture
def view(lab: Lab, page: Page) -> Locator:
    """The view of the step in JupyterLab."""
    lab.write("graph.ipynb", MODEL, GRAPH)
    lab.notebook(page, "graph.ipynb")
    run_all(page)
    view = page.locator(".mlxgraph")
    view.wait_for(timeout=60_000)
    view.scroll_into_view_if_needed()
    return view


def details(view: Locator) -> Locator:
    return view.locator(".mlxgraph-details")


def test_reading_a_graph(view: Locator, page: Page) -> None:
    expect(view.locator(".mlxgraph-title")).to_contain_text("step(x)")
    expect(view.locator(".mlxgraph-title")).to_contain_text("peak")
    assert shades(view.locator(".mlxgraph-stage")) > 50
    picture(page, "graph")

    # Search: hits are counted, the first is opened, brought into sight and selected.
    view.get_by_role("searchbox").fill("softmax")
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"1 of \d+"))
    expect(details(view)).to_contain_text("Softmax")
    expect(details(view)).to_contain_text("model.layers.0.self_attn")
    view.get_by_role("button", name="Next hit").click()
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"2 of \d+"))
    expect(details(view)).to_contain_text("model.layers.1.self_attn")
    picture(page, "graph-search")

    # Along an edge, by keyboard and by link.
    view.locator(".mlxgraph-stage").focus()
    heading = details(view).locator("h3")
    before = heading.inner_text()
    page.keyboard.press("ArrowDown")
    expect(heading).not_to_have_text(before)
    details(view).locator(".mlxgraph-link").first.click()
    expect(details(view)).to_contain_text("Inputs")

    # Nothing is found.
    view.get_by_role("searchbox").fill("no such thing")
    expect(view.locator(".mlxgraph-hits")).to_have_text("no hits")


def test_colours_memory_and_groups(view: Locator, page: Page) -> None:
    legend = view.locator(".mlxgraph-legend")
    expect(legend).to_contain_text("group")
    view.get_by_label("Colour by").select_option("dtype")
    expect(legend).to_contain_text("float32")
    view.get_by_label("Colour by").select_option("flops")
    expect(legend).to_contain_text("FLOP")

    memory = view.locator(".mlxgraph-memory")
    expect(memory).to_contain_text("peak")
    memory.click()
    expect(details(view)).to_contain_text("Alive, the largest first")
    details(view).locator(".mlxgraph-link").first.click()
    expect(details(view)).to_contain_text("operation")

    view.get_by_role("button", name="Open all groups").click()
    view.get_by_role("button", name="Fit the whole graph").click()
    page.wait_for_timeout(500)
    assert shades(view.locator(".mlxgraph-stage")) > 50
    picture(page, "graph-all")
    view.get_by_role("button", name="Close all groups").click()
    page.wait_for_timeout(500)
    # A hit is opened; Backspace selects the group around it, and Enter closes that.
    view.get_by_role("searchbox").fill("softmax layers.0 forward")
    expect(details(view)).to_contain_text("Softmax")
    stage = view.locator(".mlxgraph-stage")
    stage.focus()
    page.keyboard.press("Backspace")
    expect(details(view)).to_contain_text("mostly")
    expect(details(view)).to_contain_text("model.layers.0.self_attn")
    before = stage.screenshot()
    page.keyboard.press("Enter")
    page.wait_for_timeout(800)
    assert stage.screenshot() != before
    picture(page, "graph-opened")


def test_what_leaves_the_view(view: Locator, page: Page) -> None:
    starts = {"svg": "<svg", "dot": "digraph", "json": "{", "png": "\x89PNG"}
    for kind, start in starts.items():
        with page.expect_download() as download:
            view.get_by_label("Export").select_option(kind)
        assert download.value.suggested_filename == f"step_x.{kind}"
        text = Path(download.value.path()).read_bytes().decode("latin-1")
        assert text.startswith(start)
        if kind == "json":
            assert json.loads(text)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.get_by_role("button", name="Copy as text").click()
    expect(view.locator(".mlxgraph-notice")).to_have_text("copied")
    assert "Matmul" in page.evaluate("navigator.clipboard.readText()")


def test_a_busy_kernel_does_not_freeze_the_view(lab: Lab, page: Page) -> None:
    lab.write("busy.ipynb", MODEL, GRAPH, BUSY)
    lab.notebook(page, "busy.ipynb")
    run_all(page)
    view = page.locator(".mlxgraph")
    view.wait_for(timeout=60_000)
    view.get_by_role("button", name="Zoom in").click()
    view.get_by_role("button", name="Open all groups").click()
    expect(view.locator(".mlxgraph-waiting")).to_be_visible()
    expect(view.locator(".mlxgraph-waiting")).to_be_hidden(timeout=15_000)


def test_the_view_follows_the_theme(view: Locator, page: Page) -> None:
    page.evaluate(
        "() => { document.body.dataset.jpThemeLight = 'false';"
        " document.body.style.setProperty('--jp-layout-color0', '#111111');"
        " document.body.style.setProperty('--jp-content-font-color1', '#eeeeee'); }"
    )
    corner = "canvas => { const gl = canvas.getContext('webgl2'); return canvas.width > 0; }"
    assert view.locator(".mlxgraph-stage canvas").first.evaluate(corner)
    page.wait_for_timeout(500)
    colour = view.evaluate("view => getComputedStyle(view).backgroundColor")
    assert colour == "rgb(17, 17, 17)"
    assert shades(view.locator(".mlxgraph-stage")) > 50
    picture(page, "graph-dark")


def test_it_works_in_notebook_7(lab: Lab, page: Page) -> None:
    lab.write("seven.ipynb", MODEL, GRAPH)
    page.goto(f"{lab.url}/notebooks/seven.ipynb?token={lab.token}")
    page.get_by_text("MLX Bench").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    run_all(page)
    view = page.locator(".mlxgraph")
    view.wait_for(timeout=60_000)
    view.scroll_into_view_if_needed()
    view.get_by_role("searchbox").fill("softmax")
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"1 of \d+"))
    assert shades(view.locator(".mlxgraph-stage")) > 50
    picture(page, "graph-notebook-7")
