"""The memory view in JupyterLab: with ranks that make up their figures, and with real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import Lab, picture, run_all, shades
from painted import pale_texts
from playwright.sync_api import Locator, Page, expect
from pressing import wait

from mlxbench_kernel.widgets.graph_view import STATIC

TESTS = Path(__file__).parents[1]
MEMORY = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import mlx.core as mx
from fake_memory import GB, FakeRanks
from mlxbench_kernel.memory import attribute
from mlxbench_kernel.remote.memory import Memory
from mlxbench_kernel.widgets.memory import MemoryView

fake = FakeRanks(["studio", "studio", "mini"])
fake.samples[1] = {{"active": 4 * GB, "cache": 0.0, "footprint": 4.5 * GB}}
names = {{"weights": mx.ones((1000, 1000)), "log": [mx.ones((100, 1000)) + n for n in range(5)]}}
mx.eval(names["weights"], names["log"])
for rank in range(3):
    fake.holdings[rank] = attribute(names).to_dict()
view = MemoryView(Memory(fake))
view
"""
BUSY = """
import os, time
while not os.path.exists("enough"):
    time.sleep(0.1)
"""

LOST = "fake.gone.add(1); fake.silent.add(2)"

TELL_WHO_WATCHES = """
import pathlib, threading
def tell():
    while True:
        pathlib.Path("watched").write_text(str(view.memory.feed.watched))
        time.sleep(0.1)
import time
threading.Thread(target=tell, daemon=True).start()
"""


@pytest.fixture
def height() -> int:
    return 1500


def opened(page: Page, lab: Lab, name: str, *cells: str) -> Locator:
    lab.write(name, MEMORY, *cells)
    lab.notebook(page, name)
    run_all(page)
    view = page.locator(".mlxmem")
    view.locator(".mlxmem-bar").first.wait_for(timeout=60_000)
    return view


def test_pools_and_timelines_are_live_while_a_cell_runs(lab: Lab, page: Page) -> None:
    view = opened(page, lab, "memory.ipynb", BUSY)
    expect(view.locator(".mlxmem-title b")).to_have_text(["studio · memory", "mini · memory"])
    expect(view.locator(".mlxmem-pressure").first).to_have_text("pressure warn")
    first = view.locator(".mlxmem-legend").first
    expect(first).to_contain_text("rank 1 MLX active4.00 GB")
    expect(view.locator(".mlxmem-marker span").first).to_contain_text("peak of rank 0 4.00 GB")
    charts = view.locator(".mlxmem-chart canvas")
    assert charts.count() == 3
    expect(page.locator(".jp-InputPrompt").last).to_have_text("[*]:")
    before = charts.first.screenshot()
    page.wait_for_timeout(1500)
    assert charts.first.screenshot() != before, "it stands still while the cell runs"
    assert all(shades(chart) > 4 for chart in charts.all())
    # What is done in it is answered meanwhile too.
    page.locator(".jupyter-widget-Collapse-header", has_text="Limits").click()
    expect(page.get_by_text("wired limit", exact=True)).to_be_visible()
    expect(page.locator(".jp-InputPrompt").last).to_have_text("[*]:")
    (lab.folder / "enough").touch()
    page.get_by_text("MLX Bench | Idle").wait_for()
    (lab.folder / "enough").unlink()


def test_a_view_that_no_page_shows_any_more_watches_no_more(lab: Lab, page: Page) -> None:
    told = lab.folder / "watched"
    view = opened(page, lab, "shown.ipynb", TELL_WHO_WATCHES)
    wait(lambda: told.exists() and told.read_text() == "True")
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Clear Outputs of All Cells$")).click()
    expect(view).to_have_count(0)
    wait(lambda: told.read_text() == "False")
    run_all(page)
    view.locator(".mlxmem-bar").first.wait_for(timeout=60_000)
    wait(lambda: told.read_text() == "True")


