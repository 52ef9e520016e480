"""The compiled module: ``mx.distributed.init`` without the GIL, and memory to receive into.

It is compiled on the machine against the installed MLX, by ``make`` or on first use, and
kept per MLX, nanobind and Python version. Without a compiler everything still works; a
rank that waits for its neighbours then answers nothing meanwhile.
"""

from __future__ import annotations

import importlib.util
import threading
from types import ModuleType

from mlxbench_kernel.native import build

__all__ = ["load", "ready", "reason"]

_deciding = threading.Lock()
_decided: tuple[ModuleType | None, str] | None = None


def load() -> ModuleType | None:
    """Give the module, compiled first where that was not done yet (about 12 s).

    Decided once per process: after a failure, a new process tries again.

    Returns
    -------
    module or None
        What it offers is in ``module.cpp``, each with its docstring. None where it cannot be
        had; nothing is raised, and `reason` says why.
    """
    global _decided
    with _deciding:
        if _decided is None:
            try:
                _decided = _load(), ""
            except build.BuildError as error:
                _decided = None, str(error)
            # Whatever else happens here, a rank can do its work without the module.
            except Exception as error:
                _decided = None, f"the native module failed with {type(error).__name__}: {error}"
        return _decided[0]


def reason() -> str:
    """Say in one line why `load` gave None and what to install; "" where it did not."""
    return "" if _decided is None else _decided[1]


def ready() -> bool:
    """Whether the module is compiled already; compiles and loads nothing."""
    try:
        return build.target().exists()
    except (build.BuildError, OSError):
        return False


def _load() -> ModuleType:
    path = build.build()
    mlx, nanobind = build.installed()  # MLX's library is in the process before ours asks for it
    spec = importlib.util.spec_from_file_location(build.NAME, path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        if "another version of nanobind" in str(error):  # module.cpp says so
            raise build.BuildError(
                f"nanobind {nanobind.__version__} is not the one that MLX {mlx.__version__} was "
                "built with: pip install nanobind==VERSION, with the version that MLX's "
                "CMakeLists.txt names (3.1.0 for MLX 0.32.4)"
            ) from None
        raise build.BuildError(
            f"{path} does not load; remove it to compile it anew ({error})"
        ) from None
    return module
