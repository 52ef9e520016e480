"""The view of a graph in JupyterLab and in Notebook 7, as a person uses it."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lab import Lab, picture, run_all, shades
from painted import colours_of_bands, pale_texts, readable_in, share_of
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
def height() -> int:
    return 900


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


def choose(page: Page, menu: str, *labels: str) -> None:
    """Choose in a menu of JupyterLab's, and in those inside."""
    page.get_by_role("menuitem", name=menu, exact=True).click()
    for label in labels:
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(label)}$")).click()


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
    # What was clicked stays marked: it is what the details are of.
    clicked = memory.inner_text()
    page.mouse.move(5, 5)
    expect(memory).to_have_text(clicked)
    assert " peak " not in clicked
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
        text = exported(view, kind).decode("latin-1")
        assert text.startswith(start)
        if kind == "json":
            assert json.loads(text)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.get_by_role("button", name="Copy as text").click()
    expect(view.locator(".mlxgraph-notice")).to_have_text("copied")
    assert "Matmul" in page.evaluate("navigator.clipboard.readText()")


def exported(view: Locator, kind: str) -> bytes:
    with view.page.expect_download() as download:
        view.get_by_label("Export").select_option(kind)
    assert download.value.suggested_filename == f"step_x.{kind}"
    return Path(download.value.path()).read_bytes()


def test_an_exported_picture_has_all_that_is_open(view: Locator, page: Page) -> None:
    # More than the page is high, and in its own size.
    view.get_by_role("button", name="Close all groups").click()
    page.wait_for_timeout(500)
    few = size_of(exported(view, "png"))
    expect(view.locator(".mlxgraph-notice")).to_be_hidden()
    view.get_by_role("button", name="Open all groups").click()
    page.wait_for_timeout(800)
    # Zoomed in to a part: what is exported is all the same.
    for _ in range(6):
        view.get_by_role("button", name="Zoom in").click()
    many = exported(view, "png")
    width, height = size_of(many)
    assert 900 < few[1] < 4000 < height <= 8192 and width <= 8192
    expect(view.locator(".mlxgraph-notice")).to_contain_text("at most 8192 pixels")
    assert all(colours > 8 for colours in colours_of_bands(page, many, 8))
    boxes = exported(view, "svg").count(b'<g class="box')
    assert boxes > 1_500
    # The view itself is as it was.
    assert shades(view.locator(".mlxgraph-stage")) > 20


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_hits_leave_other_boxes_to_be_seen(view: Locator, page: Page) -> None:
    view.get_by_role("button", name="Open all groups").click()
    view.get_by_role("searchbox").fill("(2, 8, 32)")
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"1 of \d{3}"))
    view.get_by_role("button", name="Fit the whole graph").click()
    page.wait_for_timeout(800)
    stage = view.locator(".mlxgraph-stage")
    hit = share_of(page, stage.screenshot(), (230, 81, 0))
    picture(page, "graph-hits")
    view.get_by_role("searchbox").fill("")
    page.wait_for_timeout(500)
    drawn = 1 - share_of(page, stage.screenshot(), (255, 255, 255))
    assert 0 < hit < 0.25 * drawn


def test_a_small_difference_opens_in_full_sight(lab: Lab, page: Page) -> None:
    functions = (
        "import mlx.core as mx\nfrom mlxbench_kernel import capture, diff\n"
        "x = mx.ones(3); mx.eval(x)\n"
        "def f(x): return mx.sin(x) * 2 + mx.exp(x)\n"
        "def g(x): return mx.cos(x) * 2 + mx.exp(x) - 1"
    )
    lab.write("diff.ipynb", functions, "diff(capture(f, x), capture(g, x))")
    lab.notebook(page, "diff.ipynb")
    run_all(page)
    view = page.locator(".mlxgraph")
    view.wait_for(timeout=60_000)
    # The first difference is selected, and what is around it is not out of sight for that.
    expect(details(view)).to_contain_text("removed")
    page.wait_for_timeout(800)
    expect(view.locator(".mlxgraph-minimap")).to_be_hidden()
    view.get_by_role("searchbox").fill("added")
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"1 of \d"))
    expect(details(view)).to_contain_text("added")
    picture(page, "graph-difference")


