"""A function that goes on without Python: exported, compiled into a C++ program, run, compared."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import graph_models
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from disks import small_disk
from mlx.utils import tree_flatten
from needs import require

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.graph import mlxfn, to_mlxfn
from mlxbench_kernel.graph.guard import ReadError

X = mx.arange(12).reshape(3, 4) / 12
mx.eval(X)


@dataclass
class Case:
    """A function with arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def expected(self) -> dict[str, mx.array]:
        found = self.function(*self.arguments)
        return found if isinstance(found, dict) else {"output": found}


def mlp() -> Case:
    return Case(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), (X,))


def with_parameters() -> Case:
    """A loss with its gradients, of parameters in a dict."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    parameters = model.parameters()
    mx.eval(parameters)

    def loss(parameters: dict[str, Any], x: mx.array) -> mx.array:
        first, _, second = parameters["layers"]
        hidden = mx.maximum(x @ first["weight"].T + first["bias"], 0)
        return mx.square(hidden @ second["weight"].T + second["bias"]).mean()

    def step(parameters: dict[str, Any], x: mx.array) -> dict[str, mx.array]:
        value, gradients = mx.value_and_grad(loss)(parameters, x)
        return {"loss": value, **dict(tree_flatten(gradients))}

    return Case(step, (parameters, X))


def llama() -> Case:
    case = graph_models.small_llama(layers=2)
    return Case(case.model, (case.x,))


CASES = {"mlp": mlp, "with_parameters": with_parameters, "llama": llama}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> bool:
    assert found.keys() == expected.keys()
    return all(mx.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def exported_and_python_agree(path: Path, function: Callable[..., Any], *arguments: Any) -> None:
    to_mlxfn(path, function, *arguments)
    found = mx.import_function(str(path.with_suffix(".mlxfn")))(*arguments)
    expected = function(*arguments)
    expected = [expected] if isinstance(expected, mx.array) else expected
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and mx.array_equal(one, other)


# In C++


@pytest.mark.parametrize("name", CASES)
def test_a_cplusplus_program_gives_what_python_gives(name: str, tmp_path: Path) -> None:
    require(shutil.which("c++") is not None, "there is no C++ compiler on this machine")
    mx.random.seed(3)
    case = CASES[name]()
    exported = to_mlxfn(tmp_path / name, case.function, *case.arguments)
    run(exported.compile, tmp_path)
    said = run([f"./{name}"], tmp_path)
    expected = case.expected()
    assert same(mx.load(str(tmp_path / f"{name}_outputs.safetensors")), expected)
    assert len(said.splitlines()) == len(expected) == len(exported.outputs)
    for line, output in zip(said.splitlines(), exported.outputs, strict=True):
        assert line.startswith(f"{output.name} {output.dtype} (")

    if name == "mlp":  # with inputs of one's own
        mine = mx.random.normal(X.shape)
        mx.save(str(tmp_path / "mine.npy"), mine)
        run([f"./{name}", "mine.npy", "mine.safetensors"], tmp_path)
        expected = {"output": case.function(mine)}
        assert same(mx.load(str(tmp_path / "mine.safetensors")), expected)
        mx.save_safetensors(str(tmp_path / "other.safetensors"), {"y": mine})
        done = subprocess.run(
            [f"./{name}", "other.safetensors"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr == "./mlp: the inputs hold no array called x\n"


def test_cmake_builds_all_functions_of_a_folder(tmp_path: Path) -> None:
    require(shutil.which("cmake") is not None, "there is no CMake on this machine")
    require(shutil.which("c++") is not None, "there is no C++ compiler on this machine")
    double = to_mlxfn(tmp_path / "double it.mlxfn", lambda x: 2 * x, X)
    to_mlxfn(tmp_path / "mlx", lambda x: 3 * x, X)  # which MLX's own target is called, too
    for command in double.build:
        run(command, tmp_path)
    for name, times in (("double it", 2), ("mlx", 3)):
        run([f"build/{name}"], tmp_path)
        assert same(mx.load(str(tmp_path / f"{name}_outputs.safetensors")), {"output": times * X})


def test_what_is_printed_says_how_to_go_on(tmp_path: Path) -> None:
    case = with_parameters()
    exported = to_mlxfn(tmp_path / "step", case.function, *case.arguments)
    takes = [str(each) for each in exported.inputs]
    assert takes[:2] == ["x float32 [3, 4]", "parameters.layers.0.bias float32 [8]"]
    assert [each.keyword for each in exported.inputs] == [False, True, True, True, True]
    assert exported.outputs[0].name == "loss" and exported.outputs[0].shape == ()
    assert exported.nbytes == exported.function.stat().st_size
    text = str(exported)
    assert text.startswith(f"{tmp_path}/step.mlxfn (") and f"cd {tmp_path}\n" in text
    assert "&& build/step\n" in text and "-o step && ./step" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "step.mlxfn", "step.cpp", "step_inputs.safetensors", "CMakeLists.txt",
    }  # fmt: skip
    example = mx.load(str(exported.example))
    assert same(example, {"x": X, **dict(tree_flatten({"parameters": case.arguments[0]}))})


# What MLX alone would write wrongly


@pytest.mark.parametrize("kind", ["transposed", "broadcast", "sliced", "empty"])
def test_constants_are_right_however_they_lie_in_memory(kind: str, tmp_path: Path) -> None:
    base = mx.arange(16).reshape(4, 4).astype(mx.float32)
    constant = {
        "transposed": base.T,
        "broadcast": mx.broadcast_to(mx.array([1.0, 2.0, 3.0, 4.0]), (4, 4)),
        "sliced": base[1:3, ::2],
        "empty": mx.zeros((0, 4)),
    }[kind]
    mx.eval(constant)
    exported_and_python_agree(tmp_path / "f", lambda x: x + constant, mx.ones(constant.shape))


def test_parameters_that_are_not_evaluated_are_values_in_the_file(tmp_path: Path) -> None:
    model = nn.Linear(64, 64)
    x = mx.ones((2, 64)) * 2
    held = [model.weight, model.bias, x]
    exported = to_mlxfn(tmp_path / "f", model, x)
    assert exported.nbytes > model.weight.nbytes and exported.notes == ()
    assert all(is_lazy(array) for array in held)
    found = mx.import_function(str(exported.function))(x)[0]
    assert mx.array_equal(found, model(x))


def is_lazy(array: mx.array) -> bool:
    module = mlxfn.native.load()
    assert module is not None
    return bool(module.is_lazy(array))


def test_compiled_and_custom_functions_are_written(tmp_path: Path) -> None:
    scale = mx.array(3.0)
    compiled = mx.compile(lambda x: mx.exp(x) * scale + 1)
    exported_and_python_agree(tmp_path / "f", lambda x: mx.checkpoint(compiled)(x) * 2, X)

    @mx.custom_function
    def both(x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        return x + y, x - y

    @both.vjp  # type: ignore[untyped-decorator]
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return cotangents

    exported_and_python_agree(tmp_path / "g", lambda x, y: both(x, y), X, 2 * X)


def test_graphs_are_written_as_they_are_called(tmp_path: Path) -> None:
    exported_and_python_agree(tmp_path / "same", lambda a, b: a - 2 * b, X, X)
    exported_and_python_agree(tmp_path / "closed_over", lambda a: a + X, X)
    exported_and_python_agree(tmp_path / "itself", lambda a: a, X)
    exported_and_python_agree(tmp_path / "unused", lambda a, b: b, X, 2 * X)
    exported_and_python_agree(tmp_path / "nothing", lambda: mx.arange(3))
    exported_and_python_agree(tmp_path / "several", lambda *x: list(x), X, X > 1)
    exported_and_python_agree(tmp_path / "partial", partial(mx.addmm, X), X[:, :3], X)
    exported_and_python_agree(tmp_path / "half", lambda a: a, X.astype(mx.bfloat16))

    free = to_mlxfn(tmp_path / "free", lambda x: x.sum(axis=1), X, shapeless=True)
    assert mx.import_function(str(free.function))(mx.ones((7, 2)))[0].tolist() == [2] * 7


def test_keywords_stay_keywords_whatever_they_are_called(tmp_path: Path) -> None:
    def function(x: mx.array, mask: None, *, fun: mx.array, metadata: list[mx.array]) -> mx.array:
        assert mask is None
        return x * fun + metadata[0]

    exported = to_mlxfn(tmp_path / "f", function, X, None, fun=X, metadata=[2 * X])
    found = mx.import_function(str(exported.function))(X, **{"fun": X, "metadata.0": 2 * X})
    assert mx.array_equal(found[0], X * X + 2 * X)


# Nothing of the user's is changed


def test_nothing_is_evaluated_and_all_is_put_back(tmp_path: Path) -> None:
    mx.random.seed(5)
    model = nn.Sequential(nn.BatchNorm(4), nn.Linear(4, 4), nn.Dropout(0.5))
    lazy = mx.ones((3, 4)) * 2
    key, parameters = mx.random.state[0].tolist(), tree_flatten(model.parameters())
    calls = np.zeros(1)  # which is not put back

    def function(x: mx.array) -> mx.array:
        calls[0] += 1
        model.extra = x
        mx.eval(x)
        return model(x) + lazy

    exported = to_mlxfn(tmp_path / "f", function, lazy)
    assert calls[0] == 1
    assert is_lazy(lazy)
    assert mx.random.state[0].tolist() == key
    after = tree_flatten(model.parameters())
    assert [(name, id(array)) for name, array in after] == [(n, id(a)) for n, a in parameters]
    random, changed = exported.notes
    assert random == "draws the same random numbers at each call: model.eval() turns off"
    assert changed == "leaves out what it changes in modules and variables (3 arrays)"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_compilation_is_as_it_was_before(on: bool, fails: bool, tmp_path: Path) -> None:
    def function(x: mx.array) -> mx.array:
        return x / (1 / (0 if fails else 1))

    calls = []
    compiled = mx.compile(lambda x: calls.append(1) or x + 1)
    try:
        if not on:
            mx.disable_compile()
        try:
            to_mlxfn(tmp_path / "f", function, X)
        except ZeroDivisionError:
            assert fails
        compiled(X)
        compiled(X)
        assert len(calls) == (1 if on else 2)
    finally:
        mx.enable_compile()


# What is refused leaves what was there


def refused(function: Callable[..., Any], *arguments: Any, folder: Path, **keywords: Any) -> str:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((UsageError, StorageError)) as raised:
        to_mlxfn(folder / "f", function, *arguments, **keywords)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a function was exported before."""
    to_mlxfn(tmp_path / "f", lambda x: x, X)
    return tmp_path


