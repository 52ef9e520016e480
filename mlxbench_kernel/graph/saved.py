"""Graphs in files: JSON with a version, and the arrays in it as compressed base64."""

from __future__ import annotations

import base64
import errno
import json
import os
import tempfile
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.graph.model import Graph, Phase, Scope, Status

FORMAT, VERSION = "mlxbench graph", 1
_LARGEST = 256 << 20  # bytes that one array of a file may unpack to: millions of nodes
_LONGEST = np.iinfo(np.int32).max  # extent that MLX has (``ShapeElem`` in ``mlx/array.h``)
_ARRAYS: dict[str, type[np.generic]] = {
    "primitive": np.int32,
    "arguments": np.int32,
    "device": np.uint8,
    "stream": np.int32,
    "scope": np.int32,
    "phase": np.uint8,
    "output_start": np.int32,
    "input_start": np.int32,
    "inputs": np.int32,
    "node": np.int32,
    "dtype": np.int32,
    "shape_start": np.int32,
    "extents": np.int64,
    "nbytes": np.int64,
    "status": np.uint8,
    "held": np.int32,
    "buffer": np.uint64,
    "buffer_bytes": np.int64,
    "id": np.uint64,
    "outputs": np.int32,
}
_CAUSES = {
    errno.ENOSPC: "the disk is full: make room there",
    errno.EROFS: "the disk is read-only: name a folder on another one",
    errno.EACCES: "you may not write there: name a folder of yours",
    errno.ENOENT: "the folder does not exist: make it, or name another one",
    errno.ENOTDIR: "part of that path is a file: name another folder",
    errno.EISDIR: "it is a folder: name a file in it, as g.json",
}


# What reading something else than what was written may raise.
_WRONG = (
    KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError,
    zlib.error,
)  # fmt: skip


class _Damaged(Exception):
    """What is wrong with the contents of a file."""