def test_the_minimap_stands_beside_the_graph(view: Locator, page: Page) -> None:
    minimap = view.locator(".mlxgraph-minimap")
    expect(minimap).to_be_visible()
    beside, stage = minimap.bounding_box(), view.locator(".mlxgraph-stage").bounding_box()
    assert beside is not None and stage is not None
    assert beside["x"] >= stage["x"] + stage["width"]
    before = view.locator(".mlxgraph-stage").screenshot()
    minimap.click(position={"x": 84, "y": 100})
    page.wait_for_timeout(500)
    assert view.locator(".mlxgraph-stage").screenshot() != before
    # Without details it is over the graph, and boxes under it can be seen.
    view.get_by_role("button", name="Show or hide details").click()
    page.wait_for_timeout(500)
    over, stage = minimap.bounding_box(), view.locator(".mlxgraph-stage").bounding_box()
    assert over is not None and stage is not None and over["x"] < stage["x"] + stage["width"]
    view.get_by_role("button", name="Fit the whole graph").click()
    expect(minimap).to_be_hidden()


def test_the_notebook_is_saved_from_within_the_view(view: Locator, page: Page, lab: Lab) -> None:
    for place in (view.locator(".mlxgraph-stage"), view.get_by_role("searchbox")):
        place.focus()
        page.keyboard.press("ControlOrMeta+s")
        saved = lab.folder / "graph.ipynb"
        page.wait_for_function("!document.querySelector('.jp-mod-dirty')", timeout=10_000)
        cells = nbformat.read(saved, 4).cells
        kinds = [kind for output in cells[1].outputs for kind in output.data]
        assert kinds == ["application/vnd.jupyter.widget-view+json", "text/plain", "image/svg+xml"]
        for output in cells[1].outputs:
            assert output.output_type == "display_data"
        # Other keys are the view's, and no shortcuts of the notebook's.
        view.locator(".mlxgraph-stage").focus()
        page.keyboard.press("a")
        assert page.locator(".jp-Cell").count() == 2
        page.keyboard.press("Escape")


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


