"""Programs that go wrong, and ways to make them, for the tests of faults."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import CellTimeout

SETUP = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 16)
        self.two = nn.Linear(16, 1)
    def __call__(self, x):
        return self.two(nn.relu(self.one(x)))

g = mx.distributed.init()
mx.random.seed(3)
model, optimizer = Net(), optim.Adam(1e-2)
optimizer.init(model.trainable_parameters())
sharded = nn.layers.distributed.AllToShardedLinear(8, 8, group=group)
add = mx.compile(lambda x: mx.distributed.all_sum(x, group=group))
mx.eval(model.parameters(), sharded.parameters())
x = mx.random.normal((32, 8)) + rank
y = mx.sum(x, axis=1, keepdims=True)
treasure = mx.arange(5) + rank
mx.eval(x, y)

def loss_of(x, y):
    return nn.losses.mse_loss(model(x), y)

def step(x, y):
    loss, grads = nn.value_and_grad(model, loss_of)(x, y)
    grads = nn.average_gradients(grads, group=g)
    optimizer.update(model, grads)
    return loss

state = [model.state, optimizer.state, mx.random.state]
compiled_step = mx.compile(step, inputs=state, outputs=state)
"""
BLOCKED = "if rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(4), group=g))"


class Told:
    """What was said about a fault."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = list(texts)

    def __call__(self, text: str) -> None:
        self.texts.append(text)

    def __str__(self) -> str:
        return "\n".join(self.texts)


def in_background(ranks: Cluster, code: str, **keywords: Any) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(ranks.execute, code, **keywords)
    pool.shutdown(wait=False)
    return future


def wait_until_waiting(ranks: Cluster, rank: int) -> None:
    """Until a rank is inside a collective."""
    deadline = time.monotonic() + 20
    while ranks.client.call("progress", [rank], 2)[rank]["running"] is None:
        assert time.monotonic() < deadline


def interrupted(
    ranks: Cluster, code: str, when: Any, presses: int = 1, output: Any = None
) -> tuple[Any, str, float]:
    """Run a cell in the main thread and press Ctrl-C as soon as `when` has returned."""
    pressed: list[float] = []

    def press() -> None:
        when()
        for _ in range(presses):
            pressed.append(time.monotonic())
            psutil.Process().send_signal(signal.SIGINT)

    told = Told()
    thread = threading.Thread(target=press)
    thread.start()
    try:
        ranks.execute(code, tell=told, output=output)
        time.sleep(5)  # where the second one comes late
    except (KeyboardInterrupt, CellTimeout) as error:
        raised = error
    finally:
        ended = time.monotonic()
        thread.join()
    return raised, str(told), ended - pressed[0]