def test_a_span_is_compared_zoomed_and_left(lab: Lab, page: Page) -> None:
    view = opened(page, lab, "span.ipynb")
    area = view.locator(".u-over").first
    page.wait_for_timeout(3000)
    box = area.bounding_box()
    assert box is not None
    right, middle = box["x"] + box["width"], box["y"] + box["height"] / 2
    page.mouse.move(right - 30, middle)
    page.mouse.down()
    page.mouse.move(right - 3, middle, steps=5)
    page.mouse.up()
    said = view.locator(".mlxmem-selection")
    expect(said).to_contain_text(re.compile(r"\d\d:\d\d:\d\d to \d\d:\d\d:\d\d \([\d.]+ s\)"))
    expect(said).to_contain_text("rank 2: active 0 B")
    expect(view.get_by_role("button", name="stand still, or follow")).to_have_text("Follow")
    view.get_by_role("button", name="show this span").click()
    expect(said).to_be_empty()
    shown = area.screenshot()
    page.wait_for_timeout(1000)
    assert area.screenshot() == shown, "it goes on though it was paused"
    area.dblclick()
    expect(view.get_by_role("button", name="stand still, or follow")).to_have_text("Pause")


SHOWN = """
async ([code, length]) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const widget = (await import(url)).default;
  const handlers = {};
  const state = { bars: [], ranks: [{ rank: 0, host: "studio", said: "" }] };
  const model = {
    get: (name) => state[name], send: () => {}, off: () => {},
    on: (event, handler) => (handlers[event] ??= []).push(handler),
  };
  const el = document.createElement("div");
  document.body.append(el);
  widget.render({ model, el });
"""
STEPS = (
    SHOWN
    + """
  const written = [];
  const write = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    if (String(text).startsWith("step")) written.push(this.textAlign);
    return write.call(this, text, ...rest);
  };
  const rows = 600, data = new Float64Array(rows * 6), now = Date.now() / 1000;
  for (let row = 0; row < rows; row++)
    data.set([now + row / 10 - 60, 1e9, 1e8, 2e9, 1.2e9,
              row < 100 ? NaN : Math.floor(row / length)], row * 6);
  const parts = [{ rank: 0, first: 0 }];
  for (const each of handlers["msg:custom"])
    each({ kind: "samples", parts }, [new DataView(data.buffer)]);
  await new Promise((done) => setTimeout(done, 200));
  const canvas = el.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let best = [];
  for (let y = 0; y < canvas.height; y++) {
    const runs = [];
    for (let x = 0; x < canvas.width; x++) {
      const [r, g, b] = pixels.subarray(4 * (y * canvas.width + x));
      const colour = `${r},${g},${b}`;
      if (!["31,111,125", "43,135,150"].includes(colour)) continue;
      if (runs.at(-1)?.[0] === colour) runs.at(-1)[1]++;
      else runs.push([colour, 1]);
    }
    const wide = runs.filter(([, count]) => count > 3);
    if (wide.length > best.length) best = wide;
  }
  return [best, [...new Set(written)]];
}
"""
)


def test_steps_of_training_are_bands_at_the_foot(page: Page) -> None:
    page.set_content("<!doctype html><body></body>")
    code = (STATIC / "memory.js").read_text()
    bands, aligned = page.evaluate(STEPS, [code, 50])  # of five seconds each, after ten without
    assert aligned == ["left"], "a name stands where its band begins"
    assert len(bands) == 10
    assert len({colour for colour, _ in bands[::2]}) == 1 != len({colour for colour, _ in bands})
    widths = [count for _, count in bands]
    assert max(widths) - min(widths) <= 4
    page.set_content("<!doctype html><body></body>")
    assert len(page.evaluate(STEPS, [code, 1])[0]) == 1, "too many to be told from one another"


APART = (
    SHOWN
    + """
  const rows = 200, data = new Float64Array(rows * 6), now = Date.now() / 1000;
  for (let row = 0; row < rows; row++)  // twenty seconds without samples in the middle
    data.set([now + row / 10 - 40 + (row < 100 ? 0 : 20), 1e9, 0, 1e9, 1e9, NaN], row * 6);
  for (const each of handlers["msg:custom"])
    each({ kind: "samples", parts: [{ rank: 0, first: 0 }] }, [new DataView(data.buffer)]);
  await new Promise((done) => setTimeout(done, 200));
  const canvas = el.querySelector("canvas");
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const blue = (x, y) => {  // of rank 0's active memory
    const [r, g, b, a] = pixels.subarray(4 * (y * width + x));
    return a > 200 && Math.abs(r - 59) < 9 && Math.abs(g - 130) < 9 && Math.abs(b - 196) < 9;
  };
  const columns = Array.from({ length: width }, (_, x) => blue(x, Math.floor(height * 0.45)));
  const pieces = columns.join().split("false").filter((run) => run.includes("true"));
  return [columns.filter(Boolean).length / width, pieces.length];
}
"""
)


