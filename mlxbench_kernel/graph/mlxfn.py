"""Functions in files that C++, C, Swift and Python run: ``mx.export_function``, made safe.

MLX 0.32.4 writes transposed, sliced and broadcast constants wrongly, crashes on collectives and on
long chains, and leaves half a file where it fails (``mlx/export.cpp``). Here it is given a copy of
the graph that it can write (`native/graph_export.h`), or nothing is written.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbench_kernel import native
from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.graph.changes import kept
from mlxbench_kernel.graph.exported import (
    Argument,
    Exported,
    cmake_text,
    is_ours,
    program_text,
)
from mlxbench_kernel.graph.guard import guarded, uncompiled
from mlxbench_kernel.graph.model import Graph
from mlxbench_kernel.graph.reaching import reached
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.graph.saved import not_written
from mlxbench_kernel.graph.signature import Named, Signature, results
from mlxbench_kernel.interrupts import shielded

DEEPEST = 20_000  # nodes in a chain; MLX recurses, and about 60 000 end the process (8 MB of stack)


def to_mlxfn(
    path: str | os.PathLike[str],
    fun: Callable[..., Any],
    /,
    *args: Any,
    shapeless: bool = False,
    **kwargs: Any,
) -> Exported:
    """Write what ``fun(*args, **kwargs)`` computes to a file, with a C++ program that runs it.

    ``fun`` is called once, with ``mx.compile`` off; nothing of the user's is evaluated or changed.
    ``mx.eval`` in it does nothing. Parameters, and whatever other arrays it uses that are not
    arguments, are constants in the file, which becomes as large as they are (`Exported.nbytes`).
    So is the random state: what it draws is the same at each call.

    Beside ``f.mlxfn`` there are then ``f.cpp``, ``f_inputs.safetensors`` with the example
    arguments, and ``CMakeLists.txt``, which builds the programs of all functions of the folder.
    Those that were changed by hand since are left as they are.

    Parameters
    ----------
    path
        As ``f`` or ``f.mlxfn``; files that are there are replaced, all at the end.
    fun
        A function, an ``nn.Module``, or what ``mx.compile`` gives. Returns arrays, in any nesting
        of lists, tuples and dicts.
    *args, **kwargs
        Arrays of any shape and dtype but float64. Arrays in lists, tuples and dicts are inputs
        by name: the ``w`` of a dict that is called ``params`` is ``params.w``.
    shapeless
        Whether other shapes are accepted later; sizes that ``fun`` has looked at are fixed then.

    Returns
    -------
    Exported
        Printed, it says how to build and run the program.

    Raises
    ------
    UsageError
        ``fun`` reads a value (`guard.ReadError`, with the line), has collectives, or takes, gives
        or computes something that a file cannot hold. What ``fun`` raises itself is raised.
    StorageError
        The files could not be written. After all errors what was there before still is.

    Examples
    --------
    >>> print(to_mlxfn("mlp", model, x))
    >>> to_mlxfn("step.mlxfn", loss_and_gradients, parameters, batch)
    """
    if not callable(fun):
        raise UsageError(
            f"to_mlxfn takes a function and what it is called with, and {type(fun).__name__} is "
            "none: type to_mlxfn(path, step, x, y)"
        )
    function = _path(path)
    signature = Signature(fun, args, kwargs)
    module = native.load()
    if module is None:
        raise UsageError(f"to_mlxfn needs the native module, and {native.reason()}")
    if wide := next((name for name, array in signature.inputs if array.dtype == mx.float64), ""):
        raise UsageError(f"{wide} is float64, which MLX's files do not hold: give a float32 array")
    tracing = _Tracing(fun, signature)
    try:
        with tempfile.TemporaryDirectory(dir=function.parent, prefix=f".{function.stem}-") as part:
            return _exported(function, Path(part), tracing, shapeless)
    except OSError as error:
        if error is tracing.raised:
            raise
        raise not_written(function, error) from None


def _path(path: str | os.PathLike[str]) -> Path:
    function = Path(path).expanduser()
    if function.suffix != ".mlxfn":
        function = function.with_name(f"{function.name}.mlxfn")
    if re.search(r'["\\\x00-\x1f]', function.name):
        raise UsageError(f"{function.name!r} cannot stand in a C++ program: name the file simply")
    if function.is_dir():
        raise not_written(function, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    return function


def _exported(
    function: Path,
    folder: Path,
    tracing: _Tracing,
    shapeless: bool,
) -> Exported:
    """Write everything in a folder beside, and then put it into place."""
    name = function.stem
    whole = folder / function.name
    fun, signature = tracing.function, tracing.signature
    with shielded(kept(fun, *reached(fun).values()), guarded(), uncompiled()) as (changes, *_):
        _write(whole, function, tracing, shapeless)
        changed = len(changes.changed())
    made = _imported(whole, signature)
    inputs = tuple(
        Argument(name, array.shape, _dtype(array), number >= len(signature.positional))
        for number, (name, array) in enumerate(signature.inputs)
    )
    outputs = tuple(
        Argument(name, array.shape, _dtype(array))
        for name, array in zip(tracing.names, made, strict=True)
    )
    del made
    _save_example(folder / f"{name}_inputs.safetensors", function, signature.inputs)
    (folder / f"{name}.cpp").write_text(program_text(name, inputs, outputs))
    (folder / "CMakeLists.txt").write_text(cmake_text())
    nbytes = whole.stat().st_size
    notes = list(tracing.notes)
    if changed:
        notes.append(f"leaves out what it changes in modules and variables ({changed} arrays)")
    notes += _put_into_place(folder, function)
    return Exported(
        function=function,
        program=function.with_name(f"{name}.cpp"),
        cmake=function.with_name("CMakeLists.txt"),
        example=function.with_name(f"{name}_inputs.safetensors"),
        nbytes=nbytes,
        inputs=inputs,
        outputs=outputs,
        notes=tuple(notes),
    )


class _Tracing:
    """What MLX calls for the graph that it writes: the user's function, and what can be written."""

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        self.function, self.signature = function, signature
        self.raised: Exception | None = None
        self.called = False
        self.names: list[str] = []
        self.notes: list[str] = []

    def __call__(self, *args: mx.array, **kwargs: mx.array) -> list[mx.array]:
        given = [*args, *(kwargs[name] for name, _ in self.signature.keywords)]
        try:
            value = self.signature.call(self.function, given)
        except Exception as error:
            self.raised = error
            raise
        found = results(value)
        self.called = True
        self.names = [name for name, _ in found]
        outputs = [array for _, array in found]
        _refuse_collectives(read(outputs), "the function")
        outputs, depth = _exportable(outputs, given)
        if depth > DEEPEST:
            raise UsageError(
                f"the function computes a chain of {depth} nodes, and MLX writes at most "
                f"{DEEPEST}: export one turn of its loop"
            )
        if _draws(read(outputs), given):
            self.notes.append("draws the same random numbers at each call: model.eval() turns off")
        return outputs


