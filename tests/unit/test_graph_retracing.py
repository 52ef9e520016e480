"""What compiled functions are traced for, and that being watched changes nothing else."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from mlxbench_kernel import lines, native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Trace, Watch, capture, traces, watch_retracing
from mlxbench_kernel.graph.stand_in import OWN

MLX = mx.compile
KEPT: list[Any] = []


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watch_retracing() as watch:
        yield watch
    assert mx.compile is MLX


Function = Callable[..., Any]


@pytest.fixture
def scale() -> Function:
    """A function that nothing else has compiled: traces belong to the function."""
    return make_scale()


def make_scale() -> Function:
    def scale(x: mx.array, y: Any = 2.0) -> mx.array:
        """Multiply."""
        return x * y

    return scale


def line() -> int:
    return sys._getframe(1).f_lineno


def why(compiled: Function) -> list[str]:
    return [trace.why for trace in traces(compiled).records]


class Training:
    """A compiled step whose optimizer state grows in the first call."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 4)
        self.optimizer = optim.Adam(1e-3)
        gradients = nn.value_and_grad(self.model, lambda x, y: (self.model(x) - y).square().mean())
        self.state = [self.model.state, self.optimizer.state, mx.random.state]

        def step(x: mx.array, y: mx.array) -> mx.array:
            loss, gradient = gradients(x, y)
            self.optimizer.update(self.model, gradient)
            return loss

        self.step = mx.compile(step, inputs=self.state, outputs=self.state)

    def __call__(self, count: int) -> None:
        mx.eval(self.step(mx.ones((count, 4)), mx.zeros((count, 4))), self.state)


def test_each_trace_says_what_differs_from_the_nearest_earlier_one(
    watch: Watch, scale: Function
) -> None:
    step = mx.compile(scale)
    step(mx.ones((32, 4)))
    step(mx.ones((17, 4)))
    step(mx.ones((17, 4)).astype(mx.float16))
    step(mx.ones((32, 4)), 3)
    step(mx.ones((32, 4)), y=3)
    step(mx.ones((32, 4)), 4)
    assert why(step) == [
        "first",
        "x: (32, 4) → (17, 4)",
        "x: float32 → float16",
        "y: new, 3",
        "y: by position → by name",
        "y: 3 → 4",
    ]
    assert traces(step).records[3].traced_for == "x: float32 (32, 4), y: 3"


