"""Captures lazy arrays, or what a call would compute, as a `Graph`."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.guard import guarded, kept, uncompiled
from mlxbench_kernel.graph.model import Graph, Status
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.graph.scoping import Scoping, module_paths
from mlxbench_kernel.graph.trace_history import by_capture
from mlxbench_kernel.graph.trees import arrays_in, named_arrays


@dataclass
class Captured:
    """A graph with the arrays that it was read from.

    Attributes
    ----------
    graph : Graph
        What was captured.
    outputs : list of mlx.core.array
        The arrays; still lazy.
    """

    graph: Graph
    outputs: list[mx.array]


def capture(
    target: Any,
    *arguments: Any,
    namespace: Mapping[str, Any] | None = None,
    title: str = "",
    compiled: bool = True,
    **keywords: Any,
) -> Graph:
    """Read what lazy arrays are computed from, or what a call would compute.

    Nothing is evaluated. While a function is called ``mx.eval`` does nothing, and what reads a
    value stops it; afterwards modules, optimizers, arrays and the random state are what they
    were. What else the function does (printing, files, counters in other objects) is done.

    Parameters
    ----------
    target
        Lazy arrays, in any nesting of dicts, lists, tuples, modules and optimizers; or a function,
        which is called with `arguments` and `keywords`.
    *arguments, **keywords
        For the function.
    namespace
        The user's variables by name, after which arrays are called; without it those that the
        function uses.
    title
        What was captured, for those who look at it.
    compiled
        Whether functions of ``mx.compile`` are called as they are; False calls what they were
        made from.

    Returns
    -------
    Graph
        Of a function also what it gave to ``mx.eval`` and what it changed in modules and
        optimizers.

    Raises
    ------
    UsageError
        There is nothing lazy to show, or the function reads a value (`guard.ReadError`).

    Examples
    --------
    >>> capture(loss)
    >>> capture(step, x, y)
    """
    return captured(
        target, *arguments, namespace=namespace, title=title, compiled=compiled, **keywords
    ).graph


def captured(
    target: Any,
    *arguments: Any,
    namespace: Mapping[str, Any] | None = None,
    title: str = "",
    compiled: bool = True,
    **keywords: Any,
) -> Captured:
    """As `capture`, with the arrays, which can be profiled and looked through."""
    called = bool(arguments or keywords) if isinstance(target, Module) else callable(target)
    if called and not isinstance(target, mx.array):
        return captured_call(target, arguments, keywords, namespace, title, compiled)
    if arguments or keywords:
        raise UsageError(f"capture: a {type(target).__name__} is no function to be called")
    return _of_arrays(target, namespace or {}, title)


def _of_arrays(target: Any, namespace: Mapping[str, Any], title: str) -> Captured:
    began, outputs = time.perf_counter(), arrays_in(target)
    if not outputs:
        raise UsageError(
            f"{title or 'this'} holds no arrays ({type(target).__name__}): give lazy arrays, or a "
            "call such as step(x, y)"
        )
    graph = read(outputs)
    if graph.complete and (graph.status[graph.outputs] != Status.UNSCHEDULED).all():
        raise UsageError(
            f"{title or 'this'} is evaluated already, nothing lazy is left to show: capture it "
            "before it is read or given to mx.eval, or the call that makes it, as step(x, y)"
        )
    graph = named(graph, namespace)
    return Captured(graph.with_(title=title, seconds=time.perf_counter() - began), outputs)


def named(graph: Graph, namespace: Mapping[str, Any]) -> Graph:
    """A graph with the user's names of its arrays, and the modules that its nodes belong to.

    Parameters
    ----------
    graph
        As `read` gives it, of arrays that are still there.
    namespace
        The user's variables by name.
    """
    scoping = Scoping(module_paths(_modules(namespace)))
    return scoping.apply(graph.with_(names=_numbers(graph, _names(_visible(namespace)))))


def captured_call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    namespace: Mapping[str, Any] | None,
    title: str,
    compiled: bool,
) -> Captured:
    """`captured` of a call, whatever its arguments are called."""
    began = time.perf_counter()
    known = reached(function) if namespace is None else dict(namespace)
    if isinstance(function, Module):
        known.setdefault("model", function)
    given = _bound(function, arguments, keywords)
    visible = _visible(known)
    before = _names({**given, **visible})
    modules = _modules({**given, **visible})
    scoping = Scoping(module_paths(modules))
    rebound = namespace if isinstance(namespace, dict) else None
    with kept(*visible.values(), *given.values(), namespace=rebound) as changes:
        with guarded() as guard, scoping.noting(), by_capture():
            result = _call(function, arguments, keywords, compiled)
        outputs = _distinct([*arrays_in(result), *guard.evaluated, *changes.changed()])
        if not outputs:
            raise UsageError(
                f"{title or 'the call'} returned no arrays ({type(result).__name__}) and changed "
                "no module or optimizer: have the function return what it computes"
            )
        graph = read(outputs)
        after = {array: f"{name} (new)" for array, name in _numbers(graph, _names(visible)).items()}
        module = native.load()
        if module is not None:
            gradients = {module.array_id(a): f"gradient of {path}" for path, a in scoping.gradients}
            after = {**_numbers(graph, gradients), **after}
        scoping.gradients.clear()
    names = {**after, **_numbers(graph, before)}
    title = title or f"{getattr(function, '__name__', type(function).__name__)}(…)"
    graph = scoping.apply(graph.with_(names=names, title=title))
    return Captured(graph.with_(seconds=time.perf_counter() - began), outputs)


def _visible(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The user's variables, without those that IPython keeps results in."""
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out")
    }


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    compiled: bool,
) -> Any:
    if compiled:
        return function(*arguments, **keywords)
    with uncompiled():
        return function(*arguments, **keywords)


