"""Capturing arrays and calls: nothing is evaluated, everything is put back, all has its place."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Graph, Phase, Status, capture
from mlxbench_kernel.graph.guard import ReadError

LAYERS = 3


@pytest.fixture
def user() -> dict[str, Any]:
    """A notebook's variables: a small Llama in training."""
    mx.random.seed(1)
    model = Model(
        ModelArgs(
            model_type="llama", hidden_size=32, num_hidden_layers=LAYERS, intermediate_size=64,
            num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5, vocab_size=50,
        )
    )  # fmt: skip
    optimizer = optim.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    x = mx.random.randint(0, 50, (2, 8))
    mx.eval(model.parameters(), optimizer.state, x)
    done: list[int] = []

    def loss_of(model: nn.Module, x: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x), x).mean()

    value_and_grad = nn.value_and_grad(model, loss_of)

    def step(x: mx.array) -> mx.array:
        loss, gradients = value_and_grad(model, x)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        return loss

    return {"model": model, "optimizer": optimizer, "x": x, "step": step, "done": done,
            "loss_of": loss_of}  # fmt: skip


def paths(graph: Graph, phase: Phase) -> set[str]:
    return {
        graph.scopes[graph.scope[node]].path
        for node in range(graph.nodes)
        if graph.phase[node] == phase and not graph.is_input(node)
    }


def nodes(graph: Graph, primitive: str) -> list[int]:
    return [node for node in range(graph.nodes) if graph.primitive_name(node) == primitive]


def test_a_training_step_is_captured_with_its_names(user: dict[str, Any]) -> None:
    graph = capture(user["step"], user["x"], namespace=user, title="step(x)")
    assert graph.title == "step(x)"
    assert graph.describe(int(graph.outputs[0])) == "float32 []"
    inputs = {graph.name(node) for node in range(graph.nodes) if graph.is_input(node)}
    parameters = {name for name, _ in tree_flatten(user["model"].parameters())}
    assert parameters <= inputs
    assert {"x", "model.layers.0.mlp.up_proj.weight.m"} <= inputs
    names = set(graph.names.values())
    assert "model.layers.2.mlp.up_proj.weight (new)" in names
    assert "gradient of model.layers.2.mlp.up_proj.weight" in names


def test_nodes_stand_with_their_modules_forward_and_backward(user: dict[str, Any]) -> None:
    graph = capture(user["step"], user["x"], namespace=user)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for part in ("self_attn.q_proj", "self_attn", "mlp.down_proj", "mlp", "input_layernorm"):
            assert f"{block}.{part}" in paths(graph, Phase.FORWARD), part
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            assert f"{block}.{part}" in paths(graph, Phase.BACKWARD), part
    assert paths(graph, Phase.OPTIMIZER) == {"optimizer"}
    kinds = {scope.path: scope.kind for scope in graph.scopes}
    assert kinds["model.layers.1"] == "TransformerBlock" and kinds["optimizer"] == "Adam"
    # Each projection of the forward pass is where it was called.
    forward = [n for n in nodes(graph, "Matmul") if graph.phase[n] == Phase.FORWARD]
    assert len(forward) == 9 * LAYERS + 1  # seven projections, and attention by two products
    places = [graph.scopes[graph.scope[node]].path for node in forward]
    assert places.count("model.layers.1.mlp.gate_proj") == 1
    # Two products for the gradients of each: of its weight, and of what it was given.
    backward = [n for n in nodes(graph, "Matmul") if graph.phase[n] == Phase.BACKWARD]
    places = [graph.scopes[graph.scope[node]].path for node in backward]
    assert places.count("model.layers.1.mlp.gate_proj") == 2
    unplaced = [n for n in range(graph.nodes) if graph.scope[n] == 0 and not graph.is_input(n)]
    assert len(unplaced) < 0.1 * graph.nodes


def test_gradients_are_added_up_where_their_array_was_made(user: dict[str, Any]) -> None:
    graph = capture(user["step"], user["x"], namespace=user)
    sums = [node for node in nodes(graph, "Add") if graph.phase[node] == Phase.BACKWARD]
    where = [graph.scopes[graph.scope[node]].path for node in sums]
    # Two residual connections in each block.
    assert all(where.count(f"model.layers.{layer}") >= 2 for layer in range(LAYERS))
    # One more in the loss, which is computed outside of all modules.
    assert "model" not in where and where.count("") == 1


def test_what_is_made_of_a_modules_result_is_not_the_modules(user: dict[str, Any]) -> None:
    graph = capture(lambda x: mx.log(user["model"](x)).sum(), user["x"], namespace=user)
    (log,) = (n for n in nodes(graph, "Log") if graph.phase[n] == Phase.FORWARD)
    assert graph.scopes[graph.scope[log]].path == ""


