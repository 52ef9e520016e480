"""Where the nodes of a training step stand: in which module, and in which phase."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxbench_kernel.graph import Explorer, Graph, Phase, capture, load
from mlxbench_kernel.graph.scoping import module_paths

Loss = Callable[..., mx.array]


def mean_square(model: nn.Module, x: mx.array) -> mx.array:
    y = model(x)
    return (y[0] if isinstance(y, tuple) else y).square().mean()


def next_token(model: nn.Module, x: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(x), x).mean()


def step_of(model: nn.Module, loss: Loss, optimizer: optim.Optimizer) -> Callable[..., mx.array]:
    value_and_grad = nn.value_and_grad(model, loss)

    def step(*inputs: mx.array) -> mx.array:
        value, gradients = value_and_grad(model, *inputs)
        optimizer.update(model, gradients)
        return value

    return step


def training(model: nn.Module, loss: Loss, *inputs: mx.array) -> Graph:
    optimizer = optim.Adam(1e-3)
    mx.eval(model.parameters(), inputs)
    names = {"model": model, "optimizer": optimizer}
    return capture(step_of(model, loss, optimizer), *inputs, namespace=names)


def path(graph: Graph, node: int) -> str:
    return graph.scopes[graph.scope[node]].path


def where(graph: Graph, primitives: str, phase: Phase) -> Counter[str]:
    return Counter(
        path(graph, node)
        for node in range(graph.nodes)
        if graph.primitive_name(node) in primitives.split() and graph.phase[node] == phase
    )


def computed(graph: Graph, phase: Phase) -> int:
    return int(((graph.phase == phase) & (graph.primitive != 0)).sum())


def phase_of(graph: Graph, output: int) -> Phase:
    return Phase(int(graph.phase[graph.node[graph.outputs[output]]]))


class Residual(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = nn.BatchNorm(channels)
        self.skip = nn.Conv2d(inputs, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.relu(self.skip(x) + self.norm(self.conv(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = {"rnn": nn.LSTM(4, 8), "heads": [[nn.Linear(8, 2)], nn.Dropout(0.1)]}

    def __call__(self, x: mx.array) -> mx.array:
        hidden, _ = self.parts["rnn"](x)
        (head,), dropout = self.parts["heads"]
        return head(dropout(hidden)[:, -1])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.activation, self.outer = nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.outer(self.activation(self.inner(x)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block() for _ in range(2)]
        self.head = nn.Linear(8, 2)

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.blocks:
            x = nn.utils.checkpoint(block)(x)
        return self.head(x)


def llama() -> nn.Module:
    return Model(
        ModelArgs(
            model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=64,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=64,
        )
    )  # fmt: skip


def adapted_llama() -> nn.Module:
    model = llama()
    nn.quantize(model, group_size=32)
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    return model


IMAGES, TOKENS, ROWS = (2, 8, 8, 3), (2, 8), (3, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], Loss, mx.array]] = {
    "convolutions": (
        lambda: nn.Sequential(Residual(3, 8), Residual(8, 16)), mean_square, mx.ones(IMAGES)),
    "transformer": (
        lambda: nn.TransformerEncoder(2, 16, 2, mlp_dims=32),
        lambda model, x: model(x, None).square().mean(), mx.ones((2, 5, 16))),
    "recurrent": (Recurrent, mean_square, mx.ones((2, 5, 4))),
    "llama": (llama, next_token, mx.zeros(TOKENS, mx.int32)),
    "quantized llama with adapters": (adapted_llama, next_token, mx.zeros(TOKENS, mx.int32)),
    "checkpoints": (Checkpointed, mean_square, mx.ones(ROWS)),
}  # fmt: skip


@contextmanager
def streams_of_their_own(model: nn.Module) -> Iterator[dict[int, str]]:
    """Each module computes in a stream of its own: the paths by the numbers of the streams.

    MLX computes the gradients of an operation in the stream of that operation, so the streams of
    a graph say where its nodes belong, without anything that this package does.
    """
    streams: dict[int, Any] = {}
    paths: dict[int, str] = {}
    for name, module in model.named_modules():
        stream = streams[id(module)] = mx.new_stream(mx.cpu)
        paths[int(repr(stream).rstrip(")").rpartition(",")[2])] = name
    kinds = {type(module): type(module).__call__ for _, module in model.named_modules()}

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
            with mx.stream(streams[id(module)]):
                return original(module, *arguments, **keywords)

        return call

    own = {kind: kind.__dict__.get("__call__") for kind in kinds}
    try:
        for kind, call in kinds.items():
            kind.__call__ = wrapped(call)  # type: ignore[method-assign]
        yield paths
    finally:
        for kind, original in own.items():
            if original is None:
                del kind.__call__
            else:
                kind.__call__ = original


@pytest.mark.parametrize("name", MODELS)
def test_each_operation_stands_in_the_module_that_it_was_made_for(name: str) -> None:
    make, loss, x = MODELS[name]
    model = make()
    with streams_of_their_own(model) as paths:
        graph = training(model, loss, x)
    checked = Counter[Phase]()
    for node in range(graph.nodes):
        # Gradients of an array that several take are added up in what is around these, and
        # parameters are copied to be differentiated before any module is called.
        kind = graph.primitive_name(node)
        if int(graph.stream[node]) in paths and kind not in ("Add", "Copy"):
            assert path(graph, node) == paths[int(graph.stream[node])], (kind, node)
            checked[Phase(int(graph.phase[node]))] += 1
    assert checked[Phase.FORWARD] > 20 and checked[Phase.BACKWARD] > 20


def test_running_statistics_are_the_modules_and_forward() -> None:
    graph = training(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm(4)), mean_square,
                     mx.ones(IMAGES))  # fmt: skip
    found = {
        name: node
        for node in range(graph.nodes)
        if (name := graph.name(node)).endswith("(new)") and "running" in name
    }
    assert len(found) == 2
    assert {path(graph, node) for node in found.values()} == {"layers.1"}
    assert {graph.phase[node] for node in found.values()} == {Phase.FORWARD}


def test_a_buffer_that_a_module_changes_in_place_is_the_modules() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.average = mx.zeros(8)

        def __call__(self, x: mx.array) -> mx.array:
            self.average[:] = 0.9 * self.average + 0.1 * mx.stop_gradient(x).max(0)
            return x

    model = nn.Sequential(Averaging(), nn.Linear(8, 8))
    graph = training(model, mean_square, mx.ones(ROWS))
    assert where(graph, "Max", Phase.FORWARD) == {"layers.0": 1}


def test_gradients_of_several_batches_stand_in_their_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, x = optim.SGD(0.1), mx.ones(ROWS)
    mx.eval(model.parameters(), x)
    value_and_grad = nn.value_and_grad(model, mean_square)

    def step(x: mx.array) -> tuple[mx.array, mx.array]:
        total, gradients = value_and_grad(model, x)
        for scale in (2, 3):
            value, more = value_and_grad(model, x * scale)
            total, gradients = total + value, tree_map(mx.add, gradients, more)
        gradients, norm = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return total, norm

    graph = capture(step, x, namespace={"model": model, "optimizer": optimizer})
    assert where(graph, "Matmul", Phase.BACKWARD) == {"layers.0": 3, "layers.2": 6}
    assert [phase_of(graph, 0), phase_of(graph, 1)] == [Phase.FORWARD, Phase.BACKWARD]
    (norm,) = (n for n in range(graph.nodes) if graph.primitive_name(n) == "Sqrt")
    assert path(graph, norm) == ""  # of all layers together


def test_both_losses_of_adversaries_are_forward() -> None:
    generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    one, other = optim.Adam(1e-3), optim.SGD(1e-3)
    real, noise = mx.ones((2, 6)), mx.ones((2, 4))
    mx.eval(generator.parameters(), critic.parameters(), real, noise)

    def judged(critic: nn.Module, real: mx.array, noise: mx.array) -> mx.array:
        return (critic(mx.stop_gradient(generator(noise))) - critic(real)).mean()

    def deceived(generator: nn.Module, noise: mx.array) -> mx.array:
        return -critic(generator(noise)).mean()

    def step(real: mx.array, noise: mx.array) -> tuple[mx.array, mx.array]:
        first, gradients = nn.value_and_grad(critic, judged)(critic, real, noise)
        other.update(critic, gradients)
        second, gradients = nn.value_and_grad(generator, deceived)(generator, noise)
        one.update(generator, gradients)
        return first, second

    names = {"generator": generator, "critic": critic, "one": one, "other": other}
    graph = capture(step, real, noise, namespace=names)
    assert [phase_of(graph, 0), phase_of(graph, 1)] == [Phase.FORWARD, Phase.FORWARD]
    forward = where(graph, "AddMM", Phase.FORWARD)
    assert forward == {"critic.layers.0": 3, "critic.layers.2": 3,
                       "generator.layers.0": 2, "generator.layers.2": 2}  # fmt: skip
    assert where(graph, "AddMM", Phase.BACKWARD) == {}
    backward = where(graph, "Matmul", Phase.BACKWARD)
    assert backward["generator.layers.0"] == 1 and "" not in backward


def test_what_is_reported_beside_the_loss_does_not_hide_it() -> None:
    model, optimizer, x = nn.Linear(8, 4), optim.SGD(0.1), mx.ones(ROWS)
    labels = mx.array([0, 1, 2])
    mx.eval(model.parameters(), x, labels)

    def loss(model: nn.Module, x: mx.array) -> tuple[mx.array, mx.array]:
        scores = model(x)
        hits = scores.argmax(1) == labels
        return nn.losses.cross_entropy(scores, labels).mean(), hits.astype(mx.float32).mean()

    def step(x: mx.array) -> tuple[mx.array, mx.array]:
        (value, accuracy), gradients = nn.value_and_grad(model, loss)(model, x)
        optimizer.update(model, gradients)
        return value, accuracy

    graph = capture(step, x, namespace={"model": model, "optimizer": optimizer})
    assert [phase_of(graph, 0), phase_of(graph, 1)] == [Phase.FORWARD, Phase.FORWARD]
    assert where(graph, "LogSumExp", Phase.FORWARD) and computed(graph, Phase.BACKWARD)
    only_forward = capture(lambda: loss(model, x), namespace={"model": model})
    assert computed(only_forward, Phase.FORWARD) > 10 and not only_forward.phase.any()


def test_what_a_checkpoint_computes_again_is_backward() -> None:
    graph = training(Checkpointed(), mean_square, mx.ones(ROWS))
    once, again = (where(graph, "Tanh", phase) for phase in (Phase.FORWARD, Phase.BACKWARD))
    assert once == again == {"blocks.0.activation": 1, "blocks.1.activation": 1}


def test_a_layer_that_is_used_twice_stands_in_one_place() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(64, 8)
            self.first = nn.Linear(8, 8)
            self.second = self.first

        def __call__(self, x: mx.array) -> mx.array:
            return self.embedding.as_linear(self.second(self.first(self.embedding(x))))

    graph = training(Tied(), next_token, mx.zeros(TOKENS, mx.int32))
    assert where(graph, "AddMM", Phase.FORWARD) == {"first": 2}
    assert where(graph, "Gather", Phase.FORWARD) == {"embedding": 1}
    assert where(graph, "Matmul", Phase.FORWARD) == {"": 1}  # as_linear: the model calls no module
    assert where(graph, "Matmul", Phase.BACKWARD)["first"] == 4


class Scaled(optim.SGD):
    def update(
        self, model: nn.Module, gradients: Any, scale: float = 1.0, *, times: int = 1
    ) -> Any:
        super().update(model, tree_map(lambda each: each * scale * times, gradients))
        return "done"


def test_an_optimizer_of_the_users_takes_what_it_takes() -> None:
    model, optimizer, x = nn.Linear(8, 4), Scaled(0.1), mx.ones(ROWS)
    mx.eval(model.parameters(), x)

    def step(x: mx.array) -> mx.array:
        value, gradients = nn.value_and_grad(model, mean_square)(model, x)
        assert optimizer.update(model, gradients, 0.5, times=2) == "done"
        assert optimizer.update(gradients=gradients, model=model) == "done"
        return value

    graph = capture(step, x, namespace={"model": model, "optimizer": optimizer})
    assert {s.kind for s in graph.scopes if s.path == "optimizer"} == {"Scaled"}
    assert computed(graph, Phase.OPTIMIZER) >= 8 and computed(graph, Phase.BACKWARD)


@pytest.mark.parametrize("as_model", [True, False])
def test_gradients_can_be_applied_without_update(as_model: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = optim.MultiOptimizer(
        [optim.Adam(1e-3), optim.SGD(0.1)], [lambda path, _: path.endswith("weight")]
    )
    x = mx.ones(ROWS)
    mx.eval(model.parameters(), x)

    def applied(x: mx.array) -> mx.array:
        value, gradients = nn.value_and_grad(model, mean_square)(model, x)
        parameters = model if as_model else model.trainable_parameters()
        model.update(optimizer.apply_gradients(gradients, parameters))
        return value

    names = {"model": model, "optimizer": optimizer}
    graph = capture(applied, x, namespace=names)
    usual = capture(step_of(model, mean_square, optimizer), x, namespace=names)
    assert [computed(graph, p) for p in Phase] == [computed(usual, p) for p in Phase]
    assert [s.kind for s in graph.scopes if s.path == "optimizer"] == ["MultiOptimizer"]
    assert "gradient of layers.1.weight" in graph.names.values()


def test_variables_of_the_users_are_no_part_of_the_model() -> None:
    model, x, weight = nn.Linear(8, 4), mx.ones(ROWS), mx.ones((3, 4))
    mx.eval(model.parameters(), x, weight)
    names = {"model": model, "x": x, "weight": weight}
    graph = capture(lambda: (model(x) * weight + weight).sum(), namespace=names)
    kind = {
        (graph.name(node), graph.shape(array)): graph.scopes[graph.scope[node]].kind
        for node in range(graph.nodes)
        for array in graph.outputs_of(node)
    }
    assert kind["weight", (4, 8)] == "Linear" and kind["weight", (3, 4)] == ""
    assert kind["", (3, 4)] == ""  # the product, made outside


def compiled_step(
    model: nn.Module, loss: Loss, *inputs: mx.array
) -> tuple[Callable[..., Any], dict[str, Any]]:
    optimizer = optim.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    mx.eval(state, inputs)
    step = mx.compile(step_of(model, loss, optimizer), inputs=state, outputs=state)
    return step, {"model": model, "optimizer": optimizer}


@pytest.mark.parametrize("name", ["layers", "llama"])
def test_a_compiled_step_has_modules_by_their_parameters(name: str, tmp_path: Path) -> None:
    if name == "layers":
        model, loss, x = (
            nn.Sequential(*(nn.Linear(8, 8), nn.GELU()) * 3),
            mean_square,
            mx.ones(ROWS),
        )
    else:
        model, loss, x = llama(), next_token, mx.zeros(TOKENS, mx.int32)
    step, names = compiled_step(model, loss, x)
    graph = capture(step, x, namespace=names)
    plain = capture(step, x, namespace=names, compiled=False)
    assert graph.fused and not plain.fused
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        for primitive in ("AddMM", "Matmul"):
            expected = where(plain, primitive, phase)
            if "" in expected:  # as_linear of the tied embedding: a parameter tells its module
                expected["model.embed_tokens"] += expected.pop("")
            found = where(graph, primitive, phase)
            if "" in found:
                found["model.embed_tokens"] += found.pop("")
            assert found == expected
    assert phase_of(graph, 0) == Phase.FORWARD and computed(graph, Phase.OPTIMIZER)
    assert "--uncompiled" in Explorer(graph).summary and plain.hint == ""
    graph.save(tmp_path / "step.json")
    assert load(tmp_path / "step.json").hint == graph.hint


def test_a_step_of_which_only_the_gradients_are_compiled_says_so_each_time() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    optimizer, x = optim.Adam(1e-3), mx.ones(ROWS)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state, x)
    gradients_of = mx.compile(
        nn.value_and_grad(model, lambda x: mean_square(model, x)), inputs=model.state
    )

    def step(x: mx.array) -> mx.array:
        value, gradients = gradients_of(x)
        optimizer.update(model, gradients)
        return value

    for _ in range(2):  # the second time MLX has traced it, and calls no module
        graph = capture(step, x, namespace={"model": model, "optimizer": optimizer})
        assert "--uncompiled" in graph.hint
        assert where(graph, "AddMM", Phase.FORWARD) == {"layers.0": 1, "layers.2": 1}
        assert where(graph, "Matmul", Phase.BACKWARD) == {"layers.0": 1, "layers.2": 2}
        assert {s.kind for s in graph.scopes if s.path == "optimizer"} == {"Adam"}


def test_a_model_with_a_second_name_is_one_model() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    once = module_paths({"model": model})
    assert {scope.path for scope in once.values()} == {"", "layers.0"}
    assert module_paths({"model": model, "same": model, "fast": mx.compile(model)}) == once


def test_an_update_in_another_thread_meanwhile_hides_none() -> None:
    inside, done = threading.Event(), threading.Event()

    class Waiting(optim.SGD):
        def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
            inside.set()
            done.wait(10)
            return super().apply_gradients(gradients, parameters)

    def training(optimizer: optim.Optimizer) -> Callable[[], mx.array]:
        model, x = nn.Linear(4, 4), mx.ones((2, 4))
        optimizer.init(model.trainable_parameters())
        mx.eval(model.parameters(), optimizer.state, x)
        value = nn.value_and_grad(model, mean_square)

        def step() -> mx.array:
            loss, gradients = value(model, x)
            optimizer.update(model, gradients)
            mx.eval(loss, model.parameters())
            return loss

        return step

    step, waiting = training(optim.SGD(0.1)), training(Waiting(0.1))

    def both() -> mx.array:
        other = threading.Thread(target=waiting)
        other.start()
        inside.wait(10)
        try:
            return step()
        finally:
            done.set()
            other.join()

    alone, beside = capture(step), capture(both)
    assert scopes_of(alone)["optimizer"] == scopes_of(beside)["optimizer"] > 0


def scopes_of(graph: Graph) -> Counter[str]:
    return Counter(graph.scopes[number].path for number in graph.scope)
