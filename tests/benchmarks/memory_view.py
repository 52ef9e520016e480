"""The memory view in Chromium, with 8 ranks and an hour of samples at 10 Hz.

- An update: from the message to the drawing done, in milliseconds of the page's main thread, 10 a
  second, with the whole hour in sight; the slowest of each 50 counts. Target 50 ms.
- The page's heap after so many minutes of updates, against that after the first tenth of them.
  Target: no more than 1.1 times as much.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
from measure import Comparison, Report, arguments
from playwright.sync_api import Page, sync_playwright

from mlxbench_kernel.widgets.graph_view import STATIC

RANKS, HOUR, UPDATE_SECONDS = 8, 36_000, 0.05
HEAP = 1.1
OPEN = """
async ([code, ranks, hour]) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const widget = (await import(url)).default;
  const handlers = {};
  const part = (kind, bytes, rank) => ({ kind, bytes, rank, state: "" });
  const segments = ["system", "others"].map((kind) => part(kind, 5e9, -1));
  for (let rank = 0; rank < ranks; rank++)
    for (const kind of ["active", "cache", "rest"]) segments.push(part(kind, 1e9, rank));
  segments.push(part("free", 30e9, -1));
  const state = {
    bars: [{ host: "studio", pool: "memory", total: 64e9, segments, markers: [], pressure: "normal",
             swap: 0, swap_trend: 0, unknown: [], stale: 0, said: [] }],
    ranks: Array.from({ length: ranks }, (_, rank) => ({ rank, host: "studio", said: "" })),
  };
  const model = {
    get: (name) => state[name],
    on: (event, handler) => (handlers[event] ??= []).push(handler),
    off: () => {},
    send: () => {},
  };
  const el = document.createElement("div");
  document.body.append(el);
  widget.render({ model, el });
  const tell = (event, ...rest) => (handlers[event] ?? []).forEach((each) => each(...rest));
  const begun = Date.now() / 1000 - hour / 10;
  let count = 0;
  const some = (rows) => {
    const parts = [], buffers = [];
    for (let rank = 0; rank < ranks; rank++) {
      const data = new Float64Array(rows * 6);
      for (let row = 0; row < rows; row++) {
        const active = 1e9 + 5e8 * Math.random();
        const number = count + row;
        data.set([begun + number / 10, active, 4e8, 2e9, active + 6e8, number], row * 6);
      }
      parts.push({ rank, first: count });
      buffers.push(new DataView(data.buffer));
    }
    count += rows;
    tell("msg:custom", { kind: "samples", parts }, buffers);
  };
  for (let rank = 0; rank < ranks; rank++) {
    const marks = Array.from({ length: 60 }, (_, n) => ({
      number: n, kind: "cell", name: `Cell In[${n}]`,
      begin: begun + 60 * n, end: begun + 60 * n + 50 }));
    tell("msg:custom", { kind: "marks", rank, marks }, []);
  }
  some(hour);
  [...el.querySelectorAll("button")].find((each) => each.textContent === "1 h").click();
  window.update = () => new Promise((done) => {
    window.drawn = 0;
    const begin = performance.now();
    some(1);
    state.bars = structuredClone(state.bars);
    state.bars[0].segments[2].bytes = 1e9 + 1e8 * Math.random();
    tell("change:bars");
    const sent = performance.now() - begin;
    requestAnimationFrame(() => {
      const after = performance.now();
      // Drawn in this frame, before this: what is left of it is what the browser's layout takes.
      setTimeout(() => done(sent + (performance.now() - after) + window.drawn), 0);
    });
  });
  const frame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (callback) => frame((time) => {
    const begin = performance.now();
    callback(time);
    window.drawn += performance.now() - begin; // of this frame: the last callback is not ours
  });
}
"""
UPDATES = """
async (count) => {
  const taken = [];
  for (let turn = 0; turn < count; turn++) {
    const begin = performance.now();
    taken.push(await window.update());
    await new Promise((done) => setTimeout(done, Math.max(100 - (performance.now() - begin), 0)));
  }
  return taken;
}
"""


def heap(page: Page) -> float:
    """Bytes of the page's heap, collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used


def main() -> None:
    parser = arguments(__doc__, 10)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("memory_view.py needs Chromium")
    report = Report(options.check)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content("<!doctype html><body></body>")
        page.evaluate(OPEN, [(STATIC / "memory.js").read_text(), RANKS, HOUR])
        page.evaluate(UPDATES, 20)
        slowest = [max(page.evaluate(UPDATES, 50)) / 1e3 for _ in range(options.pairs)]
        case = f"an update with {RANKS} ranks and an hour ({1e3 * np.median(slowest):.1f} ms)"
        report.add(Comparison(case, "50 ms", slowest, [UPDATE_SECONDS] * options.pairs, 1.0))
        tenth = int(60 * options.minutes)  # 10 updates a second: a tenth of them
        page.evaluate(UPDATES, tenth)
        early = heap(page)
        for _ in range(9):
            page.evaluate(UPDATES, tenth)
        late = heap(page)
        case = f"heap after {options.minutes:g} minutes ({late / 1e6:.1f} MB)"
        report.add(Comparison(case, "that after a tenth of it", [late], [early], HEAP))
        browser.close()
    if errors:  # what was drawn then is not all of it
        sys.exit(f"memory_view.py: {errors[0]}")
    report.leave()


if __name__ == "__main__":
    main()
