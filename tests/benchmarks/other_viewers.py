"""Netron and Model Explorer, as ``graph_viewers.py`` opens them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mlxbench_kernel.graph.scene import Kind, Scene

READY_SECONDS = 60
TO_A_NODE = """() => document.querySelectorAll("#canvas g.node")[100]
  .scrollIntoView({ block: "center", inline: "center" })"""
AWAY = """() => document.querySelector("#target").dispatchEvent(
  new WheelEvent("wheel", { deltaY: 1e4, ctrlKey: true }))"""
# Onto a box in the middle of the list, until a unit of the scene is a pixel.
ONTO_A_NODE = """() => {
  const view = me_test.renderers[0], { webglRendererThreejsService: scene } = view;
  const boxes = view.nodesToRender.map(({ node }) => node).filter((node) => !node.nsChildrenIds);
  const box = boxes[boxes.length >> 1], canvas = document.querySelector("canvas.main");
  const { left, top, height } = canvas.getBoundingClientRect();
  const { x, y } = scene.convertScenePosToScreen(view.getNodeX(box), view.getNodeY(box));
  canvas.dispatchEvent(new WheelEvent("wheel", {
    bubbles: true, ctrlKey: true, clientX: left + x, clientY: top + y, view: window,
    deltaY: -150 * Math.log2(1000 / height / scene.curScale),
  }));
}"""


@dataclass(frozen=True)
class Viewer:
    """Another viewer, served by its own Python.

    Attributes
    ----------
    package
        What pip calls it.
    code
        Runs its command.
    options
        For the command, besides host and port.
    query
        What follows the address of the server; ``FILE`` stands for the file.
    outer, whole
        JavaScript: whether the outer groups, and whether all boxes (``BOXES``) are laid out.
    expand
        What to click in between; "" where there are no groups.
    stage, keys
        The element that takes events, and what is held while the wheel zooms.
    near, far
        JavaScript that goes to where labels can be read, and as far away as it gets.
    """

    name: str
    package: str
    code: str
    whole: str
    stage: str
    keys: dict[str, bool]
    near: str
    far: str
    options: tuple[str, ...] = ()
    query: str = ""
    outer: str = ""
    expand: str = ""


NETRON = Viewer(
    name="Netron",
    package="netron",
    code="import netron; netron.main()",
    whole="""document.body.classList.contains("default")
      && document.querySelectorAll("#canvas g.node").length >= BOXES""",
    stage="#target",
    keys={"shiftKey": True},
    near=TO_A_NODE,
    far=AWAY,
)
MODEL_EXPLORER = Viewer(
    name="Model Explorer",
    package="ai-edge-model-explorer",
    code="from model_explorer.cmdline import main; main()",
    whole="me_test.renderers[0].nodesToRender.length >= BOXES",
    stage="webgl-renderer canvas.main",
    keys={"ctrlKey": True},
    near=ONTO_A_NODE,
    far="() => document.querySelector('div.zoom-fit').click()",
    options=("--no_open_in_browser",),
    query='?data={"models":[{"url":"FILE"}]}',
    outer="window.me_test?.renderers?.[0]?.nodesToRender?.length > 0",
    expand="div.expand-all",
)


def write(scene: Scene, viewer: Viewer, file: Path) -> int:
    """Write a scene as a viewer reads it; returns how many boxes it will show."""
    groups: list[str] = []
    for frame, kind, title in zip(scene.frame.tolist(), scene.kind, scene.title, strict=True):
        around = groups[frame] if frame >= 0 else ""
        groups.append(f"{around}/{title}".strip("/") if kind == Kind.FRAME else around)
    sources: defaultdict[int, list[str]] = defaultdict(list)
    for source, target in zip(scene.source.tolist(), scene.target.tolist(), strict=True):
        sources[target].append(str(source))
    boxes = np.flatnonzero(scene.kind != Kind.FRAME).tolist()
    contents: dict[str, Any]
    if viewer is NETRON:
        contents = {"irVersion": 10, "graph": {"name": "step", "node": [
            {"name": str(n), "opType": scene.title[n], "input": sources[n], "output": [str(n)]}
            for n in boxes
        ]}}  # fmt: skip
    else:
        contents = {"label": "step", "graphs": [{"id": "step", "nodes": [
            {"id": str(n), "label": scene.title[n], "namespace": groups[n], "incomingEdges": [
                {"sourceNodeId": source, "sourceNodeOutputId": "0", "targetNodeInputId": str(at)}
                for at, source in enumerate(sources[n])
            ]}
            for n in boxes
        ]}]}  # fmt: skip
    file.write_text(json.dumps(contents))
    return len(boxes) if viewer is NETRON else scene.boxes


@contextmanager
def served(viewer: Viewer, python: str, file: Path) -> Iterator[str]:
    """The address of a viewer's page with a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), *viewer.options, str(file)]
    nowhere = "http://127.0.0.1:9"  # they ask for new versions of themselves
    environment = {**os.environ, "HTTPS_PROXY": nowhere, "HTTP_PROXY": "", "NO_PROXY": "127.0.0.1"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        [python, "-c", viewer.code, *options], env=environment, stdout=quiet, stderr=quiet
    )
    url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + READY_SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"graph_viewers.py: {viewer.name} does not start")
                time.sleep(0.1)  # a server that is starting gives no sign but its answer
        yield url + quote(viewer.query.replace("FILE", str(file)), safe="?=")
    finally:
        server.terminate()
        server.wait()


def version(viewer: Viewer, python: str) -> str:
    """The version of a viewer; "" where it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({viewer.package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