def _exportable(
    outputs: Sequence[mx.array], inputs: Sequence[mx.array]
) -> tuple[list[mx.array], int]:
    module = native.load()
    assert module is not None
    try:
        copies, depth = module.exportable(list(outputs), list(inputs))
    except ValueError as error:  # an array of another function that is being traced
        raise UsageError(f"the function uses an array without a value: {error}") from None
    return list(copies), int(depth)


def _refuse_collectives(graph: Graph, what: str) -> None:
    """A file runs in one process; MLX would crash on some, and write others as something else."""
    found = [node for node in range(graph.nodes) if graph.collective(node)]
    if found:
        first = found[0]
        made = ", ".join(map(graph.describe, graph.outputs_of(first)))
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UsageError(
            f"{what} calls {graph.collective(first)} ({made}){more}, and a file has no other ranks "
            "to call: export a function without collectives, as that of the unsharded model"
        )


def _draws(graph: Graph, inputs: Sequence[mx.array]) -> bool:
    """Whether there are random numbers of which the key is no input."""
    if "RandomBits" not in graph.primitives:
        return False
    module = native.load()
    assert module is not None
    ids = np.array([module.array_id(array) for array in inputs], np.uint64)
    depends = np.isin(graph.id, ids)
    for node in range(graph.nodes):
        made = graph.outputs_of(node)
        if not graph.is_input(node):
            depends[made.start : made.stop] = depends[graph.inputs_of(node)].any()
        if graph.primitive_name(node) == "RandomBits" and not depends[made.start]:
            return True
    return False


def _write(part: Path, function: Path, tracing: _Tracing, shapeless: bool) -> None:
    signature = tracing.signature
    try:
        mx.export_function(
            str(part),
            tracing,
            [array for _, array in signature.positional],
            dict(signature.keywords),
            shapeless=shapeless,
        )
    except (RuntimeError, ValueError) as error:
        if not tracing.called:
            raise
        said = str(error).splitlines()[0]
        if said.startswith("[write]"):
            raise _full(function) from None
        if primitive := re.search(r"Unable to serialize primitive (\w+)", said):
            said = f"it has no form in a file for {primitive[1]}: compute that outside"
        raise UsageError(f"MLX cannot export the function: {said}") from None


def _full(function: Path) -> StorageError:
    return not_written(function, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def _imported(part: Path, signature: Signature) -> list[mx.array]:
    """What the file gives, lazily: whether MLX can read it again is found out here."""
    try:
        imported: Callable[..., Any] = mx.import_function(str(part))  # type: ignore[assignment]
        return list(
            imported([array for _, array in signature.positional], dict(signature.keywords))
        )
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"MLX cannot read what it has written of the function: {said}") from None


def _save_example(part: Path, function: Path, inputs: Sequence[Named]) -> None:
    """Save the example arguments, computed from a copy where they are lazy."""
    arrays = [array for _, array in inputs]
    if arrays:
        _refuse_collectives(read(arrays), "an argument")
        arrays, _ = _exportable(arrays, [])
    try:
        mx.save_safetensors(str(part), dict(zip((name for name, _ in inputs), arrays, strict=True)))
    except RuntimeError as error:
        if not str(error).startswith("[write]"):
            raise
        raise _full(function) from None


def _dtype(array: mx.array) -> str:
    return str(array.dtype).rpartition(".")[2]


def _put_into_place(folder: Path, function: Path) -> list[str]:
    """Move the files to where they belong, the function last; lines on those that stay."""
    notes = []
    for part in sorted(folder.iterdir(), key=lambda part: (part.suffix == function.suffix, part)):
        target = function.with_name(part.name)
        if part.suffix in (".cpp", ".txt") and not is_ours(target):
            notes.append(f"leaves {target.name} as it is: it was changed, or is not of mlxbench")
            continue
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    return notes