def test_a_restarted_kernel_leaves_what_is_drawn(view: Locator, page: Page) -> None:
    choose(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    said = view.locator(".mlxgraph-waiting")
    expect(said).to_have_text(re.compile("the kernel is gone: run the cell again"), timeout=20_000)
    # What needs it says so at once.
    view.get_by_role("button", name="Open all groups").click()
    expect(view.locator(".mlxgraph-notice")).to_contain_text("needs the kernel")
    # The rest works: zoom, search in what is open, select, follow an edge, export the picture.
    stage = view.locator(".mlxgraph-stage")
    before = stage.screenshot()
    view.get_by_role("button", name="Zoom out").click()
    page.wait_for_timeout(300)
    assert stage.screenshot() != before
    view.get_by_role("searchbox").fill("copy int32")
    expect(view.locator(".mlxgraph-hits")).to_have_text(re.compile(r"1 of \d"))
    expect(details(view).locator("h3")).to_have_text("Copy")
    expect(details(view)).to_contain_text("Outputs")
    details(view).locator(".mlxgraph-link").first.click()
    expect(details(view).locator("h3")).not_to_have_text("Copy")
    assert exported(view, "png").startswith(b"\x89PNG")
    picture(page, "graph-restarted")
    # The cell again: a view that asks again.
    page.get_by_text("MLX Bench | Idle").wait_for(timeout=60_000)
    run_all(page)
    expect(page.locator(".mlxgraph-waiting")).to_be_hidden(timeout=60_000)
    view.get_by_role("button", name="Open all groups").click()
    expect(view.locator(".mlxgraph-waiting")).to_be_hidden(timeout=15_000)


def test_a_kernel_that_dies_while_it_is_asked(lab: Lab, page: Page) -> None:
    dying = "import os, signal, time\ntime.sleep(3)\nos.kill(os.getpid(), signal.SIGKILL)"
    lab.write("dying.ipynb", MODEL, GRAPH, dying)
    lab.notebook(page, "dying.ipynb")
    run_all(page)
    view = page.locator(".mlxgraph")
    view.wait_for(timeout=60_000)
    view.get_by_role("button", name="Open all groups").click()
    said = view.locator(".mlxgraph-waiting")
    expect(said).to_have_text("waiting for the kernel…")
    expect(said).to_have_text(re.compile("the kernel is gone"), timeout=30_000)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_all_can_be_read_in_both_themes(view: Locator, page: Page, theme: str) -> None:
    choose(page, "Settings", "Theme", theme)
    dark = theme.endswith("Dark")
    page.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark, timeout=15_000
    )
    for colour in ("kind", "bytes"):
        view.get_by_label("Colour by").select_option(colour)
        view.get_by_role("searchbox").fill("softmax layers.0 forward")
        expect(details(view)).to_contain_text("Softmax")
        page.mouse.move(5, 5)
        page.wait_for_timeout(1000)
        picture(page, f"graph-{'dark' if dark else 'light'}-{colour}")
        painted = readable_in(view)
        assert painted["texts"] > 500  # pixels: something is written on the boxes
        assert painted["least"] >= 4.5, painted
        assert painted["surface"] < 0.05 if dark else painted["surface"] > 0.8
        # And what is beside the drawing.
        assert not pale_texts(view)


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
    expect(page.locator(".jp-RenderedSVG")).to_have_count(1)
    expect(page.locator(".jp-RenderedSVG")).to_be_hidden()
    # Keys are the view's: none of them goes to the notebook, which acts on most.
    heading = details(view).locator("h3")
    before = heading.inner_text()
    view.locator(".mlxgraph-stage").focus()
    for key in ("ArrowDown", "a", "d", "d", "Enter"):
        page.keyboard.press(key)
    expect(heading).not_to_have_text(before)
    assert page.locator(".jp-Notebook .jp-Cell").count() == 2
    assert view.locator(".mlxgraph-stage").evaluate("stage => stage === document.activeElement")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with views that nbconvert has executed, which keeps the widgets' states."""
    folder = tmp_path_factory.mktemp("converted")
    kernel = {"kernelspec": {"name": "mlxbench", "display_name": "MLX Bench"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel)
    last = "from mlxbench_kernel import capture\ncapture(step, x)"
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in (MODEL, GRAPH, last)]
    nbformat.write(notebook, folder / "graph.ipynb")
    convert = [sys.executable, "-m", "nbconvert", "--execute", "graph.ipynb"]
    for more in (["--to", "notebook", "--output", "executed.ipynb"], ["--to", "html"]):
        subprocess.run(convert + more, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


def test_a_page_of_nbconvert_shows_a_picture_without_a_network(
    converted: Path, browser: Browser
) -> None:
    assert "widget-state+json" in (converted / "graph.html").read_text()
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 2200})
    page = context.new_page()
    page.goto((converted / "graph.html").as_uri())
    images = page.locator(".jp-OutputArea img")
    expect(images).to_have_count(2)  # of the magic, and of a graph as the last line of a cell
    for image in images.all():
        expect(image).to_be_visible()
        assert image.evaluate("image => image.naturalWidth") > 300
        box = image.bounding_box()
        assert box is not None and box["width"] <= 1100
        assert shades(image) > 50
    picture(page, "graph-nbconvert")
    context.close()


def test_a_notebook_that_is_opened_without_its_kernel_shows_the_picture(
    view: Locator, page: Page
) -> None:
    picture_of_it = page.locator(".jp-RenderedSVG")
    expect(picture_of_it).to_have_count(1)
    expect(picture_of_it).to_be_hidden()
    choose(page, "File", "Save Notebook")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')", timeout=10_000)
    choose(page, "Kernel", "Shut Down Kernel")
    expect(view.locator(".mlxgraph-waiting")).to_contain_text("the kernel is gone")
    page.reload()
    image = picture_of_it.locator("img")
    expect(image).to_be_visible(timeout=60_000)
    assert shades(image) > 50
    picture(page, "graph-without-kernel")
