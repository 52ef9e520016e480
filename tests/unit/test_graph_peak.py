"""The peak memory of an evaluation, predicted before it and measured afterwards."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from graph_models import Case, convolutional, deeper_convolutional, llama, mlp

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import capture, predict, read

MODELS = {
    "mlp": mlp,
    "convolutional": convolutional,
    "deeper convolutional": deeper_convolutional,
    "llama": llama,
    "wider llama": lambda: llama(layers=2, width=512, vocabulary=2000, batch=2),
}


def attention() -> list[mx.array]:
    layer = nn.MultiHeadAttention(256, 8)
    x = normal(4, 128, 256)
    mx.eval(layer.parameters())
    return [layer(x, x, x)]


def depthwise() -> list[mx.array]:
    layer = nn.Conv1d(64, 64, 5, padding=2, groups=64)
    mx.eval(layer.parameters())
    return [layer(normal(8, 1024, 64))]


def halves() -> list[mx.array]:
    layer = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))
    layer.set_dtype(mx.bfloat16)
    mx.eval(layer.parameters())
    x = normal(256, 512)
    return [layer(x.astype(mx.bfloat16)).astype(mx.float32) + x]


def checkpointed() -> list[mx.array]:
    layer = nn.TransformerEncoder(2, 128, 4, mlp_dims=512, checkpoint=True)
    mx.eval(layer.parameters())
    return [layer(normal(4, 128, 128), None)]


def quantized() -> list[mx.array]:
    layer = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))
    nn.quantize(layer)
    mx.eval(layer.parameters())
    return [layer(normal(256, 512))]


def recurrent() -> list[mx.array]:
    layer = nn.LSTM(128, 256)
    mx.eval(layer.parameters())
    return [*layer(normal(16, 64, 128))]


def square() -> mx.array:
    matrix = normal(512, 512)
    symmetric = matrix + matrix.T
    mx.eval(symmetric)
    KEPT.append(symmetric)
    return symmetric


# What copies, and what is needed beside the results.
OPERATIONS: dict[str, Callable[[], list[mx.array]]] = {
    "transposed and reshaped": lambda: [mx.sin(normal(1024, 1024)).T.reshape(-1)],
    "reshaped without a copy": lambda: [mx.sin(normal(1024, 1024)).T.reshape(512, 2, 1024) + 1],
    "heads merged": lambda: [
        mx.sin(normal(64, 16, 1024)).reshape(64, 16, 16, 64).swapaxes(1, 2).reshape(64, 16, 1024)
    ],
    "attention": attention,
    "recurrent": recurrent,
    "fast attention": lambda: [
        mx.fast.scaled_dot_product_attention(*[normal(2, 8, 256, 64)] * 3, scale=0.1, mask="causal")
    ],
    "every second row": lambda: [mx.sin(normal(1024, 1024))[::2] * 2],
    "one row in many": lambda: [mx.exp(mx.broadcast_to(normal(1024), (512, 1024))).sum(axis=1)],
    "depthwise convolution": depthwise,
    "half precision": halves,
    "checkpointed": checkpointed,
    "quantized": quantized,
    "sorted": lambda: [mx.sort(mx.sin(normal(512, 1024)), axis=1)],
    "bias taken over": lambda: [mx.addmm(mx.sin(normal(512, 512)), square(), square())],
    "two results": lambda: [*mx.divmod(mx.exp(normal(512, 512)), normal(512, 512))],
    "complex": lambda: [mx.abs(mx.fft.fft(normal(64, 4096)) * 2)],
    "vmapped": lambda: [
        mx.vmap(lambda a, b: mx.tanh(a @ b))(normal(8, 256, 256), normal(8, 256, 64))
    ],
    "written into": lambda: [mx.sin(normal(512, 512)).at[:10].add(1.0)],
    "svd": lambda: [*mx.linalg.svd(square(), stream=mx.cpu)],
    "singular values": lambda: [mx.linalg.svd(square(), compute_uv=False, stream=mx.cpu)],
    "svd, tall": lambda: [*mx.linalg.svd(normal(1024, 128), stream=mx.cpu)],
    "inverse": lambda: [mx.linalg.inv(square(), stream=mx.cpu)],
    "qr": lambda: [*mx.linalg.qr(square(), stream=mx.cpu)],
    "eigenvectors": lambda: [*mx.linalg.eigh(square(), stream=mx.cpu)],
    "eigenvalues": lambda: [mx.linalg.eigvalsh(square(), stream=mx.cpu)],
    "not symmetric": lambda: [*mx.linalg.eig(normal(256, 256), stream=mx.cpu)],
    "cholesky": lambda: [
        mx.linalg.cholesky(square() @ square() + 512 * mx.eye(512), stream=mx.cpu)
    ],
    "lu": lambda: [*mx.linalg.lu(square(), stream=mx.cpu)],
}  # fmt: skip


KEPT: list[mx.array] = []  # so that inputs are not taken over, which would lower what is measured


def normal(*shape: int) -> mx.array:
    array = mx.random.normal(shape)
    mx.eval(array)
    KEPT.append(array)
    return array


def measured(outputs: list[mx.array]) -> int:
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(outputs)
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("part", ["forward", "backward", "step"])
@pytest.mark.parametrize("name", MODELS)
def test_the_prediction_is_within_fifteen_percent(name: str, part: str) -> None:
    case: Case = MODELS[name]()
    with mx.stream(mx.cpu):
        outputs = case.outputs(part)
        prediction = predict(read(outputs))
        peak = measured(outputs)
    assert prediction.peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_copies_and_what_needs_room_to_work_in(name: str) -> None:
    with mx.stream(mx.cpu):
        mx.eval(OPERATIONS[name]())  # mx.compile's kernels are built meanwhile, which takes long
        prediction = predict(read(OPERATIONS[name]()))
        # Where the machine is busy, work may be done before the next is given: that takes less.
        peak = max(measured(OPERATIONS[name]()) for _ in range(3))
    KEPT.clear()
    assert prediction.peak == pytest.approx(peak, rel=0.15)


def training(case: Case, form: str) -> Callable[[mx.array], mx.array]:
    """A step of Adam that evaluates inside, lets its caller do it, clips, or is compiled."""
    model, optimizer = case.model, optim.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    mx.eval(optimizer.state)
    state = [model.state, optimizer.state]
    value_and_grad = nn.value_and_grad(model, case.loss)

    def update(x: mx.array) -> mx.array:
        loss, gradients = value_and_grad(model, x)
        if form == "clipped":
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        if form in ("inside", "clipped"):  # the gradients are still held
            mx.eval(loss, state)
        return loss

    if form == "compiled":
        update = mx.compile(update, inputs=state, outputs=state)

    def step(x: mx.array) -> mx.array:
        loss = update(x)
        if form != "left to the caller":
            mx.eval(loss, state)
        return loss

    def run(x: mx.array) -> mx.array:
        loss = step(x)
        mx.eval(loss, state)
        return loss

    run(case.x)
    step.run = run  # type: ignore[attr-defined]
    return step


@pytest.mark.parametrize("form", ["inside", "left to the caller", "clipped", "compiled"])
@pytest.mark.parametrize("name", ["convolutional", "llama"])
def test_a_captured_step_is_predicted_as_it_runs(name: str, form: str) -> None:
    """What the capture itself holds, to put it back, does not count."""
    with mx.stream(mx.cpu):
        case = MODELS[name]()
        step = training(case, form)
        prediction = predict(capture(step, case.x))
        peak = 0
        for _ in range(3):
            mx.synchronize()
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            step.run(case.x)  # type: ignore[attr-defined]
            peak = max(peak, mx.get_peak_memory() - before)
    assert prediction.peak == pytest.approx(peak, rel=0.15)


def test_the_timeline_says_what_is_alive_at_the_peak() -> None:
    outputs = mlp().outputs("backward")
    graph = read(outputs)
    prediction = predict(graph)
    assert prediction.peak == prediction.timeline.max() == prediction.timeline[prediction.at]
    assert len(prediction.order) == len(prediction.timeline) == (graph.primitive != 0).sum()
    place = np.full(graph.nodes, -1)
    place[prediction.order] = np.arange(len(prediction.order))
    inner = graph.primitive[graph.sources] != 0
    assert (place[graph.sources[inner]] < place[graph.targets[inner]]).all()
    alive = prediction.alive(prediction.at)
    assert sum(size for _, size in alive) <= prediction.peak
    assert [size for _, size in alive] == sorted((size for _, size in alive), reverse=True)
    weights = sum(int(graph.buffer_bytes[array]) for array in range(graph.arrays))
    assert 0 < prediction.baseline <= weights


def test_buffers_are_donated_from_one_operation_to_the_next() -> None:
    x = mx.zeros((256, 1024))
    mx.eval(x)
    for _ in range(20):
        x = mx.exp(x)
    assert predict(read([x])).peak < 3 * x.nbytes


def test_what_python_holds_stays() -> None:
    x = mx.zeros((256, 1024))
    mx.eval(x)
    held = [x := mx.exp(x) for _ in range(20)]
    # All but the first, which takes over the buffer of what nobody holds any more.
    predicted = predict(read([held[-1]])).peak
    assert predicted == 19 * x.nbytes
    assert measured([held[-1]]) == pytest.approx(predicted, rel=0.05)


def test_results_of_one_operation_keep_what_it_took() -> None:
    """Each of them holds the inputs, so nothing of them can be taken over."""
    x = normal(256, 1024)
    one = predict(read([mx.exp(x) // mx.exp(x)])).peak
    two = predict(read([*mx.divmod(mx.exp(x), mx.exp(x))])).peak
    KEPT.clear()
    assert (one, two) == (2 * x.nbytes, 4 * x.nbytes)


def test_work_that_other_streams_hold_is_counted_too() -> None:
    x = normal(256, 1024)
    side = mx.new_stream(mx.cpu)
    with mx.stream(mx.cpu):
        outputs = [mx.sum(mx.exp(x)), mx.sum(mx.sin(x, stream=side), stream=side)]
        prediction = predict(read(outputs))
    KEPT.clear()
    assert prediction.peak == 2 * x.nbytes + 2 * 4


def test_what_is_no_graph_is_refused_with_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"predict takes a graph, not an array: give capture\(y\)"):
        predict(mx.exp(mx.ones(3)))  # type: ignore[arg-type]


def test_empty_arrays_and_scalars_take_nothing_or_little() -> None:
    empty = predict(read([mx.exp(mx.zeros((0, 4))) @ mx.zeros((4, 3))]))
    assert empty.peak <= 64
    scalar = mx.array(1.0)
    assert predict(read([mx.exp(scalar) + scalar])).peak <= 16


def test_a_chain_of_a_hundred_thousand() -> None:
    x = mx.array(1.0)
    for _ in range(100_000):
        x = x + 1.0
    prediction = predict(read([x]))
    assert len(prediction.order) == 100_000