def _distinct(arrays: list[mx.array]) -> list[mx.array]:
    return list({id(array): array for array in arrays}.values())


def _bound(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by the names of the parameters."""
    try:
        return dict(inspect.signature(function).bind(*arguments, **keywords).arguments)
    except (TypeError, ValueError):  # a builtin, or it does not fit: the call says so
        return {**{str(number): each for number, each in enumerate(arguments)}, **keywords}


def reached(function: Callable[..., Any]) -> dict[str, Any]:
    """The variables that a function uses, also through what mx.compile and functools wrap."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, functools.partial):
            fixed = {**{str(n): value for n, value in enumerate(each.args)}, **each.keywords}
            found.update({name: value for name, value in fixed.items() if name not in found})
            waiting += [each.func, *fixed.values()]
            continue
        if inspect.ismethod(each):
            found.setdefault("self", each.__self__)
        each = inspect.unwrap(each) if callable(each) else each
        each = getattr(each, "__func__", each)
        if not inspect.isfunction(each):
            continue
        used = inspect.getclosurevars(each)
        for name, value in {**used.globals, **used.nonlocals}.items():
            if not inspect.ismodule(value):
                found.setdefault(name, value)
                waiting.append(value)
    return found


def _modules(namespace: Mapping[str, Any]) -> dict[str, Module]:
    return {name: value for name, value in namespace.items() if isinstance(value, Module)}


def _names(namespace: Mapping[str, Any]) -> dict[int, str]:
    """MLX's ids of the arrays in the user's variables, with what to call them."""
    module = native.load()
    if module is None:
        return {}
    models = [value for value in namespace.values() if isinstance(value, Module)]
    several = len(models) > 1
    found: dict[int, str] = {}
    for name, value in sorted(namespace.items(), key=lambda item: _precedence(item[1])):
        prefix = name if several or not isinstance(value, Module) else ""
        for path, array in named_arrays(prefix, value):
            found.setdefault(module.array_id(array), path or name)
    return found


def _precedence(value: Any) -> int:
    """Parameters are called after their module, whatever variables hold them besides."""
    kinds = (Module, optim.Optimizer, mx.array)
    return next((place for place, kind in enumerate(kinds) if isinstance(value, kind)), len(kinds))


def _numbers(graph: Graph, names: Mapping[int, str]) -> dict[int, str]:
    ids = graph.id.tolist()
    return {number: names[each] for number, each in enumerate(ids) if each in names}
