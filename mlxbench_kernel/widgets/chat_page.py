"""How a chat looks: its style, its keys, and what was said as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

import anywidget

from mlxbench_kernel.widgets.gone import when_gone

_PARTS = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)|<think>(.*?)(?:</think>|\Z)", re.DOTALL)


class ChatPage(anywidget.AnyWidget):
    """Style sheet and keys of a chat; it takes no room.

    Enter in the entry sends its text here as a message ``{"event": "send", "text": …}``,
    Shift+Enter begins a new line. What is said is kept in sight, unless somebody has scrolled up.
    """

    _esm = """
export default {
  render({ model, el }) {
    const ending = new AbortController();
    const watch = new MutationObserver(() => follow());
    let root = null, log = null, low = true;
    const follow = () => { if (log && low) log.scrollTop = log.scrollHeight; };
    const begin = () => {
      root = el.closest(".mlxbench-chat");
      log = root?.querySelector(".mlxbench-chat-log");
      const entry = root?.querySelector(".mlxbench-chat-entry");
      if (!log || !entry) {
        if (!ending.signal.aborted) requestAnimationFrame(begin);
        return;
      }
      log.setAttribute("role", "log");
      log.addEventListener("scroll", () => {
        low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      }, { signal: ending.signal });
      watch.observe(log, { childList: true, subtree: true, characterData: true });
      follow();
      entry.dataset.lmSuppressShortcuts = "true";
      entry.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        event.stopPropagation();
        low = true;
        model.send({ event: "send", text: event.target.value });
      }, { signal: ending.signal, capture: true });
    };
    begin();
    return () => {
      ending.abort();
      watch.disconnect();
    };
  },
};
"""
    _css = """
.mlxbench-chat { color: var(--jp-ui-font-color1, inherit); max-width: 60em; gap: 6px; }
.mlxbench-chat .mlxbench-chat-log {
  max-height: 460px; overflow: auto; padding: 8px; border-radius: 6px;
  border: 1px solid var(--jp-border-color2, #8885); background: var(--jp-layout-color1, inherit);
}
.mlxbench-chat > *, .mlxbench-chat .widget-html { margin: 0; }
.mlxbench-chat .widget-html, .mlxbench-chat .widget-html-content {
  width: auto; height: auto; min-height: 0; overflow: visible; line-height: 1.45;
}
.mlxbench-chat .mlxbench-chat-log > * { flex: none; }
.mlxbench-chat .mlxbench-chat-said { display: flex; margin: 4px 0; }
.mlxbench-chat .mlxbench-chat-user { justify-content: flex-end; }
.mlxbench-chat .mlxbench-chat-bubble {
  max-width: 85%; padding: 6px 12px; border-radius: 12px; overflow-wrap: anywhere;
  white-space: pre-wrap; font-size: var(--jp-content-font-size1, 14px);
  background: var(--jp-layout-color2, #8882); color: var(--jp-content-font-color1, inherit);
}
.mlxbench-chat .mlxbench-chat-user .mlxbench-chat-bubble {
  background: color-mix(
    in srgb, var(--jp-brand-color1, #2196f3) 22%, var(--jp-layout-color1, #fff0)
  );
}
.mlxbench-chat .mlxbench-chat-bubble pre {
  margin: 6px 0; padding: 6px 8px; border-radius: 6px; overflow-x: auto; color: inherit;
  background: var(--jp-layout-color0, #8881); font-family: var(--jp-code-font-family, monospace);
  font-size: var(--jp-code-font-size, 13px); line-height: 1.3;
}
.mlxbench-chat .mlxbench-chat-bubble details {
  margin-bottom: 4px; font-size: 0.92em; font-style: italic;
}
.mlxbench-chat .mlxbench-chat-bubble summary { cursor: pointer; }
.mlxbench-chat .mlxbench-chat-none { color: var(--jp-ui-font-color2, gray); text-align: center; }
.mlxbench-chat .mlxbench-chat-dots span {
  display: inline-block; width: 6px; height: 6px; margin: 2px; border-radius: 50%;
  background: currentcolor; animation: mlxbench-chat-dot 1.2s infinite;
}
.mlxbench-chat .mlxbench-chat-dots span:nth-child(2) { animation-delay: 0.2s; }
.mlxbench-chat .mlxbench-chat-dots span:nth-child(3) { animation-delay: 0.4s; }
@keyframes mlxbench-chat-dot { 0%, 60%, 100% { opacity: 0.25; } 30% { opacity: 1; } }
@media (prefers-reduced-motion: reduce) {
  .mlxbench-chat .mlxbench-chat-dots span { animation: none; }
}
.mlxbench-chat .mlxbench-chat-entry { width: auto; margin: 0; }
.mlxbench-chat textarea {
  font-family: var(--jp-content-font-family, inherit);
  font-size: var(--jp-content-font-size1, 14px);
}
.mlxbench-chat .mlxbench-chat-entry textarea { resize: vertical; min-height: 3.6em; }
.mlxbench-chat .mlxbench-chat-line {
  color: var(--jp-ui-font-color2, gray); font-size: var(--jp-ui-font-size1, 12px);
  overflow-wrap: anywhere; min-height: 1.4em;
}
.mlxbench-chat .mlxbench-chat-error {
  color: var(--jp-error-color0, #c62828); font-weight: 600; overflow-wrap: anywhere;
}
[data-jp-theme-light="false"] .mlxbench-chat .mlxbench-chat-error { color: #ff8a80; }
""" + when_gone("mlxbench-chat")


def said(messages: Sequence[Mapping[str, str]]) -> str:
    """What was said as bubbles; the system prompt stands in its field."""
    shown = [each for each in messages if each["role"] != "system"]
    if not shown:
        return '<div class="mlxbench-chat-none">nothing was said yet</div>'
    return "".join(_bubble(each["role"], _formatted(each["content"])) for each in shown)


def coming(text: str) -> str:
    """An answer that is on its way; dots until something of it has come."""
    dots = '<span class="mlxbench-chat-dots"><span></span><span></span><span></span></span>'
    return _bubble("assistant", _formatted(text, open_=True) if text else dots)


def line(text: str) -> str:
    """The line of figures."""
    return f'<div class="mlxbench-chat-line">{escape(text)}</div>'


def error_line(text: str) -> str:
    """What went wrong; nothing if nothing did."""
    return f'<div role="alert" class="mlxbench-chat-error">{escape(text)}</div>' if text else ""


def _bubble(role: str, inner: str) -> str:
    return (
        f'<div class="mlxbench-chat-said mlxbench-chat-{role}">'
        f'<div class="mlxbench-chat-bubble">{inner}</div></div>'
    )


def _formatted(text: str, open_: bool = False) -> str:
    """A text with its blocks of code as such, and what a model thought folded away."""
    parts, end = [], 0
    for found in _PARTS.finditer(text):
        parts.append(escape(text[end : found.start()].rstrip("\n")))
        if found[1] is not None:
            parts.append(f"<pre>{escape(found[1].rstrip())}</pre>")
        elif found[2].strip():
            state = " open" if open_ and found.end() == len(text) else ""
            thought = escape(found[2].strip())
            parts.append(f"<details{state}><summary>thought</summary>{thought}</details>")
        end = found.end()
    return "".join([*parts, escape(text[end:].lstrip("\n") if parts else text)])
