"""How a stepper's dashboard looks, and its parts that are plain HTML."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape

import anywidget

from mlxbench_kernel.training.place import Entry
from mlxbench_kernel.units import quantity
from mlxbench_kernel.widgets.gone import when_gone

MOST_LINES = 200  # of the journal, the last ones


class Page(anywidget.AnyWidget):
    """The style sheet of the dashboard; it takes no room.

    It also tells plotly, which listens to the window alone, when the place of the figure has
    become wider or narrower: at first, and when a side bar of JupyterLab is opened.
    """

    _esm = """
export default {
  render({ el }) {
    let frame = 0;
    const fit = () => {
      if (el.closest(".mlxbench-step")?.querySelector(".js-plotly-plot .main-svg")) {
        window.dispatchEvent(new Event("resize"));
      } else {
        frame = requestAnimationFrame(fit);
      }
    };
    const watch = new ResizeObserver(() => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(fit);
    });
    watch.observe(el);
    return () => {
      watch.disconnect();
      cancelAnimationFrame(frame);
    };
  },
};
"""
    _css = """
.mlxbench-step { color: var(--jp-ui-font-color1, inherit); }
.mlxbench-step .js-plotly-plot text:not(.hoverlayer *) {
  fill: var(--jp-ui-font-color1, #808080) !important;
}
.mlxbench-step .widget-html-content { line-height: 1.4; }
.mlxbench-step .mlxbench-step-error {
  color: var(--jp-error-color0, #c62828); font-weight: 600; overflow-wrap: anywhere;
}
[data-jp-theme-light="false"] .mlxbench-step .mlxbench-step-error { color: #ff8a80; }
.mlxbench-step .mlxbench-step-said { font-weight: 600; overflow-wrap: anywhere; }
.mlxbench-step .mlxbench-step-lines {
  max-height: 280px; overflow: auto; font-size: 12px; overflow-wrap: anywhere;
}
.mlxbench-step .mlxbench-step-lines pre { margin: 0; color: inherit; white-space: pre-wrap; }
""" + when_gone("mlxbench-step")


def error_line(error: str) -> str:
    """What a command raised, in red; nothing if it did not."""
    return f'<div role="alert" class="mlxbench-step-error">{escape(error)}</div>' if error else ""


def busy_line(doing: str) -> str:
    """What is being done, and takes its time."""
    return f"<div><em>{escape(doing)} …</em></div>"


def status_line(facts: Sequence[str], said: str) -> str:
    """Where the stepper is, and why it stopped."""
    line = f"<div>{escape(' · '.join(fact for fact in facts if fact))}</div>"
    return line + said_line(said)


def said_line(said: str) -> str:
    """What was found, as a line that wraps; nothing if there is nothing."""
    return f'<div class="mlxbench-step-said">{escape(said)}</div>' if said else ""


def rate(value: float, unit: str) -> str:
    """How much a second, as ``12.3 k tokens/s``; "" if that is not known."""
    if not (math.isfinite(value) and value > 0):
        return ""
    number, _, prefix = quantity(value).partition(" ")
    return f"{number} {prefix} {unit}/s" if prefix else f"{number} {unit}/s"


def journal_lines(entries: Sequence[Entry]) -> str:
    """The journal, the last entry first."""
    if not entries:
        return "<div>nothing was changed yet</div>"
    rows = "".join(
        f"<div>{time.strftime('%H:%M:%S', time.localtime(each.time))} · {escape(each.branch)} "
        f"step {each.step} · {escape(each.text)}</div>"
        for each in reversed(entries[-MOST_LINES:])
    )
    earlier = len(entries) - MOST_LINES
    more = f"<div>and {earlier} before these</div>" if earlier > 0 else ""
    return f'<div class="mlxbench-step-lines">{rows}{more}</div>'


def lines(text: str) -> str:
    """A text of several lines."""
    return f'<div class="mlxbench-step-lines"><pre>{escape(text)}</pre></div>'