def test_arguments_that_are_no_arrays_are_refused(folder: Path) -> None:
    said = partial(refused, folder=folder)
    assert said(lambda x, scale: x * scale, X, 0.5).startswith(
        "scale is a float, and a file takes arrays only: give mx.array(scale) to have it as an "
        "input, or fix it: "
    )
    assert said(lambda x: x, np.ones(3)).startswith("x is a numpy ndarray, ")
    assert said(lambda d: d["a"][1], {"a": [X, True]}).startswith("d.a.1 is a bool, ")
    assert said(lambda x, mode: x, X, mode="fast").startswith("mode is a str, ")
    assert "lambda x: f(model, x)" in said(lambda model, x: model(x), nn.Linear(4, 4), X)
    assert said(lambda d: d, {"a.b": X, "a": {"b": X}}).startswith("two inputs would be called d.a")
    assert "float64" in said(lambda x: x, X.astype(mx.float64, stream=mx.cpu))


def test_an_array_in_place_of_a_function_is_refused(folder: Path) -> None:
    said = refused(mx.ones(3) * 2, folder=folder)  # type: ignore[arg-type]
    assert said.startswith("to_mlxfn takes a function and what it is called with, and array is no")


def test_results_that_are_no_arrays_are_refused(folder: Path) -> None:
    said = partial(refused, folder=folder)
    assert said(lambda x: None, X).startswith("the function returns a NoneType, and ")
    assert said(lambda x: {"a": [x, 3]}, X).startswith("the function returns a int at a.1, and ")
    assert said(lambda x: [], X).startswith("the function returns no arrays")


