"""Captures lazy arrays, or what a call would compute, as a `Graph`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.changes import kept
from mlxbench_kernel.graph.forgetting import forgetting
from mlxbench_kernel.graph.guard import guarded, uncompiled
from mlxbench_kernel.graph.model import Graph, Status
from mlxbench_kernel.graph.naming import array_names, numbered, outer_modules, visible
from mlxbench_kernel.graph.reaching import bound, reached
from mlxbench_kernel.graph.reader import read
from mlxbench_kernel.graph.scoping import Scoping, module_paths
from mlxbench_kernel.graph.trees import arrays_in
from mlxbench_kernel.interrupts import shielded


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
    were, and so are variables, containers and objects of the user's classes that the function
    can reach. What else it does (printing, files, what libraries keep) is done.

    A function of ``mx.compile`` that was not traced for such arguments is traced, and MLX then
    forgets the traces of that function: it is traced again when it is called next.

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
        made from, as is done without the native module.

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
    known = visible(namespace)
    modules = outer_modules(known)
    scoping = Scoping(module_paths(modules))
    return scoping.apply(graph.with_(names=numbered(graph, array_names(known, modules))))


def captured_call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    namespace: Mapping[str, Any] | None,
    title: str,
    compiled: bool,
) -> Captured:
    """`captured` of a call, whatever its arguments are called."""
    known = reached(function)
    if isinstance(function, Module):
        known.setdefault("model", function)
    known = {**known, **bound(function, arguments, keywords)}
    title = title or f"{getattr(function, '__name__', type(function).__name__)}(…)"
    return captured_calls(
        lambda call: call(function, *arguments, **keywords), known, namespace or {}, title, compiled
    )


def captured_calls(
    run: Callable[[Callable[..., Any]], Any],
    known: Mapping[str, Any],
    namespace: Mapping[str, Any],
    title: str,
    compiled: bool,
) -> Captured:
    """`captured` of a program that calls what it likes.

    Parameters
    ----------
    run
        The program, which gives its results. What it is given calls a function, with arguments
        that are to be known by the names of its parameters.
    known
        What they use besides the user's variables, by the names that are to be shown.
    namespace, title, compiled
        As for `captured`.
    """
    began = time.perf_counter()
    known = visible(_and(namespace, known))
    modules = outer_modules(known)
    scoping = Scoping(module_paths(modules))
    rebound = namespace if isinstance(namespace, dict) else None
    module = native.load()
    # Without the native module its traces could not be forgotten.
    compiling = nullcontext() if compiled and module is not None else uncompiled()
    before = array_names(known, modules)

    def call(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        given = array_names(_and(known, bound(function, arguments, keywords)), modules)
        before.update((array, name) for array, name in given.items() if array not in before)
        return function(*arguments, **keywords)

    with shielded(kept(run, *known.values(), namespace=rebound)) as (changes,):
        with shielded(compiling, guarded(), scoping.noting(), forgetting()) as (_, guard, *_):
            result = run(call)
        outputs = _distinct([*guard.evaluated, *arrays_in(result), *changes.changed()])
        if not outputs:
            raise UsageError(
                f"{title} returned no arrays ({type(result).__name__}) and changed no module or "
                "optimizer: have the function return what it computes"
            )
        gradients = (array for _, array in scoping.gradients)
        variables = (value for value in known.values() if isinstance(value, mx.array))
        dropped = changes.only_here(chain(gradients, variables, guard.evaluated, outputs))
        graph = read(outputs, dropped)
        after = {
            array: f"{name} (new)"
            for array, name in numbered(graph, array_names(known, modules)).items()
        }
        if module is not None:
            gradient = {module.array_id(a): f"gradient of {path}" for path, a in scoping.gradients}
            after = {**numbered(graph, gradient), **after}
        scoping.gradients.clear()
    names = {**after, **numbered(graph, before)}
    graph = scoping.apply(graph.with_(names=names, title=title))
    return Captured(graph.with_(seconds=time.perf_counter() - began), outputs)


def _and(names: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The user's names, and then others that are not among them."""
    return {**names, **{name: value for name, value in more.items() if name not in names}}


def _distinct(arrays: list[mx.array]) -> list[mx.array]:
    return list({id(array): array for array in arrays}.values())
