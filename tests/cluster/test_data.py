"""Values go to the ranks and come back, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from running import Recorded

from mlxbench_kernel.cluster import Cluster, transfer
from mlxbench_kernel.errors import CellTimeout, UsageError
from mlxbench_kernel.rank import pieces

DTYPES = [
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.float64, mx.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_as_it_went(ranks: Cluster, dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):
        sent = mx.array([[0, 1, 2], [3, 4, 5]]).astype(dtype).T
        ranks.push({"sent": sent})
        for back in ranks.pull("sent").values():
            assert back.dtype == dtype and back.shape == (3, 2)
            assert mx.array_equal(back, sent).item()


def test_a_nested_tree_keeps_its_form(ranks: Cluster) -> None:
    tree = {"w": [mx.ones((2, 2)), (np.arange(3), "text", None)], "empty": mx.zeros((0, 4)), "n": 3}
    ranks.push({"tree": tree}, ranks=[1])
    back = ranks.pull("tree", ranks=[1])[1]
    assert back["w"][1][1:] == ("text", None) and back["n"] == 3
    assert back["w"][1][0].tolist() == [0, 1, 2] and back["empty"].shape == (0, 4)
    assert mx.array_equal(back["w"][0], tree["w"][0]).item()


def test_nan_payloads_survive(ranks: Cluster) -> None:
    bits = mx.array([0x7FC1, 0xFFC2, 0x0001], dtype=mx.uint16)
    ranks.push({"bits": bits.view(mx.bfloat16)})
    assert ranks.pull("bits")[0].view(mx.uint16).tolist() == bits.tolist()


def test_a_name_that_some_ranks_lack_is_named(ranks: Cluster) -> None:
    ranks.execute("if rank == 1: only_here = 1")
    with pytest.raises(UsageError, match="rank 0 has no variable only_here"):
        ranks.pull("only_here")
    assert ranks.pull("only_here", ranks=[1]) == {1: 1}


def test_a_value_that_cannot_be_sent_is_refused(ranks: Cluster, recorded: Recorded) -> None:
    with pytest.raises(UsageError, match=r"\['bad'\]\[1\] is a generator.*cannot be sent"):
        ranks.push({"good": 1, "bad": [0, (i for i in "ab")]})
    ranks.execute("'good' in globals()", output=recorded)
    assert recorded.text(0) == "False"


def test_a_class_that_only_ranks_have_is_one_clear_line(ranks: Cluster) -> None:
    ranks.execute("class Own:\n    pass\nown = Own()\nown")
    with pytest.raises(UsageError, match="a class that this notebook does not have"):
        ranks.pull("own")
    ranks.execute("own")
    assert all("Own object" in text for text in ranks.results().values())


def test_large_arrays_travel_in_pieces_and_arrive_whole(ranks: Cluster) -> None:
    count = pieces.PIECE // 2 + 12_345  # of two bytes each: two pieces, the second one short
    numbers = np.random.default_rng(0).integers(0, 2**16, 2 * count, dtype=np.uint16)
    weights = mx.array(numbers).view(mx.bfloat16).reshape(2, count).T
    ranks.push({"state": {"w": weights, "n": [numbers, 1], "again": weights}})
    ranks.execute(
        "mine = {'n': state['n'][0][: 9_000_000 * (rank + 1)], 'small': mx.ones(2) * rank}"
    )

    for back in ranks.pull("state").values():
        assert back["w"].dtype == mx.bfloat16 and back["w"].shape == (count, 2)
        assert np.array_equal(np.array(back["w"].view(mx.uint16)).T.ravel(), numbers)
        assert type(back["n"][0]) is np.ndarray and np.array_equal(back["n"][0], numbers)
        assert back["again"] is back["w"]
    for rank, back in ranks.pull("mine").items():  # another number of pieces on each
        assert np.array_equal(back["n"], numbers[: 9_000_000 * (rank + 1)])
        assert back["small"].tolist() == [rank, rank]


def test_a_push_that_is_broken_off_leaves_nothing_on_the_ranks(
    ranks: Cluster, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros(4 * pieces.PIECE, np.uint8)
    ranks.execute("large = 'before'")
    places = list(pieces.places({0: pieces.Form(large.shape, large.dtype, "")}))

    def interrupted(forms: object) -> object:
        yield places[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer.pieces, "places", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ranks.push({"large": large})
    monkeypatch.undo()
    code = "from mlxbench_kernel.rank import pieces\nlarge, len(pieces._expected)"
    ranks.execute(code, output=recorded)
    assert recorded.text(0) == recorded.text(1) == "('before', 0)"


def test_a_transfer_tells_how_far_it_is_and_whom_it_waits_for(ranks: Cluster) -> None:
    told: list[tuple[float, str]] = []
    ranks.push({"n": np.zeros(3 * pieces.PIECE, np.uint8)}, progress=lambda *now: told.append(now))
    assert [round(done, 2) for done, _ in told] == [0.33, 0.67, 1.0]
    assert told[0][1] == "pushing 50.3 MB"

    told.clear()
    with pytest.raises(CellTimeout):
        ranks.execute("import time\ntime.sleep(3 * rank)", timeout=0.1)
    ranks.push({"n": 1}, progress=lambda *now: told.append(now))
    assert any("waiting: rank 1 is busy" in text and "time.sleep" in text for _, text in told)
