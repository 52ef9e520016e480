"""From a clone or a wheel to the kernel in Jupyter's launcher."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlxbench_kernel import __version__
from mlxbench_kernel.kernel.spec import NAME, RESOURCES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlxbench_kernel"
BUNDLES = [f"mlxbench_kernel/widgets/static/{name}.js" for name in ("graph", "memory")]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the source distribution of the project as it is now."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


# What is asked for


def test_conda_gets_the_dependencies_that_pip_gets(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, lists = environment["dependencies"]
    itself, *listed = lists["pip"]

    assert itself == "--editable .[cpu]"
    assert sorted(listed) == sorted(project["dependencies"])
    assert pip == "pip"
    newest = int(project["classifiers"][-2].rpartition(".")[2])
    assert python == f"python{project['requires-python']},<3.{newest + 1}"


def test_a_mac_needs_only_mlx_and_linux_chooses_a_backend(project: dict[str, Any]) -> None:
    (plain,) = (each for each in map(Requirement, project["dependencies"]) if each.name == "mlx")
    assert not plain.extras
    for backend in ("cpu", "cuda13"):
        (asked,) = map(Requirement, project["optional-dependencies"][backend])
        assert (asked.name, asked.extras, asked.specifier) == ("mlx", {backend}, plain.specifier)
        assert backend in metadata.metadata("mlx").get_all("Provides-Extra")


def test_what_runs_here_is_within_the_bounds(project: dict[str, Any]) -> None:
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_every_import_comes_with_a_dependency(project: dict[str, Any]) -> None:
    installed: set[str] = set()
    wanted = [Requirement(each).name for each in project["dependencies"]]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in installed:
            installed.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            wanted += [each.name for each in needs if not each.marker or each.marker.evaluate()]

    owners = metadata.packages_distributions()
    missing = set()
    for path in PACKAGE.rglob("*.py"):
        for module in _imports(path) - sys.stdlib_module_names - {PACKAGE.name}:
            if not installed & {canonicalize_name(owner) for owner in owners.get(module, [])}:
                missing.add(f"{path.relative_to(ROOT)} imports {module}")
    assert not missing


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


# What is shipped


def test_wheel_and_sdist_hold_the_whole_package(built: Path) -> None:
    ours = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in {".py", ".cpp", ".h", ".js", ".json", ".png", ".svg"}
    }
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}

    assert {"mlxbench_kernel/native/module.cpp", *BUNDLES} <= ours
    assert ours <= in_wheel
    assert ours | {"LICENSE", "README.md", "notebooks/00_quickstart.ipynb"} <= in_sdist
    assert not [each for each in in_wheel | in_sdist if ".venv" in each or "__pycache__" in each]


def test_the_bundle_is_small_and_needs_nothing_from_elsewhere() -> None:
    bundle = "".join((ROOT / each).read_text() for each in BUNDLES)
    assert len(bundle) < 400_000
    assert not re.search(r"""\bimport\s*[({"']|\bfetch\(|XMLHttpRequest|WebSocket""", bundle)


def test_pip_install_puts_the_kernel_into_the_launcher(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    # In an environment of its own: else pip would say that mlxbench is installed already.
    subprocess.run([*pip, "--ignore-installed", "--prefix", str(tmp_path), str(wheel)], check=True)

    kernels = KernelSpecManager(kernel_dirs=[str(tmp_path / "share" / "jupyter" / "kernels")])
    spec = kernels.get_kernel_spec(NAME)
    assert spec.display_name == "MLX Bench"
    assert spec.language == "python"
    assert {path.name for path in Path(spec.resource_dir).iterdir()} == {
        "kernel.json",
        "logo-32x32.png",
        "logo-64x64.png",
        "logo-svg.svg",
    }


def test_jupyter_starts_the_kernel_with_the_python_it_runs_on() -> None:
    manager = KernelManager(
        kernel_name=NAME,
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[_kernels()]),
        connection_file="connection.json",
    )
    command = manager.format_kernel_cmd()
    assert command[:4] == [sys.executable, "-m", "mlxbench_kernel.kernel", "-f"]
    assert command[4].endswith("connection.json")


def _kernels() -> str:
    """The kernels of this environment, where the mlxbench under test is installed."""
    return os.path.join(sys.prefix, "share", "jupyter", "kernels")


def test_a_jupyterlab_elsewhere_learns_of_the_kernel(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxbench_kernel.kernel.spec"],
        env={**os.environ, "JUPYTER_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    folder = tmp_path / "kernels" / NAME
    assert done.stdout == f"The kernel MLX Bench is in {folder}\n"
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["argv"][:3] == [sys.executable, "-m", "mlxbench_kernel.kernel"]
    assert (folder / "logo-svg.svg").exists()


def test_icons_are_pictures_of_the_sizes_that_they_say() -> None:
    for size in (32, 64):
        data = (RESOURCES / f"logo-{size}x{size}.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (size, size)
    assert ElementTree.parse(RESOURCES / "logo-svg.svg").getroot().get("viewBox") == "0 0 64 64"


def test_the_version_is_in_the_changelog(built: Path) -> None:
    assert list(built.glob(f"mlxbench-{__version__}-*.whl"))
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


# make


def make(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that runs the tests
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    if path is not None:
        environment["PATH"] = str(path)
    program = shutil.which("make")
    assert program is not None
    return subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with what the Makefile calls, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("awk", "cat", "sh", "uname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_make_says_what_can_be_made() -> None:
    shown = make().stdout
    assert re.findall(r"^  make (\w+)", shown, re.M) == ["help", "lab", "demo", "test", "clean"]


def test_without_a_python_make_says_what_to_install(tools: Path, tmp_path: Path) -> None:
    script(tools / "python3", "exit 1")  # one that is too old
    done = make("lab", f"VENV={tmp_path / 'venv'}", path=tools)
    assert done.returncode != 0
    (line, _) = done.stderr.splitlines()  # the other one is make's own
    assert line.startswith("mlxbench needs Python 3.11 or newer")
    assert "make lab PYTHON=" in line
    assert not (tmp_path / "venv").exists()


def test_make_passes_over_a_python_that_does_not_run(tools: Path, tmp_path: Path) -> None:
    script(tools / "python3.13", "exit 127")  # as pyenv's shims do for versions not selected
    script(tools / "python3.12", f'exec "{sys.executable}" "$@"')
    venv = tmp_path / "venv"
    done = make(str(venv / "bin" / "python"), f"VENV={venv}", path=tools)
    assert done.returncode == 0, done.stderr
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    assert done.stdout.startswith(f"Making {venv} with {version}")
    assert (venv / "bin" / "pip").exists()


def test_make_installs_again_only_what_changed(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)

    def planned() -> str:
        return make("-n", "demo", f"VENV={venv}", "EXTRA=cpu").stdout

    assert 'pip install --quiet --editable ".[cpu]"' in planned()
    (venv / "installed").write_text(f"{ROOT}\n")
    (venv / "native").touch()
    assert "pip install" not in planned()
    os.utime(venv / "installed", (0, 0))  # as if pyproject.toml had changed since
    assert "pip install" in planned()
    (venv / "installed").write_text("/where/the/project/was/before\n")
    assert "pip install" in planned()


@pytest.mark.parametrize(("extra", "asked"), [("", "[test]"), ("cuda13", "[cuda13,test]")])
def test_make_test_asks_for_the_platforms_extra(extra: str, asked: str, tmp_path: Path) -> None:
    shown = make("-n", "test", f"VENV={tmp_path}", f"EXTRA={extra}").stdout
    assert f'pip install --quiet --editable ".{asked}"' in shown
    plain = f"[{extra}]" if extra else ""
    assert f'pip install --quiet --editable ".{plain}"' in shown
