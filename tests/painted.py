"""What is painted on a page: colours of pixels, and whether texts can be read on what is behind."""

from __future__ import annotations

import base64
from typing import Any

from playwright.sync_api import Locator, Page

_PIXELS = """
async function pixels(encoded) {
  const image = new Image();
  image.src = "data:image/png;base64," + encoded;
  await image.decode();
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}
function luminance(r, g, b) {  // WCAG 2
  const [x, y, z] = [r, g, b].map((c) => c / 255).map(
    (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function contrast(a, b) {
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


def share_of(page: Page, png: bytes, colour: tuple[int, int, int], within: int = 24) -> float:
    """The share of the pixels of a picture that have a colour, more or less."""
    share: float = page.evaluate(
        f"""async ([encoded, colour, within]) => {{
          {_PIXELS}
          const {{ data }} = await pixels(encoded);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) {{
            count += [0, 1, 2].every((c) => Math.abs(data[i + c] - colour[c]) <= within);
          }}
          return count / (data.length / 4);
        }}""",
        [base64.b64encode(png).decode(), list(colour), within],
    )
    return share


def colours_of_bands(page: Page, png: bytes, bands: int) -> list[int]:
    """How many colours there are in each of so many equal bands, from top to bottom."""
    counts: list[int] = page.evaluate(
        f"""async ([encoded, bands]) => {{
          {_PIXELS}
          const all = new Uint32Array((await pixels(encoded)).data.buffer);
          const band = Math.floor(all.length / bands);
          return Array.from({{ length: bands }},
            (_, i) => new Set(all.subarray(i * band, (i + 1) * band)).size);
        }}""",
        [base64.b64encode(png).decode(), bands],
    )
    return counts


def readable_in(view: Locator) -> dict[str, Any]:
    """How well the texts on the boxes of a graph stand out from what is painted behind them.

    Returns
    -------
    dict
        ``texts``: pixels that are wholly ink; ``least``: the contrast (WCAG 2) that 98 % of them
        reach; ``surface``: the luminance of most of the background, 0 black to 1 white.
    """
    labels = view.locator(".mlxgraph-stage > canvas").nth(1)
    ink = labels.evaluate("canvas => canvas.toDataURL('image/png').split(',')[1]")
    labels.evaluate("canvas => canvas.style.visibility = 'hidden'")
    behind = view.locator(".mlxgraph-stage").screenshot()
    labels.evaluate("canvas => canvas.style.visibility = ''")
    found: dict[str, Any] = view.page.evaluate(
        f"""async ([ink, behind]) => {{
          {_PIXELS}
          const text = await pixels(ink), back = await pixels(behind);
          if (text.width !== back.width) throw Error("the page is zoomed");
          const contrasts = [], shades = new Map();
          for (let i = 0; i < back.data.length; i += 4) {{
            const [r, g, b] = back.data.subarray(i, i + 3);
            const key = (r << 16) | (g << 8) | b;
            shades.set(key, (shades.get(key) ?? 0) + 1);
            if (text.data[i + 3] < 250) continue;
            const inked = luminance(...text.data.subarray(i, i + 3));
            contrasts.push(contrast(luminance(r, g, b), inked));
          }}
          contrasts.sort((a, b) => a - b);
          const most = [...shades].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
          return {{
            texts: contrasts.length, least: contrasts[Math.floor(contrasts.length * 0.02)],
            surface: luminance(most >> 16, (most >> 8) & 255, most & 255),
          }};
        }}""",
        [ink, base64.b64encode(behind).decode()],
    )
    return found


def pale_texts(view: Locator) -> list[str]:
    """The texts beside the drawing that have less contrast than 4.5 to what is behind them."""
    found: list[str] = view.evaluate(
        f"""(view) => {{
          {_PIXELS}
          const colour = (text) => {{
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.fillStyle = text;
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data];
          }};
          const behind = (element) => {{
            const own = colour(getComputedStyle(element).backgroundColor);
            return own[3] > 200 ? own : behind(element.parentElement);
          }};
          return [...view.querySelectorAll("*")].filter((element) =>
            element.checkVisibility() && !element.closest(":disabled, .mlxgraph-spoken") &&
            [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
            contrast(luminance(...colour(getComputedStyle(element).color).slice(0, 3)),
              luminance(...behind(element).slice(0, 3))) < 4.5,
          ).map((element) => element.textContent);
        }}"""
    )
    return found
