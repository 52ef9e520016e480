"""The view of a lazy graph in a cell: draws a `Scene` in the browser, asks for the rest.

Pan, zoom, selection, labels and the minimap are the browser's and go on while the kernel is busy.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anywidget
import numpy as np
import traitlets
from IPython.display import display
from numpy.typing import DTypeLike, NDArray

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.graph.explorer import Explorer
from mlxbench_kernel.graph.peak import Prediction
from mlxbench_kernel.graph.scene import Scene
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.graph_messages import (
    Answer,
    Buffer,
    Link,
    Request,
    SceneState,
    Timeline,
)

STATIC = Path(__file__).parent / "static"
MOST_LINKS = 200  # of one node in the details; a parameter may be used in thousands of places
LONG = 1.0  # seconds, from which on the summary says how long something took


class GraphView(anywidget.AnyWidget):
    """A graph that can be opened, searched and followed, in a cell.

    Parameters
    ----------
    source
        The graph with its groups and its layout. An *item* is a node's number, or for a group
        -1 - its number, as in `Scene.item`.
    height
        Of the view, in pixels; it can be dragged to another one.
    focus
        The node that is selected and in sight at first.
    """

    _esm = STATIC / "graph.js"

    title = traitlets.Unicode().tag(sync=True)
    summary = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(560).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)
    timeline = traitlets.Dict().tag(sync=True)
    focus = traitlets.Int(None, allow_none=True).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)  # the id of the SVG that stands in for the view

    def __init__(self, source: Explorer, height: int = 560, focus: int | None = None) -> None:
        began, self.source = time.perf_counter(), source
        if focus is not None:
            source.reveal(focus)
        super().__init__(
            title=source.title,
            summary=source.summary,
            height=height,
            colours=source.colours(),
            scene=scene_state(source.scene()),
            timeline=timeline_state(source.timeline()),
            focus=focus,
            picture=f"mlxgraph-{uuid.uuid4().hex}",
        )
        took = {"captured": source.graph.seconds, "opened": time.perf_counter() - began}
        for done, seconds in took.items():
            if seconds >= LONG:
                self.summary += f" · {done} in {seconds:.1f} s"
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        return f"{self.source.title}\n{self.source.summary}"

    def _ipython_display_(self) -> None:
        """Show the view, and under it a picture, which the view hides wherever it runs.

        One output with both would not do. nbconvert takes the widget of an output as soon as the
        notebook holds widgets' states, which ``nbconvert --execute`` sees to; without a network
        nothing is seen then (`nbconvert.filters.WidgetsDataTypeFilter`). JupyterLab does the same
        with a notebook that is opened again, without a kernel. GitHub shows no widgets at all.
        """
        bundle = self._repr_mimebundle_()
        if bundle is not None:
            display(bundle[0], metadata=bundle[1], raw=True)
        display({"image/svg+xml": self.source.picture(self.picture, self.focus)}, raw=True)

    def _answer(self, _widget: object, content: object, _buffers: object) -> None:
        """Answer a message of the browser, whatever goes wrong: somebody waits for it."""
        if not isinstance(content, dict) or not isinstance(content.get("id"), int):
            return
        answer: Answer = {"answer": content["id"]}
        buffers: list[Buffer] = []
        try:
            self._ask(cast(Request, content), answer, buffers)
        except BenchError as error:
            answer["error"] = str(error).partition("\n")[0]
        except Exception as error:
            self.log.exception("the view of a graph asked %r", content)
            answer["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        self.send(answer, buffers)

    def _ask(self, request: Request, answer: Answer, buffers: list[Buffer]) -> None:
        """Ask the source, and put what it says into the answer."""
        source, ask = self.source, request["ask"]
        item, text = request.get("item"), request.get("text", "")
        if ask == "open_all":
            self._redraw(source.open_all)
        elif ask == "close_all":
            self._redraw(source.close_all)
        elif ask == "colour":
            self._redraw(lambda: source.colour(text))
        elif ask == "search":
            buffers.append(_buffer(np.asarray(source.search(text), dtype=np.int32), "<i4"))
        elif ask == "export":
            answer["text"] = source.export(text)
        elif ask == "text":
            answer["text"] = source.text(item)
        elif ask == "alive":
            answer["text"], rows = source.alive(request["other"])
            answer["outputs"] = [{"item": node, "label": label} for node, label in rows]
        elif item is None:
            raise UsageError(f"{ask} needs a box: select one first")
        elif ask == "toggle":
            self._redraw(lambda: source.toggle(item))
        elif ask == "reveal":
            self._redraw(lambda: source.reveal(item))
            answer["item"] = source.shown(item)
        elif ask == "details":
            inputs, outputs = source.neighbours(item)
            answer["rows"] = source.details(item)
            answer["inputs"], answer["outputs"] = self._links(inputs), self._links(outputs)
            answer["more"] = {
                "inputs": max(len(inputs) - MOST_LINKS, 0),
                "outputs": max(len(outputs) - MOST_LINKS, 0),
            }
        elif ask == "path":
            other = request["other"]
            if item < 0 or other < 0:
                raise UsageError("a path joins two nodes, not groups: open the group first")
            # Who clicks the later node first means the same path.
            path = source.path(item, other) or source.path(other, item)
            answer["path"] = [{"item": node, "label": source.label(node)} for node in path]
        else:
            raise UsageError(f"the view asked for {ask!r}: reload the page, its code is older")

    def _redraw(self, change: Callable[[], None]) -> None:
        change()
        self.scene = dict(scene_state(self.source.scene()))

    def _links(self, nodes: list[int]) -> list[Link]:
        return [
            {"item": int(node), "label": self.source.label(node)} for node in nodes[:MOST_LINKS]
        ]


def scene_state(scene: Scene) -> SceneState:
    """A scene as the browser takes it.

    Parameters
    ----------
    scene
        Its arrays are not copied where their dtype and byte order are those of the browser.
    """
    return {
        "item": _buffer(scene.item, "<i4"),
        "kind": _buffer(scene.kind, "u1"),
        "x": _buffer(scene.x, "<f4"),
        "y": _buffer(scene.y, "<f4"),
        "width": _buffer(scene.width, "<f4"),
        "height": _buffer(scene.height, "<f4"),
        "swatch": _buffer(scene.swatch, "u1"),
        "frame": _buffer(scene.frame, "<i4"),
        "source": _buffer(scene.source, "<i4"),
        "target": _buffer(scene.target, "<i4"),
        "stub": _buffer(scene.stub, "u1"),
        "titles": _lines(scene.title),
        "notes": _lines(scene.note),
        "palette": scene.palette,
        "legend": [(text, int(swatch)) for text, swatch in scene.legend],
    }


def timeline_state(prediction: Prediction | None) -> Timeline | dict[str, object]:
    """A timeline of memory as the browser takes it, thinned; empty where there is none."""
    if prediction is None:
        return {}
    at = prediction.thinned()
    return {
        "at": _buffer(at, "<i4"),
        "bytes": _buffer(prediction.timeline[at], "<f4"),
        "peak": int(np.searchsorted(at, prediction.at)),
        "label": f"peak {format_bytes(prediction.peak)}",
    }


def _buffer(values: NDArray[Any], dtype: DTypeLike) -> Buffer:
    return np.ascontiguousarray(values, dtype=dtype).view(np.uint8).data


def _lines(texts: tuple[str, ...]) -> str:
    joined = "\n".join(texts)
    if joined.count("\n") >= max(len(texts), 1):  # a newline inside would shift all that follow
        joined = "\n".join(text.replace("\n", " ") for text in texts)
    return joined
