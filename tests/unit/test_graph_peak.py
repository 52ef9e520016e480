"""The peak memory of an evaluation, predicted before it and measured afterwards."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from graph_models import Case, convolutional, deeper_convolutional, llama, mlp

from mlxbench_kernel.graph import predict, read

MODELS = {
    "mlp": mlp,
    "convolutional": convolutional,
    "deeper convolutional": deeper_convolutional,
    "llama": llama,
    "wider llama": lambda: llama(layers=2, width=512, vocabulary=2000, batch=2),
}


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


def test_a_chain_of_a_hundred_thousand() -> None:
    x = mx.array(1.0)
    for _ in range(100_000):
        x = x + 1.0
    prediction = predict(read([x]))
    assert len(prediction.order) == 100_000