def test_reading_a_value_is_refused_with_the_line(folder: Path) -> None:
    def function(x: mx.array) -> mx.array:
        return x * x.sum().item()

    message = refused(function, X, folder=folder)
    line = function.__code__.co_firstlineno + 1
    assert message.startswith(f"{__file__}:{line} (function) reads a value (.item()) of a ")
    with pytest.raises(ReadError):
        to_mlxfn(folder / "f", lambda x: x if x.sum() > 0 else -x, X)


def test_what_mlx_cannot_write_is_refused(folder: Path) -> None:
    def chain(x: mx.array) -> mx.array:
        for _ in range(mlxfn.DEEPEST + 1):
            x = mx.sin(x)
        return x

    message = refused(lambda x: mx.linalg.lu(x, stream=mx.cpu), X[:, :3], folder=folder)
    assert message.endswith("it has no form in a file for LUF: compute that outside")
    assert "a chain of 20001 nodes" in refused(chain, X, folder=folder)
    leaked: list[mx.array] = []
    to_mlxfn(folder / "leaking", lambda x: leaked.append(x) or x, X)
    assert leaked == []  # put back


RANK = """
import sys
from functools import partial
import mlx.core as mx
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import to_mlxfn

group = mx.distributed.init(strict=True, backend="ring")
x = mx.ones((2, 4))
other = 1 - group.rank()
late = mx.distributed.all_sum(x, group=group)

def step(x):
    return mx.distributed.all_sum(x, group=group) + mx.distributed.all_max(x, group=group)

for function in (
    partial(mx.distributed.all_sum, group=group),
    partial(mx.distributed.all_gather, group=group),
    partial(mx.distributed.send, dst=other, group=group),
    lambda x: x + mx.distributed.recv_like(x, other, group=group),
    mx.compile(lambda x: mx.exp(mx.distributed.all_min(x, group=group)) + 1),
    mx.checkpoint(step),
    lambda x: x + late,
):
    try:
        print(to_mlxfn(sys.argv[1], function, x))
    except UsageError as error:
        print(error)
try:
    print(to_mlxfn(sys.argv[1], lambda x: x, late))
except UsageError as error:
    print(error)
"""


