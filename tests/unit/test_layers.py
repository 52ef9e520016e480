"""Which way imports point: what is inside knows nothing of what is built on it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxbench_kernel

PACKAGE = Path(mlxbench_kernel.__file__).parent
# What each folder may import beside itself, the files at the top and the version.
MAY_IMPORT = {
    "kernel": {"widgets", "remote", "models", "training", "graph", "cluster", "memory", "native"},
    "widgets": {"remote", "models", "training", "graph", "cluster", "memory"},
    "remote": {"models", "training", "graph", "cluster", "memory"},
    "models": {"training", "graph", "memory", "native", "rank"},
    "training": {"graph", "memory", "native", "rank"},
    "cluster": {"rank", "memory", "native"},
    "rank": {"memory", "native"},
    "graph": {"native"},
    "memory": {"graph", "native"},
    "native": set(),
}
ONLY_FOR_A_NOTEBOOK = {"anywidget", "ipywidgets", "jupyterlab", "plotly", "tqdm"}
ONLY_FOR_JUPYTER = {*ONLY_FOR_A_NOTEBOOK, "IPython", "ipykernel", "ipyparallel", "jupyter_client"}


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """Each file of a folder with a module that it imports, at its top or inside a function."""
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                module = node.module or ""
                one_by_one = module == "mlxbench_kernel"
                names = [f"{module}.{a.name}" for a in node.names] if one_by_one else [module]
            yield from ((str(path.relative_to(PACKAGE)), name) for name in names)


def test_every_folder_has_its_place() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_inwards(folder: str) -> None:
    allowed = {
        folder,
        "containers",
        "errors",
        "holding",
        "interrupts",
        "lines",
        "units",
        "__version__",
        *MAY_IMPORT[folder],
    }
    wrong = [
        f"{file} imports {name}"
        for file, name in imports(folder)
        if name.startswith("mlxbench_kernel.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["graph", "memory", "models", "native", "training"])
def test_plain_libraries_do_without_jupyter(folder: str) -> None:
    wrong = [pair for pair in imports(folder) if pair[1].split(".")[0] in ONLY_FOR_JUPYTER]
    assert not wrong


def test_ranks_import_no_widget_library() -> None:
    code = (
        "import sys, mlxbench_kernel.rank.engine, mlxbench_kernel.rank.startup as s; s.prepare();"
        "import mlxbench_kernel.rank.pieces, mlxbench_kernel.memory;"
        f"sys.exit(', '.join({ONLY_FOR_A_NOTEBOOK!r} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
