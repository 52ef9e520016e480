"""A JupyterLab as the tests on the browser use it."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
QUIET = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_SECONDS = 60


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    folder: Path

    def write(self, name: str, *cells: str) -> None:
        """Put a notebook with these cells into the folder."""
        kernel = {"kernelspec": {"name": "mlxbench", "display_name": "MLX Bench"}}
        notebook = nbformat.v4.new_notebook(metadata=kernel)
        notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(notebook, self.folder / name)

    def notebook(self, page: Page, name: str) -> Page:
        """Open a notebook of the folder and wait until its kernel is idle."""
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        # Before that, running a cell asks for a kernel.
        page.get_by_text("MLX Bench | Idle").wait_for(timeout=60_000)
        return page


@contextmanager
def running_lab(folder: Path, settings: Path) -> Iterator[Lab]:
    """A JupyterLab that serves `folder`, and keeps its own things in `settings`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
        # Otherwise cells out of sight are not in the page.
        "notebook-extension/tracker": '{"windowingMode": "none"}',
    }.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(value)
    token = secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
    }
    with (settings / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(f"{url}/api?token={token}"):
            assert server.poll() is None and time.monotonic() < deadline, (
                settings / "lab.log"
            ).read_text()
        yield Lab(url, token, folder)
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End it with its kernels, whatever state it is in."""
    server.terminate()
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def run_all(page: Page) -> None:
    """Run all cells of the open notebook."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def picture(page: Page, name: str) -> None:
    """Keep a picture of the page where MLXBENCH_PICTURES names a folder."""
    folder = os.environ.get("MLXBENCH_PICTURES")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


def shades(element: Locator) -> int:
    """How many colours the drawing has: an empty one has few."""
    picture = element.screenshot()
    count: int = element.page.evaluate(
        """async (encoded) => {
          const image = new Image();
          image.src = "data:image/png;base64," + encoded;
          await image.decode();
          const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
          context.drawImage(image, 0, 0);
          const { data } = context.getImageData(0, 0, image.width, image.height);
          return new Set(new Uint32Array(data.buffer)).size;
        }""",
        base64.b64encode(picture).decode(),
    )
    return count


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (urllib.error.URLError, OSError):
        time.sleep(0.1)  # a server that is starting gives no sign but its answer
        return False
    return True