def test_collectives_are_refused(tmp_path: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second)]
    hosts = tmp_path / "ring.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / f"f{rank}")],
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    assert said[0] == said[1], said
    called = ["all_sum", "all_gather", "send", "recv", "all_min", "all_sum", "all_sum", "all_sum"]
    assert [line.split()[3] for line in said[0][:-1]] == called[:-1], said[0]
    end = ", and a file has no other ranks to call: export a function without collectives, as that "
    assert all(f"{end}of the unsharded model" in line for line in said[0])
    assert said[0][0].startswith("the function calls all_sum (float32 [2, 4]), and ")
    assert said[0][1].startswith("the function calls all_gather (float32 [4, 4]), and ")
    assert " (float32 [2, 4]) and 1 more, and " in said[0][5]
    assert said[0][-1].startswith("an argument calls all_sum (float32 [2, 4]), and ")
    assert [path.name for path in tmp_path.iterdir()] == ["ring.json"]


def test_what_the_function_raises_is_raised(folder: Path) -> None:
    before = (folder / "f.mlxfn").read_bytes()
    for function, kind in (
        (lambda x: 1 / 0, ZeroDivisionError),
        (lambda x: (folder / "none").read_text(), FileNotFoundError),
        (lambda x: x @ x, ValueError),
        (lambda: 1, TypeError),
    ):
        with pytest.raises(kind):
            to_mlxfn(folder / "f", function, X)
    assert (folder / "f.mlxfn").read_bytes() == before
    assert len(list(folder.iterdir())) == 4


def test_without_the_native_module_it_says_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlxfn.native, "load", lambda: None)
    monkeypatch.setattr(mlxfn.native, "reason", lambda: "there is no C++ compiler: install one")
    message = refused(lambda x: x, X, folder=folder)
    assert message == "to_mlxfn needs the native module, and there is no C++ compiler: install one"


# Files


def test_programs_that_were_edited_are_kept(folder: Path) -> None:
    program, cmake = folder / "f.cpp", folder / "CMakeLists.txt"
    written = program.read_text()
    again = to_mlxfn(folder / "f", lambda y: y, X)
    assert again.notes == () and '{"y"}' in program.read_text() and '{"x"}' in written

    program.write_text(program.read_text().replace("return 1;", "return 2;"))
    cmake.write_text("project(mine)\n")
    mine = program.read_text()
    again = to_mlxfn(folder / "f", lambda z: z, X)
    assert program.read_text() == mine and cmake.read_text() == "project(mine)\n"
    assert again.notes == tuple(
        f"leaves {name} as it is: it was changed, or is not of mlxbench"
        for name in ("CMakeLists.txt", "f.cpp")
    )
    assert set(mx.load(str(again.example))) == {"z"}


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert to_mlxfn("v1.2", lambda x: x, X).function == Path("v1.2.mlxfn")
    assert Path("v1.2.cpp").exists() and Path("v1.2_inputs.safetensors").exists()
    os.mkdir("folder.mlxfn")
    for path, message in (
        ("none/f", "cannot write none/f.mlxfn: the folder does not exist: make it, or "),
        ("v1.2.mlxfn/f", "cannot write v1.2.mlxfn/f.mlxfn: part of that path is a file: "),
        ("folder", "cannot write folder.mlxfn: it is a folder: name a file in it, as "),
    ):
        with pytest.raises(StorageError) as raised:
            to_mlxfn(path, lambda x: x, X)
        assert str(raised.value).startswith(message)
    with pytest.raises(UsageError, match="name the file simply"):
        to_mlxfn('a"b', lambda x: x, X)


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    big = mx.zeros((512, 1024))
    with small_disk(tmp_path / "disk", kilobytes=512) as disk:
        to_mlxfn(disk.folder / "f", lambda x: x, X)
        message = refused(lambda x: x + big, X[0, 0], folder=disk.folder)
        assert message.endswith("f.mlxfn: the disk is full: make room there")
