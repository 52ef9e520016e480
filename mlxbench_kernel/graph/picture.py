"""A scene as an SVG picture: what stands in for the view where no widget can run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.graph.model import Indices
from mlxbench_kernel.graph.scene import Kind, Scene

MOST = 1500  # boxes that are drawn
PAGE, LEAST = 960.0, 0.58  # pixels of a page's width; a smaller scale cannot be read
MARGIN, SWATCH = 24.0, 12.0
LETTER = 6.2  # pixels that one takes, in small type
HEAD, SUMMARY = 50.0, 18.0  # pixels above the legend, and more with a summary
STUB = 12.0

# As in extensions/widgets/src/graph/palette.ts, so that a picture looks like its view.
_CATEGORICAL = (
    "#4e79a7", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#a0693a", "#332288", "#b5a900", "#882255", "#44aa99", "#8a8d91",
)  # fmt: skip
_SEQUENTIAL = (
    "#ffffd9", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494",
    "#081d58",
)  # fmt: skip
_STEPS = 16

_COLOURS = {
    False: "--back:#ffffff;--ink:#1b1f24;--faint:#57606a;--line:#8c959f;--edge:#6e7781;"
    "--inside:#f6f8fa",
    True: "--back:#0d1117;--ink:#f0f3f6;--faint:#b1bac4;--line:#6e7681;--edge:#8b949e;"
    "--inside:#161b22",
}


def _palettes(dark: bool) -> tuple[list[str], list[str]]:
    """Colours of boxes for kinds, and from little to much."""
    strong = _channels(_CATEGORICAL)
    if dark:
        strong = strong + (255.0 - strong) * 0.18
    surface = _channels([_COLOURS[dark][7:14]])
    kinds = surface + (strong - surface) * (0.3 if dark else 0.2)
    anchors = _channels(_SEQUENTIAL[::-1] if dark else _SEQUENTIAL)
    places = np.linspace(0, len(anchors) - 1, _STEPS)
    steps = [np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T]
    return _hexadecimal(kinds), _hexadecimal(np.stack(steps, axis=1))


def _channels(colours: Sequence[str]) -> NDArray[np.float64]:
    rows = [[int(each[at : at + 2], 16) for at in (1, 3, 5)] for each in colours]
    return np.array(rows, np.float64)


def _hexadecimal(colours: NDArray[np.float64]) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(colours).astype(int).tolist()]


def _ink(fill: str) -> str:
    """Black or white, whichever can be read better on a colour (WCAG 2.2, relative luminance)."""
    channels = _channels([fill])[0] / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def svg(
    scene: Scene,
    title: str,
    dark: bool = False,
    most: int | None = MOST,
    name: str = "",
    summary: str = "",
    focus: int | None = None,
) -> str:
    """Draw a scene as an SVG element that needs nothing else.

    Parameters
    ----------
    scene
        From `lay_out`.
    title
        Stands above it.
    dark
        Always dark; by default as the reader's system is set.
    most
        Of more boxes the upper ones are drawn, and it says so; and it is as wide as a page, where
        it can be read so. None for all of them, in their own size.
    name
        By which the element is known to a page: its first attribute is ``id``.
    summary
        Stands under the title.
    focus
        An item that is outlined, as one that is selected in a view.
    """
    drawn = _drawn(scene, most)
    box = np.full(scene.boxes, -1, np.int64)
    box[drawn] = np.arange(len(drawn))
    lines = np.flatnonzero((box[scene.source] >= 0) & (box[scene.target] >= 0))
    inner = drawn[scene.kind[drawn] != Kind.FRAME]
    ends = drawn if len(drawn) == scene.boxes else inner
    right = float((scene.x + scene.width)[ends].max(initial=240.0))
    bottom = float((scene.y + scene.height)[ends].max(initial=0.0))
    room = max(right, 480.0, len(summary) * LETTER)
    head = HEAD + (SUMMARY if summary else 0.0)
    legend, legend_height = _legend(scene, room, head)
    top = head + 8.0 + legend_height
    above = float(scene.y[drawn].min(initial=bottom))
    width, height = room + 2 * MARGIN, top + bottom - above + 2 * MARGIN
    left = MARGIN + (room - right) / 2
    shown = 1.0 if most is None else max(min(PAGE / width, 1.0), LEAST)
    identity = f' id="{escape(name)}"' if name else ""
    parts = [
        f'<svg{identity} xmlns="http://www.w3.org/2000/svg" class="mlxbench-graph" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width * shown:.0f}" '
        f'height="{height * shown:.0f}" '
        f'style="max-width:100%;height:auto">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style(dark)}</style>",
        '<rect class="back" width="100%" height="100%"/>',
        f'<text class="head" x="{MARGIN:.0f}" y="34">{escape(title)}</text>',
        f'<text class="note" x="{MARGIN:.0f}" y="54">{escape(summary)}</text>' if summary else "",
        legend,
    ]
    if len(drawn) < scene.boxes:
        parts.append(
            f'<text class="note" x="{MARGIN:.0f}" y="{top - 4:.0f}">The upper {len(inner):,} of '
            f"{int((scene.kind != Kind.FRAME).sum()):,} boxes: close groups to see all.</text>"
        )
    parts.append(f'<g transform="translate({left:.1f} {top + 10 - above:.1f})">')
    frames = drawn[scene.kind[drawn] == Kind.FRAME]
    parts += [_box(scene, each) for each in frames.tolist()]
    parts += [_line(scene, each) for each in lines.tolist()]
    parts += [_box(scene, each, int(scene.item[each]) == focus) for each in inner.tolist()]
    parts.append("</g></svg>")
    return "\n".join(parts)


def _drawn(scene: Scene, most: int | None) -> Indices:
    """All boxes, or the upper ones and the frames around them."""
    if most is None or scene.boxes <= most:
        return np.arange(scene.boxes, dtype=np.int32)
    inner = np.flatnonzero(scene.kind != Kind.FRAME)
    keep = np.zeros(scene.boxes, np.bool_)
    keep[inner[np.argsort(scene.y[inner], kind="stable")[:most]]] = True
    around = scene.frame[keep]
    while len(around := np.unique(around[around >= 0])):
        keep[around] = True
        around = scene.frame[around]
    return np.flatnonzero(keep).astype(np.int32)


def _style(dark: bool) -> str:
    def colours(dark: bool) -> str:
        rules = [f".mlxbench-graph{{{_COLOURS[dark]}}}"]
        for letter, palette in zip("cq", _palettes(dark), strict=True):
            for number, colour in enumerate(palette):
                name = f".{letter}{number}"
                rules.append(f".mlxbench-graph {name}{{fill:{colour}}}")
                rules.append(f".mlxbench-graph .box {name}~text{{fill:{_ink(colour)}}}")
        return "".join(rules)

    own = {
        "text": "font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif;"
        "fill:var(--ink)",
        ".head": "font-size:16px;font-weight:600",
        ".note": "font-size:11px;fill:var(--faint)",
        ".box .note": "opacity:.8",
        ".middle text": "text-anchor:middle",
        ".back": "fill:var(--back)",
        "rect": "stroke:var(--line);stroke-width:1",
        ".back,.mlxbench-graph .key": "stroke:none",
        ".frame": "fill:var(--inside)",
        ".collective rect": "stroke:var(--ink);stroke-width:2",
        ".focus rect": "stroke:#1f7ae0;stroke-width:4",  # as what is selected in a view
        "path": "fill:none;stroke:var(--edge);stroke-width:1.2",
        ".stub": "stroke-dasharray:3 3",
    }
    rules = "".join(f".mlxbench-graph {name}{{{value}}}" for name, value in own.items())
    if dark:
        return colours(True) + rules
    return f"{colours(False)}@media (prefers-color-scheme:dark){{{colours(True)}}}{rules}"


def _legend(scene: Scene, width: float, top: float) -> tuple[str, float]:
    parts, x, y = [], MARGIN, top
    letter = "q" if scene.palette == "sequential" else "c"
    for name, number in scene.legend:
        wide = SWATCH + 6 + len(name) * LETTER + 16
        if x + wide > width + MARGIN and x > MARGIN:
            x, y = MARGIN, y + 20
        parts.append(
            f'<rect class="key {letter}{number}" x="{x:.1f}" y="{y:.1f}" width="{SWATCH:.0f}" '
            f'height="{SWATCH:.0f}" rx="3"/><text class="note" x="{x + SWATCH + 6:.1f}" '
            f'y="{y + 10:.1f}">{escape(name)}</text>'
        )
        x += wide
    return "".join(parts), y - top + 20.0


def _box(scene: Scene, box: int, focus: bool = False) -> str:
    x, y = float(scene.x[box]), float(scene.y[box])
    width, height = float(scene.width[box]), float(scene.height[box])
    kind, title, note = Kind(int(scene.kind[box])), escape(scene.title[box]), scene.note[box]
    letter = "q" if scene.palette == "sequential" else "c"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    if kind == Kind.FRAME:
        return (
            f'<g><rect class="frame" {place} rx="8"/><text x="{x + 10:.1f}" y="{y + 18:.1f}">'
            f'{title} <tspan class="note">{escape(note)}</tspan></text></g>'
        )
    fill = f"{letter}{int(scene.swatch[box])}"
    round_ = {Kind.INPUT: height / 2, Kind.GROUP: 3.0}.get(kind, 6.0)
    back = ""
    if kind == Kind.GROUP:  # a second sheet behind it: there is more inside
        back = (
            f'<rect class="{fill}" x="{x + 3:.1f}" y="{y + 3:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="3"/>'
        )
    middle, line = x + width / 2, y + (height / 2 + 4 if not note else height / 2 - 4)
    second = f'<text class="note" x="{middle:.1f}" y="{y + height / 2 + 12:.1f}">{escape(note)}'
    return (
        f'<g class="box middle {kind.name.lower()}{" focus" if focus else ""}">{back}'
        f'<rect class="{fill}" {place} rx="{round_:.0f}"/>'
        f'<text x="{middle:.1f}" y="{line:.1f}">{title}</text>'
        f"{second + '</text>' if note else ''}</g>"
    )


def _line(scene: Scene, line: int) -> str:
    source, target = int(scene.source[line]), int(scene.target[line])
    x1 = float(scene.x[source] + scene.width[source] / 2)
    y1 = float(scene.y[source] + scene.height[source])
    x2 = float(scene.x[target] + scene.width[target] / 2)
    y2 = float(scene.y[target])
    if scene.stub[line]:
        ends = f"M{x1:.1f} {y1:.1f}v{STUB:.0f}M{x2:.1f} {y2 - STUB:.1f}v{STUB:.0f}"
        return f'<path class="stub" d="{ends}"/>'
    bend = max((y2 - y1) / 2, 8.0)
    return (
        f'<path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} '
        f'{x2:.1f} {y2:.1f}"/>'
    )