def test_arrays_that_were_made_lazily_find_their_modules_too(user: dict[str, Any]) -> None:
    loss = user["loss_of"](user["model"], user["x"])
    graph = capture(loss, namespace=user, title="loss")
    found = paths(graph, Phase.FORWARD)
    for layer in range(LAYERS):
        assert {f"model.layers.{layer}.mlp.up_proj", f"model.layers.{layer}.self_attn"} <= found
    assert paths(graph, Phase.BACKWARD) == set()


def test_nothing_is_evaluated_and_all_is_put_back(user: dict[str, Any]) -> None:
    model, optimizer = user["model"], user["optimizer"]

    def state() -> Any:
        held = tree_flatten([model.parameters(), optimizer.state])
        memory = mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory()
        return [id(array) for _, array in held], mx.random.state[0].tolist(), memory

    def dropping(x: mx.array) -> mx.array:
        user["done"].append(1)
        user["x"][0, 0] = 7
        return user["step"](x) * mx.random.uniform()

    capture(dropping, user["x"], namespace=user)
    before, values = state(), np.array(user["x"])
    graph = capture(dropping, user["x"], namespace=user)
    assert state() == before
    assert user["done"] == [] and np.array_equal(np.array(user["x"]), values)
    assert nodes(graph, "RandomBits") and nodes(graph, "SliceUpdate")
    assert graph.status[graph.outputs[0]] == Status.UNSCHEDULED
    # The same step is then really taken.
    user["step"](user["x"])
    assert optimizer.step.item() == 1


READS: dict[str, Callable[[mx.array], Any]] = {
    "item": lambda y: y.sum().item(),
    "truth": lambda y: y if y.sum() > 0 else -y,
    "float": lambda y: float(y.sum()),
    "numpy": lambda y: np.array(y),
    "memoryview": lambda y: memoryview(y),
    "print": lambda y: print(y),
    "f-string": lambda y: f"{y.sum()}",
    "tolist": lambda y: y.tolist(),
}


@pytest.mark.parametrize("kind", READS)
def test_what_reads_a_value_stops_the_capture_and_is_named(user: dict[str, Any], kind: str) -> None:
    def reading(x: mx.array) -> Any:
        return READS[kind](user["model"](x))

    with pytest.raises(ReadError, match=r"test_graph_capture.py:\d+ reads a value"):
        capture(reading, user["x"], namespace=user)
    assert user["model"](user["x"]).sum().item() is not None  # reads work again
    assert mx.eval.__name__ == "eval"


def test_what_is_evaluated_already_can_be_read_in_the_function() -> None:
    x = mx.array([3.0])
    mx.eval(x)
    graph = capture(lambda a: a * x.item(), x)
    assert nodes(graph, "Multiply")


def test_functions_of_mx_compile_with_and_without() -> None:
    fused = mx.compile(lambda a: mx.exp(a) * 2)
    x = mx.array([1.0])
    mx.eval(x)
    graph = capture(fused, x)
    (node,) = graph.fused
    assert "Exp" in graph.fused[node]
    plain = capture(fused, x, compiled=False)
    assert not plain.fused and nodes(plain, "Exp")
    assert capture(fused, x).fused  # mx.compile is on again


def test_a_cache_in_the_users_own_object_is_put_back(user: dict[str, Any]) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(user["model"])
    graph = capture(user["model"], user["x"], cache=cache, namespace={**user, "cache": cache})
    assert graph.nodes > 100
    assert [each.offset for each in cache] == [0] * LAYERS
    assert all(each.keys is None for each in cache)


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        (mx.array([1.0]), (), "is evaluated already"),
        ([], (), "holds no arrays"),
        (5, (), "holds no arrays"),
        (5, (1,), "is no function"),
        (lambda: 5, (), "returned no arrays"),
    ],
)
def test_bad_input_is_one_line(target: Any, arguments: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        capture(target, *arguments)
    assert "\n" not in str(raised.value)


def test_an_error_of_the_function_is_the_functions(user: dict[str, Any]) -> None:
    def wrong(x: mx.array) -> mx.array:
        user["model"].extra = mx.ones(3)
        return x @ mx.ones((3, 3))

    with pytest.raises(ValueError, match="matmul"):
        capture(wrong, user["x"].astype(mx.float32), namespace=user)
    assert "extra" not in user["model"]


def test_two_models_keep_their_variables_names() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    x = mx.ones((2, 4))
    names = SimpleNamespace(teacher=one, student=other)
    graph = capture(lambda: one(x) - other(x), namespace=vars(names))
    found = {graph.name(node) for node in range(graph.nodes)}
    assert {"teacher.weight", "student.weight"} <= found
    assert {"teacher", "student"} <= {scope.path for scope in graph.scopes}