def test_time_in_which_nobody_measured_is_a_gap(page: Page) -> None:
    page.set_content("<!doctype html><body></body>")
    share, pieces = page.evaluate(APART, [(STATIC / "memory.js").read_text(), 0])
    assert 0.2 < share < 0.4 and pieces >= 2, "twenty of sixty seconds, in two pieces"


TWINS = """
import time
now = int(time.time())
for rank in range(3):
    late = 0.2 * rank
    fake.marks[rank] = [
        [0, "cell", "Cell In[3]", now + late, now + late + 0.3],
        [1, "cell", "Cell In[3]", now + late + 0.4, now + 9.0],
    ]
"""


def test_cells_that_are_called_alike_are_laid_over_one_another_as_chosen(
    lab: Lab, page: Page
) -> None:
    view = opened(page, lab, "overlay.ipynb", TWINS)
    over, on = view.get_by_label("overlay", exact=True), view.get_by_label("on", exact=True)
    expect(over.locator("option")).to_have_count(3)
    first, second = over.locator("option").all()[1:]
    assert first.inner_text() == second.inner_text(), "both began in the same second"
    drawn = {}
    for index in (1, 2):
        over.select_option(index=index)
        on.select_option(index=index)
        charts = view.locator(".mlxmem-chart canvas").all()
        drawn[index] = [chart.screenshot() for chart in charts]
    for one, other in zip(drawn[1], drawn[2], strict=True):
        assert one != other, "a third of a second is as long as nine"


def test_what_holds_it_is_drawn_and_gone_into(lab: Lab, page: Page) -> None:
    opened(page, lab, "holds.ipynb")
    page.get_by_text("What holds it").click()
    treemap = page.locator(".js-plotly-plot .treemaplayer")
    treemap.get_by_text("weights").first.wait_for(timeout=60_000)
    expect(page.locator(".jp-OutputArea").get_by_text("del weights")).to_be_visible()
    picture(page, "memory")
    treemap.get_by_text("log").first.click(force=True)  # the box takes it
    expect(treemap.get_by_text("weights")).to_have_count(0)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_can_be_read_in_both_themes(lab: Lab, page: Page, theme: str) -> None:
    view = opened(page, lab, f"{theme.split()[1]}.ipynb", LOST)
    dark = theme.endswith("Dark")
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for label in ("Theme", theme):
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{label}$")).click()
    page.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark, timeout=15_000
    )
    late = view.locator(".mlxmem-bar").nth(1)
    expect(late).to_contain_text("rank 2 has not answered for", timeout=15_000)
    picture(page, f"memory-{'dark' if dark else 'light'}")
    assert not pale_texts(view)


def test_a_rank_that_died_or_is_late_says_so_in_its_bar(lab: Lab, page: Page) -> None:
    view = opened(page, lab, "lost.ipynb", LOST)
    studio, mini = view.locator(".mlxmem-bar").all()
    said = re.compile(r"rank 1 died \d+ s ago \(killed by SIGKILL\)")
    expect(studio.locator(".mlxmem-lost")).to_have_text(said, timeout=15_000)
    expect(studio.locator(".mlxmem-stack .mlxmem-was-gone")).to_have_count(1)
    expect(studio.locator(".mlxmem-legend")).to_contain_text("rank 1 held until it died4.50 GB")
    expect(studio.locator(".mlxmem-key").last).to_have_text("free18.0 GB")
    expect(mini.locator(".mlxmem-lost")).to_have_text(
        re.compile("rank 2 has not answered for .* s: as it was then"), timeout=15_000
    )
    expect(mini.locator(".mlxmem-stack .mlxmem-was-late")).to_have_count(3)
    first = studio.locator(".mlxmem-lost").inner_text()
    expect(studio.locator(".mlxmem-lost")).not_to_have_text(first)  # the time goes on


def test_a_view_of_a_kernel_that_was_restarted_says_so(lab: Lab, page: Page) -> None:
    view = opened(page, lab, "restarted.ipynb", LOST).locator(
        "xpath=ancestor::*[contains(@class, 'mlxbench-step')][1]"
    )
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(view).to_have_class(re.compile("jupyter-widgets-disconnected"), timeout=15_000)
    said = view.evaluate("view => getComputedStyle(view, '::before').content")
    assert "the kernel that drew this has ended" in said
    picture(page, "memory-restarted")
