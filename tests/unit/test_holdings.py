"""The largest variables of a rank, looked at without changing them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from arrays import computing, ones
from IPython.core.autocall import ExitAutocall
from traitlets import HasTraits

from mlxbench_kernel import native
from mlxbench_kernel.rank.holdings import COUNT, TEXT, Held, largest

KB = 1000


pytestmark = pytest.mark.usefixtures("counted")


def test_arrays_and_trees_are_named_with_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 50))
    optimizer = optim.Adam(0.1)
    optimizer.init(model.trainable_parameters())
    mx.eval(model, optimizer.state)
    namespace = {
        "w": mx.contiguous(mx.zeros((3, 100 * KB), dtype=mx.bfloat16) + 1),
        "n": np.zeros((5, 5 * KB)),
        "model": model,
        "optimizer": optimizer,
        "raw": b"x" * 20 * KB,
        "size": 3,
    }
    mx.eval(namespace["w"])
    found = {held.name: held for held in largest(namespace)}
    assert list(found) == ["w", "n", "optimizer", "model", "raw"]
    assert found["w"] == Held("w", 600 * KB, "bfloat16 (3, 100000)")
    assert found["n"] == Held("n", 200 * KB, "float64 (5, 5000)")
    parameters = 4 * (100 * 100 + 100 + 100 * 50 + 50)
    assert found["model"].kind == "Sequential"
    assert parameters <= found["model"].bytes < 1.1 * parameters
    assert 2 * parameters <= found["optimizer"].bytes < 2.2 * parameters, "its moments"


def test_a_buffer_counts_once_and_for_the_one_who_has_a_name_for_it() -> None:
    base, numbers = ones(100 * KB), np.zeros(100 * KB, np.uint8)
    view, row = base[: 50 * KB], numbers[10:].reshape(-1, 10)
    broadcast = mx.broadcast_to(mx.array(1.0), (1000, 1000))
    mx.eval(view, broadcast)
    namespace = {"_": base, "Out": {3: base}, "b": [view, base], "c": base, "r": row, "n": numbers,
                 "broadcast": broadcast}  # fmt: skip
    found = {held.name: held.bytes for held in largest(namespace, hidden={"Out"})}
    assert found == {"b": 100 * KB, "r": 100 * KB}
    assert [held.name for held in largest({"Out": {3: base}}, hidden={"Out"})] == [
        "IPython's results"
    ]


def test_looking_evaluates_nothing_and_keeps_the_graph() -> None:
    before = mx.get_active_memory()
    lazy = ones(10) + mx.zeros((1000, 1000, 10), dtype=mx.uint8)
    assert largest({"lazy": lazy, "all": [lazy, lazy * 2]}) == []
    assert mx.get_active_memory() - before < KB
    assert native.load().buffers([lazy]) == [(0, 0)]
    mx.eval(lazy)
    assert largest({"lazy": lazy})[0].bytes >= 10_000 * KB


def test_what_a_class_of_the_user_does_is_never_called() -> None:
    class Own(list):
        def __iter__(self):
            raise AssertionError

        def __getattr__(self, name):
            raise AssertionError

        @property
        def dtype(self):
            raise AssertionError

        __len__ = __eq__ = __hash__ = __bool__ = __iter__

    own = Own()
    own.append(ones(20 * KB))
    own.attribute = {"deep": (ones(30 * KB),)}
    own.cycle = own
    assert largest({"own": own}) == [Held("own", 50 * KB, "Own")]


def test_what_leads_back_to_all_variables_is_not_gone_into() -> None:
    class Shell(HasTraits):
        pass

    shell, exit = Shell(), ExitAutocall()
    namespace = {"shell": shell, "exit": exit, "x": ones(20 * KB)}
    shell.user_ns = exit._ip = namespace["mine"] = namespace
    assert [held.name for held in largest(namespace)] == ["x"]


def test_only_the_largest_are_named_and_shortly() -> None:
    namespace = {f"{'n' * 100}{i}": ones((i + 20) * KB) for i in range(9)}
    found = largest(namespace)
    assert [held.bytes for held in found] == [(28 - i) * KB for i in range(COUNT)]
    assert all(len(held.name) <= TEXT for held in found)


def test_a_walk_ends_after_so_many_objects() -> None:
    looked = []

    class Counted:
        def __getattribute__(self, name):  # object's own is used: it counts nothing
            looked.append(name)

    namespace = {"first": ones(20 * KB), "long": [Counted() for _ in range(5_000)], "z": ones(KB)}
    assert [held.name for held in largest(namespace, objects=1_000)] == ["first"]
    assert [held.name for held in largest(namespace, seconds=0.0)] == ["first"]
    assert looked == []


def test_a_walk_while_another_thread_computes_and_changes_variables() -> None:
    namespace: dict[str, object] = {}
    with computing(namespace):
        for _ in range(300):
            largest(namespace)
    assert {held.kind for held in largest(namespace)} == {"list"}
