"""A JupyterLab as the tests on the browser use it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    folder: Path

    def notebook(self, page: Page, name: str) -> Page:
        """Open a notebook of the folder and wait until its kernel is idle."""
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        # Before that, running a cell asks for a kernel.
        page.get_by_text("MLX Bench | Idle").wait_for(timeout=60_000)
        return page


def picture(page: Page, name: str) -> None:
    """Keep a picture of the page where MLXBENCH_PICTURES names a folder."""
    folder = os.environ.get("MLXBENCH_PICTURES")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")