def to_json(graph: Graph) -> str:
    """What `save` writes."""
    known = {field.name for field in fields(Graph)} - {*_ARRAYS, "scopes", "names", "fused"}
    contents = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(graph, name) for name in sorted(known)},
        "scopes": [[scope.path, scope.kind] for scope in graph.scopes],
        "names": {str(array): name for array, name in graph.names.items()},
        "fused": {str(node): list(inside) for node, inside in graph.fused.items()},
        "arrays": {name: _packed(getattr(graph, name), kind) for name, kind in _ARRAYS.items()},
    }
    return json.dumps({**contents, "check": _check(contents)})


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to a file, whole or not at all.

    Parameters
    ----------
    graph
        Any graph. Its values are not in it, and so not in the file.
    path
        As ``g.json``; a file that is there already is replaced.

    Raises
    ------
    StorageError
        It could not be written; what was there before still is.
    """
    path = Path(path).expanduser()
    try:
        _write_whole(path, to_json(graph))
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> StorageError:
    """What to raise where a file could not be written, with what to do about it."""
    cause = _CAUSES.get(error.errno or 0, f"{error.strerror}: name another file")
    return StorageError(f"cannot write {path}: {cause}")


def load(path: str | os.PathLike[str]) -> Graph:
    """Read a graph that `save` wrote.

    Raises
    ------
    UsageError
        There is no such file, or it is damaged, of something else, or of a newer mlxbench.
    """
    path = Path(path).expanduser()
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else error.strerror
        raise UsageError(f"cannot read {path}: {reason}: name a file that graph.save wrote") from (
            None
        )
    except (ValueError, RecursionError):
        raise _refusal(path, "it is no JSON, or only a part of it") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UsageError(f"{path} holds no graph of mlxbench: name a file that graph.save wrote")
    version = contents.get("version")
    if type(version) is not int or version < 1:
        raise _refusal(path, f"its format version is {version!r}")
    if version > VERSION:
        raise UsageError(
            f"{path} has format version {version}, this mlxbench reads up to {VERSION}: "
            "type pip install --upgrade mlxbench"
        )
    try:
        graph = _checked(_graph(contents))
        # Last: what is missing or does not fit says more than that something is wrong.
        if contents.pop("check") != _check(contents):
            raise _Damaged("its contents are not those that were written")
    except (_Damaged, *_WRONG) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise _refusal(path, reason.partition("\n")[0] or type(error).__name__) from None
    return graph


def _check(contents: dict[str, Any]) -> int:
    """A sum over the contents: most of what is written over in a file still looks like a graph."""
    return zlib.crc32(json.dumps(contents, sort_keys=True).encode())


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} is damaged ({reason}): save the graph again")


def _packed(array: NDArray[Any], kind: type[np.generic]) -> str:
    little = np.ascontiguousarray(array, np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 1)).decode()


def _unpacked(text: str, kind: type[np.generic]) -> NDArray[Any]:
    unpack = zlib.decompressobj()
    data = unpack.decompress(base64.b64decode(text, validate=True), _LARGEST)
    if not unpack.eof:
        raise _Damaged("an array is cut off or too long")
    return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).astype(kind)


def _graph(contents: dict[str, Any]) -> Graph:
    arrays = {name: _unpacked(contents["arrays"][name], kind) for name, kind in _ARRAYS.items()}
    return Graph(
        **arrays,
        primitives=_texts(contents["primitives"]),
        dtypes=_texts(contents["dtypes"]),
        texts=_texts(contents["texts"]),
        scopes=tuple(Scope(*_texts(pair)) for pair in contents["scopes"]),
        names={int(array): _text(name) for array, name in contents["names"].items()},
        fused={int(node): _texts(inside) for node, inside in contents["fused"].items()},
        title=_text(contents["title"]),
        complete=bool(contents["complete"]),
        seconds=float(contents["seconds"]),
        hint=_text(contents["hint"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Damaged("a text is none")
    return value


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise _Damaged("a list of texts is none")
    return tuple(map(_text, values))


def _checked(graph: Graph) -> Graph:
    """The graph, if its arrays fit together: what reads it relies on that."""
    nodes, arrays, edges = graph.nodes, graph.arrays, graph.edges
    for name in ("arguments", "device", "stream", "scope", "phase"):
        _require(len(getattr(graph, name)) == nodes, name)
    for name in ("dtype", "nbytes", "status", "held", "buffer", "buffer_bytes", "id"):
        _require(len(getattr(graph, name)) == arrays, name)
    for name, count, end in (
        ("output_start", nodes, arrays),
        ("input_start", nodes, edges),
        ("shape_start", arrays, len(graph.extents)),
    ):
        start = getattr(graph, name)
        _require(len(start) == count + 1 and start[0] == 0 and start[-1] == end, name)
        _require(bool((np.diff(start) >= 0).all()), name)
    for name, most in (
        ("primitive", len(graph.primitives)),
        ("arguments", len(graph.texts)),
        ("scope", len(graph.scopes)),
        ("inputs", arrays),
        ("dtype", len(graph.dtypes)),
        ("outputs", arrays),
        ("device", 2),
        ("phase", len(Phase)),
        ("status", len(Status)),
    ):
        values = getattr(graph, name)
        _require(bool(((values >= 0) & (values < most)).all()), name)
    _require(
        np.array_equal(graph.node, np.repeat(np.arange(nodes), np.diff(graph.output_start))), "node"
    )
    _require(bool((np.diff(graph.output_start) > 0).all()), "output_start")
    _require(bool((graph.sources < graph.targets).all()), "inputs")
    _require(bool(((graph.extents >= 0) & (graph.extents <= _LONGEST)).all()), "extents")
    _require(bool((graph.nbytes >= 0).all()), "nbytes")
    _require(all(0 <= array < arrays for array in graph.names), "names")
    _require(all(0 <= node < nodes for node in graph.fused), "fused")
    _require(bool(graph.scopes) and graph.primitives[:1] == ("",), "primitives")
    return graph


def _require(right: bool, name: str) -> None:
    if not right:
        raise _Damaged(f"{name} does not fit the rest")


def _write_whole(path: Path, text: str) -> None:
    """Write under another name in the same folder, and rename: readers see all or nothing."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
