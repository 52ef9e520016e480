"""Our view of a graph beside Netron and Model Explorer.

The graph is that of ``graph_view.py``: the training step of a Llama of 10 000 nodes. Each viewer
gets the same boxes and lines, those of our view with all groups open; Model Explorer gets the
groups too, Netron has none. All are drawn by software in the same Chromium, which reaches nothing
but this machine. Netron's layout takes more memory for 10 000 nodes than Chromium gives a page
(4 GB), and the page crashes; ``--nodes 5000`` is a size that all of them show.

- *Painted*: until Chromium gives a picture of the page with the whole graph in it. Of ours from the
  captured graph on, so with the layout in Python; of the others from opening their page on, whose
  server has the file. Model Explorer shows its outer groups first, which is printed too; then its
  button that expands all layers is clicked.
- *Frames*: drag and wheel events as in ``graph_view.py``, at the size at which labels can be read,
  and as far away as the viewer goes (Netron stops at 15 %).

The other two are no dependencies. Install them into an environment of their own, and name its
Python::

    python -m venv viewers
    viewers/bin/pip install netron ai-edge-model-explorer
    python tests/benchmarks/graph_viewers.py --python viewers/bin/python
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graph_view import MOVE, NODES, all_open, of_a_step, opened
from lab import shades
from other_viewers import MODEL_EXPLORER, NETRON, Viewer, served, version, write
from playwright.sync_api import Browser, Error, Page, TimeoutError, sync_playwright

from mlxbench_kernel.graph import Graph

LIMIT_SECONDS = 180
MOVING_SECONDS = 10
VIEWS = ("labels legible", "from afar")
# Playwright evaluates with eval, which Netron takes away; nobody is there to accept its cookies.
KEEP_EVAL = """
const kept = eval;
Object.defineProperty(window, "eval", { get: () => kept, set() {} });
document.cookie = "consent=1";
"""


@dataclass
class Result:
    """What was measured of a viewer: seconds and frames per second, or what stood in the way."""

    painted: float | None = None
    frames: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def looked_at(page: Page) -> None:
    """Wait until Chromium gives a picture of a page."""
    page.screenshot(clip={"x": 0, "y": 0, "width": 1, "height": 1}, timeout=LIMIT_SECONDS * 1000)


def moved(page: Page, *arguments: Any) -> float:
    """Frames per second while the page is moved about, see `graph_view.MOVE`."""
    page.evaluate(
        f"(given) => {{ globalThis.times = undefined; ({MOVE})(given).then((all) => "
        "{ globalThis.times = all; }); }",
        [MOVING_SECONDS, *arguments],
    )
    page.wait_for_function("globalThis.times", timeout=LIMIT_SECONDS * 1000, polling=500)
    times: list[float] = page.evaluate("globalThis.times")
    return len(times) * 1000 / sum(times)


def in_sight(page: Page, stage: str, name: str, pictures: Path | None) -> None:
    """Leave where a page shows nothing; keep a picture of it."""
    if pictures:
        file = f"{name.replace(' ', '_')}.png"
        page.screenshot(path=pictures / file, timeout=LIMIT_SECONDS * 1000)
    if shades(page.locator(stage)) < 10:
        sys.exit(f"graph_viewers.py: nothing was in sight ({name})")


def of_ours(browser: Browser, graph: Graph, pictures: Path | None) -> Result:
    """Measure our view."""
    begin = time.perf_counter()
    page, _ = opened(browser, all_open(graph))
    looked_at(page)
    result = Result(time.perf_counter() - begin)
    for view, fit in zip(VIEWS, (False, True), strict=True):
        result.frames[view] = moved(page, fit)
        in_sight(page, ".mlxgraph-stage", f"ours, {view}", pictures)
    page.close()
    return result


def of_another(
    browser: Browser, viewer: Viewer, url: str, boxes: int, pictures: Path | None
) -> Result:
    """Measure another viewer; a crash is a failure, and a step beyond the limit."""
    page = browser.new_page(viewport={"width": 1280, "height": 760}, bypass_csp=True)
    page.set_default_timeout(LIMIT_SECONDS * 1000)
    page.add_init_script(KEEP_EVAL)
    result, doing, begin = Result(), "painted", time.perf_counter()
    try:
        page.goto(url, wait_until="commit")
        if viewer.expand:
            page.wait_for_function(viewer.outer, polling=100)
            looked_at(page)
            print(f"{viewer.name}: outer groups after {time.perf_counter() - begin:.1f} s")
            page.click(viewer.expand)
        page.wait_for_function(viewer.whole.replace("BOXES", str(boxes)), polling=100)
        looked_at(page)
        result.painted = time.perf_counter() - begin
        for view, go in zip(VIEWS, (viewer.near, viewer.far), strict=True):
            doing, begin = view, time.perf_counter()
            page.evaluate(go)
            looked_at(page)
            result.frames[view] = moved(page, False, viewer.stage, viewer.keys)
            in_sight(page, viewer.stage, f"{viewer.name}, {view}", pictures)
    except TimeoutError:
        result.failure = f"{doing}: did not finish within {time.perf_counter() - begin:.0f} s"
    except Error as error:
        if "crashed" not in error.message:
            raise
        after = time.perf_counter() - begin
        result.failure = f"{doing}: the page crashed after {after:.0f} s (out of memory?)"
    return result


def row(name: str, result: Result, ours: Result) -> str:
    """A line of the table, with ratios to ours."""
    cells = []
    for value, our, unit in [
        (result.painted, ours.painted, "s"),
        *((result.frames.get(view), ours.frames[view], "frames/s") for view in VIEWS),
    ]:
        cells.append(f"{value:.3g} {unit} ({value / our:.3g} ×)" if value and our else "–")
    return "".join(f"{cell:28}" for cell in [name, *cells, result.failure]).rstrip()


def main() -> None:
    """Measure all that are there, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="has the other viewers installed")
    parser.add_argument("--nodes", type=int, default=NODES, help=f"of the graph ({NODES})")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("graph_viewers.py needs Chromium")
    graph = of_a_step(options.nodes)
    scene = all_open(graph)
    rows = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:

        def started() -> Browser:
            return playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            )

        with started() as browser:
            ours = of_ours(browser, graph, options.pictures)
        rows.append(row("ours", ours, ours))
        for viewer in (NETRON, MODEL_EXPLORER):
            found = version(viewer, options.python)
            if not found:
                print(f"{viewer.name} is left out; pip install {viewer.package}, see --help")
                continue
            file = Path(folder) / f"{viewer.package}.json"
            boxes = write(scene, viewer, file)
            with served(viewer, options.python, file) as url, started() as browser:
                result = of_another(browser, viewer, url, boxes, options.pictures)
            rows.append(row(f"{viewer.name} {found}", result, ours))
    print(f"{graph.nodes:,} nodes ({scene.boxes:,} boxes, {len(scene.source):,} lines)")
    print("".join(f"{title:28}" for title in ("", "painted", *VIEWS)).rstrip())
    print("\n".join(rows))


if __name__ == "__main__":
    main()
