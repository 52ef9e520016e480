"""Cells for some ranks only: what is refused before anything is sent."""

from __future__ import annotations

import pytest

from mlxbench_kernel.cluster.alone import check_alone
from mlxbench_kernel.errors import UsageError


@pytest.mark.parametrize(
    "code",
    [
        "mx.distributed.all_sum(x)",
        "mlx.core.distributed.all_gather(x)",
        "y = [mx.distributed.all_max(each) for each in x]",
        "for x in y:\n    mx.distributed.all_min(x, group=group)",
        "nn.average_gradients(grads)",
        "print(await f(mx.distributed.all_sum(x)))",
        "class A:\n    x = mx.distributed.all_sum(y)",
    ],
)
def test_collectives_of_all_ranks_are_refused(code: str) -> None:
    with pytest.raises(UsageError, match="of the whole group, but the cell is for rank 0 only"):
        check_alone(code, [0])


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return mx.distributed.all_sum(x)",
        "async def f(x):\n    return mx.distributed.all_sum(x)",
        "f = lambda x: mx.distributed.all_sum(x)",
        "mx.distributed.all_sum(x, group=part)",
        "mx.distributed.send(x, 1)",
        "mx.distributed.all_sum",
        "%time mx.distributed.all_sum(x)",  # hidden by the magic: the rank refuses it
        "this is no Python",
        "",
    ],
)
def test_the_rest_is_sent(code: str) -> None:
    check_alone(code, [0])


def test_the_line_is_that_of_the_notebook() -> None:
    with pytest.raises(UsageError, match=r"line 5 calls all_sum .* for ranks 0, 2 only"):
        check_alone("\n\nx = 1\nmx.distributed.all_sum(x)", [0, 2], shift=1)
    with pytest.raises(UsageError, match="line 2 calls all_sum"):  # the first one
        check_alone("%matplotlib inline\nmx.distributed.all_sum(mx.distributed.all_max(x))", [1])