def test_calls_that_need_no_trace_run_no_python(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    step(mx.ones(3))
    called = []

    def note(frame: Any, event: str, what: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    x = mx.ones(3)
    sys.setprofile(note)
    try:
        for _ in range(5):
            step(x)
    finally:
        sys.setprofile(None)
    assert called == []
    assert traces(step).total == 1


def test_the_line_is_the_users(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    step(mx.ones(3)), (first := line())
    nn.Sequential(step)(mx.ones(4)), (second := line())
    one, two = (trace.line for trace in traces(step).records)
    assert (one.file, one.number, one.inside) == (__file__, first, "")
    assert one.source.startswith("step(mx.ones(3))") and one.text == f"{__file__}:{first}"
    assert two.number == second and two.inside.startswith("mlx/nn/layers/containers.py:")
    assert "(in mlx/nn/layers/containers.py:" in str(traces(step))


def test_cells_are_called_as_the_notebook_calls_them(
    scale: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_namers", [])
    code = compile("step(x)", "/tmp/ipykernel_1/22.py", "exec")
    names = {"/tmp/ipykernel_1/22.py": "Cell In[5]"}
    seen: list[Trace] = []
    with watch_retracing(seen.append):
        step = mx.compile(scale)
        exec(code, {"step": step, "x": mx.ones(4)})
        lines.name_cells(lambda file, n: f"{names[file]}, line {n}" if file in names else "")
        exec(code, {"step": step, "x": mx.ones(3)})
    assert [trace.line.text for trace in seen] == ["line 1 of the cell", "Cell In[5], line 1"]


def test_state_that_grew_or_changed_is_named(watch: Watch) -> None:
    train = Training()
    train(8), train(8), train(8)
    first, second = traces(train.step).records
    assert len(first.state) == 5 and len(second.state) == 9
    assert first.state[-1].what == "uint32"  # the random state
    assert "inputs[1].weight.m: new, float32 (4, 4)" in second.changes
    assert all(change.startswith("inputs[1].") for change in second.changes)
    train.model.bias = mx.zeros((1, 4))
    train(8)
    assert why(train.step)[2] == "inputs[0].bias: (4,) → (1, 4)"
    assert traces(train.step).records[2].traced_for.endswith("9 arrays of inputs=")


def test_state_is_that_of_the_compiled_form_that_was_called(watch: Watch, scale: Function) -> None:
    one, two = (mx.compile(scale, inputs=[mx.ones(size)]) for size in (5, 6))
    one(mx.ones(3)), two(mx.ones(3))
    assert [[leaf.shape for leaf in t.state] for t in traces(one).records] == [[], [(6,)]]


def test_functions_of_their_state_alone_are_seen(watch: Watch) -> None:
    state, nothing = [mx.ones(2)], mx.compile(lambda: mx.ones(3))
    step = mx.compile(lambda: state[0] * 2, inputs=state)
    step(), step(), nothing(), nothing()
    mx.disable_compile()
    try:
        step(), nothing()
    finally:
        mx.enable_compile()
    state[0] = mx.ones(3)
    step()
    assert why(step) == ["first", "inputs[0]: (2,) → (3,)"]
    assert traces(step).uncompiled == 1
    assert (traces(nothing).total, traces(nothing).uncompiled) == (1, 1)
    assert traces(nothing).records[0].traced_for == "no arguments"


def test_many_changes_are_cut(watch: Watch) -> None:
    step = mx.compile(lambda tree: tree[0] * 2)
    step([mx.ones(3)] * 20)
    step([mx.ones(4)] * 20)
    (*_, last), count = traces(step).records[1].changes, len(traces(step).records[1].changes)
    assert last == "and 12 more" and count == 9
    assert "tree[5]: float32 (3,), 14 more" in traces(step).records[0].traced_for


def test_shapeless_functions_are_traced_for_dimensions_only(watch: Watch, scale: Function) -> None:
    step = functools.partial(mx.compile, shapeless=True)(scale)
    for shape in ((3,), (4,), (5, 6), (7, 8)):
        step(mx.ones(shape))
    step(mx.ones((4,), mx.int32))
    assert why(step) == ["first", "x: (3,) → (5, 6)", "x: float32 → int32"]


def test_nesting_order_and_long_constants_count(watch: Watch) -> None:
    step = mx.compile(lambda tree, name="", **more: mx.ones(3))
    a, b = mx.ones(1), mx.ones(2)
    step({"a": a, "b": [b]})
    step({"b": [b], "a": a})
    step({"a": a, "b": []})
    step({"a": a, "b": [b]}, "n" * 500)
    step({"a": a, "b": [b]}, "n" * 500 + "m")
    step({"a": a, "b": [b]}, "n" * 500, m=None)
    found = why(step)
    assert found[1] == "in another order: tree.a first → tree.b[0] first"
    assert "tree.b: new, []" in found[2] and "tree.b[0]: gone, was float32 (2,)" in found[2]
    assert found[3].startswith("name: new, 'nnn") and "502 characters" in found[3]
    assert "(502 characters) → " in found[4]
    assert found[5] == "m: new, None"


@pytest.mark.parametrize("inside", ["grad", "vmap", "vmap of a lambda", "compiling is off"])
def test_calls_that_mlx_does_not_compile_are_no_traces(
    watch: Watch, inside: str, scale: Function
) -> None:
    step = mx.compile(scale)
    call: Callable[[mx.array], Any] = {
        "grad": mx.grad(lambda x: step(x).sum()),
        "vmap": mx.vmap(step),
        "vmap of a lambda": mx.vmap(lambda x: step(x)),
        "compiling is off": step,
    }[inside]
    if inside == "compiling is off":
        mx.disable_compile()
    try:
        for _ in range(3):
            call(mx.ones((2, 3)))
    finally:
        mx.enable_compile()
    found = traces(step)
    assert (found.total, found.uncompiled, found.inside) == (0, 3, 0)
    assert found.uncompiled_at is not None and found.uncompiled_at.file == __file__
    assert "3 calls ran the Python without compiling" in str(found)
    step(mx.ones((2, 3)))
    assert traces(step).total == 1


def test_a_function_in_another_ones_trace_is_part_of_it(watch: Watch, scale: Function) -> None:
    inner = mx.compile(scale)
    outer = mx.compile(lambda x: inner(x).sum() + inner(mx.ones(5)).sum())
    outer(mx.ones(7)), outer(mx.ones(7))
    inner(mx.ones(5))
    assert traces(outer).total == 1
    assert (traces(inner).total, traces(inner).inside) == (1, 1)
    assert traces(inner).records[0].arguments[0].shape == (5,)


def test_an_outer_function_that_nobody_watches_changes_nothing(scale: Function) -> None:
    inner: list[Function] = []
    outer = mx.compile(lambda x: inner[0](x) + 1)
    with watch_retracing():
        inner.append(mx.compile(scale))
        outer(mx.ones(3))
        assert traces(inner[0]).total == 0


def test_captures_are_no_traces_and_leave_none(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    step(mx.ones(3))
    capture(step, mx.ones(3))
    step(mx.ones(3))
    assert why(step) == ["first"], "what was traced before is not traced again"
    capture(step, mx.ones(4))
    capture(step, mx.ones(5), compiled=False)
    step(mx.ones(3))
    step(mx.ones(4))
    again = "again, after a capture with arguments that it was not traced for"
    assert why(step) == ["first", again, "x: (3,) → (4,)"]
    found = traces(step)
    assert [trace.number for trace in found.retraces] == [3] and found.uncompiled == 0


def test_what_a_function_raises_comes_through(watch: Watch) -> None:
    broken = [True]

    def step(x: mx.array) -> mx.array:
        if broken[0]:
            raise KeyError("mine")
        return x

    compiled = mx.compile(step)
    with pytest.raises(KeyError, match="mine"):
        compiled(mx.ones(3))
    broken[0] = False
    compiled(mx.ones(3))
    assert why(compiled) == ["first (raised KeyError)", "nothing, but trace 1 raised KeyError"]
    with pytest.raises(TypeError):
        mx.compile(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trees of arrays"):
        compiled(object())  # type: ignore[arg-type]
    assert traces(compiled).total == 2


def test_threads_have_traces_of_their_own(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    step(mx.ones(3))
    worker = threading.Thread(target=lambda: step(mx.ones(3)), name="worker")
    worker.start(), worker.join()
    # MLX 0.32.4 forgets the traces of the last thread only: another function that comes to lie at
    # the same address would be given those of this one.
    KEPT.append(step)
    assert why(step)[1].startswith("thread: MainThread → worker")


def test_times_are_of_the_whole_call(scale: Function) -> None:
    module = native.load()
    assert module is not None
    during: list[Any] = []
    with watch_retracing(lambda trace: during.append(module.call_arguments())):
        step = mx.compile(scale)
        step(mx.ones(3))
        with pytest.raises(ValueError, match="broadcast"):
            step(mx.ones(3), mx.ones(4))
    assert during == [None, None]  # told when MLX is done with the call, not when Python is
    assert all(trace.seconds > trace.python_seconds > 0 for trace in traces(step).records)


def test_compiling_the_same_code_again_and_again_is_told(watch: Watch) -> None:
    for _ in range(3):
        step = mx.compile(lambda x: x + 1)
        step(mx.ones(3))
    assert why(step) == ["first, of mx.compile number 3 of this code"]
    assert "mx.compile was called 3 times for this code" in str(traces(step))
    assert watch.traces().total == 3


def runs(compile_: Function) -> list[int]:
    """How often Python runs where one function is compiled twice and one of them goes away."""
    count = 0

    def step(x: mx.array) -> mx.array:
        nonlocal count
        count += 1
        return x + 1

    found = []
    one, two = compile_(step), compile_(fun=step, shapeless=False)
    for each in (one, two):
        each(mx.ones(3))
        found.append(count)
    del two, each
    one(mx.ones(3))
    return [*found, count]


def test_two_compiled_forms_of_one_function_share_traces_as_in_mlx(watch: Watch) -> None:
    assert runs(mx.compile) == runs(MLX) == [1, 1, 2]


class Double:
    kind = "double"

    def __init__(self) -> None:
        self.own = 1

    def __call__(self, x: mx.array) -> mx.array:
        return x * 2

    def method(self, x: mx.array) -> mx.array:
        return x * 3


def decorated() -> Function:
    scale = make_scale()

    @functools.wraps(scale)
    def other(*arguments: Any) -> mx.array:
        return scale(*arguments)

    other.label = "mine"  # type: ignore[attr-defined]
    return other


FUNCTIONS = [
    make_scale(),
    decorated(),
    lambda x: x,
    Double(),
    Double().method,
    functools.partial(make_scale(), y=3),
    nn.Linear(3, 3),
    mx.exp,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_compiled_functions_have_the_attributes_that_mlx_gives_them(
    watch: Watch, function: Any
) -> None:
    theirs, ours = MLX(function), mx.compile(function)
    assert type(ours) is type(theirs)
    assert isinstance(ours, type(function)) == isinstance(theirs, type(function))
    names = {*dir(function), *dir(type(function)), "__wrapped__", "__doc__", "nothing"}
    for name in sorted(names - (OWN - {"__dict__", "__qualname__"})):
        expected, got = (getattr(each, name, "missing") for each in (theirs, ours))
        same = got is expected or type(got) is type(expected)
        assert same, f"{name}: {expected!r} became {got!r}"
        if isinstance(expected, (str, int, tuple, dict)) or inspect.iscode(expected):
            assert got == expected, name
    x = mx.ones(3)
    assert mx.array_equal(ours(x), theirs(x))
    assert traces(ours).total == 1
    with pytest.raises(AttributeError) as wanted:
        _ = theirs.nothing
    with pytest.raises(AttributeError) as got_error:
        _ = ours.nothing
    if inspect.isfunction(function):
        assert str(got_error.value) == str(wanted.value)


def test_signatures_and_later_attributes_are_the_functions(watch: Watch, scale: Function) -> None:
    function = decorated()
    compiled: Any = mx.compile(function)
    function.later = 5  # type: ignore[attr-defined]
    assert compiled.later == 5 and compiled.label == "mine"
    assert inspect.signature(compiled) == inspect.signature(function)
    assert inspect.signature(mx.compile(scale)) == inspect.signature(scale)


def test_results_and_gradients_are_those_of_mlx(watch: Watch) -> None:
    def step(x: mx.array, *rest: mx.array, self: float = 1.0, **more: Any) -> Any:
        return {"out": [x * self, (rest[0], more.get("k"), None)], "n": 3}

    x, y = mx.ones(3), mx.zeros(2)
    ours, theirs = (c(x, y, self=2.0, k=x + 1) for c in (mx.compile(step), MLX(step)))
    assert repr(ours) == repr(theirs)

    def loss(x: mx.array) -> mx.array:
        return mx.sin(x).sum()

    assert mx.array_equal(mx.grad(mx.compile(loss))(x), mx.grad(loss)(x))
    assert mx.array_equal(mx.compile(mx.grad(mx.compile(loss)))(x), mx.grad(loss)(x))


def test_training_goes_as_without_a_watch() -> None:
    def weights() -> list[float]:
        mx.random.seed(3)
        train = Training()
        for count in (4, 4, 3):
            train(count)
        values: list[float] = train.model.weight.flatten().tolist()
        return values

    expected = weights()
    with watch_retracing():
        assert weights() == expected


def test_mlx_is_put_back_when_the_last_watch_stops(scale: Function) -> None:
    one = watch_retracing()
    two = watch_retracing()
    one.stop(), one.stop()
    assert mx.compile is not MLX
    step = mx.compile(scale)
    step(mx.ones(3))
    two.stop()
    assert mx.compile is MLX
    step(mx.ones(4))
    assert (one.traces().total, two.traces().total, traces(step).total) == (0, 1, 1)
    with watch_retracing() as third:
        step(mx.ones(5))
    assert third.traces().total == 1 and traces(step).total == 2


def test_a_replacement_of_somebody_else_stays(scale: Function) -> None:
    watch = watch_retracing()
    ours = mx.compile
    theirs = functools.wraps(ours)(lambda *a, **k: ours(*a, **k))
    mx.compile = theirs
    try:
        watch.stop()
        assert mx.compile is theirs
        with pytest.raises(UsageError, match="no watch was on"):
            traces(mx.compile(scale))
        with watch_retracing():
            step = mx.compile(scale)
            step(mx.ones(3))
            assert traces(step).total == 1
        assert mx.compile is theirs
    finally:
        mx.compile = MLX


def test_functions_compiled_before_are_told_of_and_can_be_compiled_again(scale: Function) -> None:
    state = [mx.ones(2)]
    before = mx.compile(scale, inputs=state)
    with watch_retracing() as watch:
        before(mx.ones(3))
        with pytest.raises(UsageError, match=r"scale was compiled while no watch was on.*") as told:
            traces(before)
        assert "scale = watch.function(scale)" in str(told.value)
        again = watch.function(before)
        again(mx.ones(3))
        assert watch.function(again) is again
        assert traces(again).total == 1 and len(traces(again).records[0].state) == 1
        with pytest.raises(UsageError, match=r"is no function of mx\.compile"):
            watch.function(scale)
    with pytest.raises(UsageError, match="scale is not compiled"):
        traces(scale)
    with pytest.raises(UsageError, match="was stopped"):
        watch.function(before)


def test_a_wrapper_leads_to_its_function(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    wrapper = functools.wraps(step)(lambda *a: step(*a))
    outer = functools.wraps(wrapper)(lambda *a: wrapper(*a))
    outer(mx.ones(3))
    assert traces(outer).total == 1


def test_what_is_told_may_fail_without_harm(
    caplog: pytest.LogCaptureFixture, scale: Function
) -> None:
    def notice(trace: Trace) -> None:
        raise ValueError("of the notice")

    with watch_retracing(notice), caplog.at_level(logging.ERROR):
        step = mx.compile(scale)
        assert step(mx.ones(3)).tolist() == [2.0, 2.0, 2.0]
        assert traces(step).total == 1
    assert "of the notice" in caplog.text


def test_nothing_is_kept_alive(watch: Watch) -> None:
    class Big:
        pass

    def make() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        held, model = Big(), nn.Linear(2, 2)

        def step(x: mx.array) -> mx.array:
            assert held and compiled  # a cycle, as a function that calls itself has
            return model(x)

        compiled = mx.compile(step, inputs=[model])
        compiled(mx.ones(2))
        return weakref.ref(held), weakref.ref(model)

    held, model = make()
    gc.collect()
    assert held() is None and model() is None


def test_without_the_native_module_traces_are_known_by_what_they_are_for(
    monkeypatch: pytest.MonkeyPatch, scale: Function
) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    with watch_retracing():
        step = mx.compile(scale)
        step(mx.ones(3)), step(mx.ones(4)), step(mx.ones(4))
        mx.grad(lambda x: step(x).sum())(mx.ones(4))
        mx.compile(lambda x: step(x))(mx.ones(5))
    found = traces(step)
    assert (found.total, found.uncompiled, found.inside) == (2, 1, 1)
    assert found.records[1].seconds > 0


def test_the_table_is_readable(watch: Watch, scale: Function) -> None:
    step = mx.compile(scale)
    assert str(traces(step)) == "scale: no trace."
    step(mx.ones(3)), step(mx.ones(4))
    found = traces(step)
    head, first, second, caption = str(found).splitlines()
    assert head.split() == ["#", "ms", "called", "at", "differs", "in", "traced", "for"]
    assert len(found) == 2 and all(len(row) == len(found.header) for row in found.rows)
    assert first.startswith("1 ") and "x: (3,) → (4,)" in second
    assert caption == "scale was traced 2 times." and found.retraces == [found.records[1]]
    assert "scale was traced again (number 2) in" in str(found.records[1])
    both = mx.compile(lambda x: x)
    both(mx.ones(3))
    assert [row[0] for row in watch.traces().rows][:2] == ["scale 1", "scale 2"]
