"""Values that move between the notebook and the ranks come back as they were, bit for bit."""

import math
from collections import OrderedDict, namedtuple
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from ipyparallel.serialize import pack_apply_message, unpack_apply_message

from mlxbench_kernel import native
from mlxbench_kernel.rank import pieces
from mlxbench_kernel.rank.arrays import put_together, take_apart

DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64",
)  # fmt: skip
SHAPES = ((), (0,), (3, 0, 2), (5,), (2, 3, 4))
Batch = namedtuple("Batch", "images labels")
Batch.__module__ = __name__


@pytest.fixture(autouse=True)
def on_the_cpu():
    """float64 lives on the CPU only."""
    default = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(default)


def travel(value):
    """Send `value` as `push` and `pull` do: in ipyparallel's messages, where it becomes bytes."""
    structure, arrays, _ = take_apart(value)
    assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays)
    parts = pack_apply_message(put_together, (structure, *arrays), {})
    received = [bytes(part) for part in parts]
    _, (structure, *arrays), _ = unpack_apply_message(received, {})
    return put_together(structure, arrays)


def bits(array):
    """The bytes of an array, MLX's or NumPy's."""
    if isinstance(array, mx.array):
        array = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
    return array.tobytes()


def same(one, other):
    """Whether two values are alike in types, dtypes, shapes and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) and one.dtype.hasobject:
        return one.dtype == other.dtype and same(one.tolist(), other.tolist())
    if isinstance(one, (mx.array, np.ndarray)):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def random_array(dtype, shape):
    """Any bits at all: NaN with payloads, infinities, subnormals and negative zeros among them."""
    size = getattr(mx, "bool_" if dtype == "bool" else dtype).size
    raw = np.random.default_rng(7).integers(0, 256, (math.prod(shape), size), dtype=np.uint8)
    if dtype == "bool":
        raw &= 1
    if dtype == "bfloat16":
        return mx.array(raw.view(np.uint16).reshape(shape)).view(mx.bfloat16)
    array = raw.view(dtype).reshape(shape)
    return mx.array(array, dtype=getattr(mx, "bool_" if dtype == "bool" else dtype))


def test_no_dtype_of_mlx_is_forgotten_here():
    every = {value for value in vars(mx).values() if isinstance(value, mx.Dtype)}
    assert {getattr(mx, "bool_" if name == "bool" else name) for name in DTYPES} == every


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype, shape):
    array = random_array(dtype, shape)
    there = travel(array)
    assert str(there.dtype).removeprefix("mlx.core.") == dtype
    assert same(there, array)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [
        ("float16", [0x7E01, 0x7D01, 0xFE55, 0x8000, 0x0001]),
        ("bfloat16", [0x7FC1, 0x7F81, 0xFFD5, 0x8000, 0x0001]),
        ("float32", [0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 1]),
        ("float64", [0x7FF8000000000001, 0x7FF0000000000001, 0x8000000000000000, 1]),
        ("complex64", [0x7FC00001_7F800001, 0x80000000_80000000]),
    ],
)
def test_payloads_of_nan_and_the_sign_of_zero_survive(dtype, pattern):
    width = getattr(mx, dtype).size
    numbers = np.array(pattern, dtype=f"u{width}")
    if dtype == "bfloat16":
        array = mx.array(numbers).view(mx.bfloat16)
    else:
        array = mx.array(numbers.view(dtype), dtype=getattr(mx, dtype))
    assert bits(travel(array)) == numbers.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_come_back_in_their_own_order(dtype):
    array = random_array(dtype, (4, 6))
    for view in (array.T, array[::2, 1::2], array[:, ::-1], array[1:3], array[2, 3]):
        assert same(travel(view), mx.contiguous(view))
    broadcast = mx.broadcast_to(array[:, :1], (4, 5))
    assert same(travel(broadcast), mx.contiguous(broadcast))


def test_a_lazy_array_is_computed_on_the_way():
    assert travel(mx.arange(4) * 2).tolist() == [0, 2, 4, 6]


def test_numpy_arrays_stay_numpy_arrays():
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.array(3.5),
        np.zeros((0, 3), np.int8),
        np.arange(24).reshape(2, 3, 4)[:, ::2].T,
        np.asfortranarray(np.eye(3, dtype=np.complex128)),
        np.array([1, 2], dtype=">i4"),
        np.array(["one", "three"]),
        np.array([(1, 2.5)], dtype=[("n", "i4"), ("x", "f8")]),
        np.array(["2026-11-23"], dtype="datetime64[D]"),
        np.array([{"any": "object"}, None], dtype=object),
        np.float32(1.5),
    ):
        assert same(travel(array), array)


def test_subclasses_of_numpy_arrays_keep_what_they_add():
    masked = np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False])
    there = travel({"loss": masked})["loss"]
    assert isinstance(there, np.ma.MaskedArray)
    assert there.mask.tolist() == [False, True, False] and there.sum() == 4
    table = travel(np.rec.array([(1, 2.5)], names="step,loss"))
    assert table.loss.tolist() == [2.5]


def test_what_is_the_same_array_here_is_the_same_there():
    weight = mx.ones(3)
    tied = travel({"embedding": weight, "head": [weight]})
    assert tied["head"][0] is tied["embedding"]
    assert len(take_apart([weight, weight]).arrays) == 1


def test_what_arrives_can_be_written_to():
    there = travel({"a": np.zeros(3), "b": mx.zeros(3)})
    there["a"][1] = 7
    there["b"][1] = 7
    assert there["a"].tolist() == there["b"].tolist() == [0, 7, 0]


def test_trees_keep_their_shape():
    tree = {
        "layers": [{"weight": random_array("bfloat16", (2, 3))}, {}, []],
        ("a", 1): (mx.array(2.5), np.arange(3), None, True, "text", 2**70, 1 + 2j, b"\0"),
        None: Batch(images=mx.zeros((2, 2), mx.uint8), labels=[np.int64(3)]),
        "path": Path("data"),
        "set": {1, 2},
        "empty": (),
    }
    assert same(travel(tree), tree)


def test_other_containers_keep_their_arrays_too():
    ordered = OrderedDict((name, random_array(name, (3,))) for name in DTYPES)
    assert same(travel({"state": ordered})["state"], ordered)


def test_a_layer_travels_with_its_weights():
    layer = nn.Linear(3, 2)
    layer.set_dtype(mx.bfloat16)
    there = travel({"layer": layer})["layer"]
    assert isinstance(there, nn.Linear)
    assert same(dict(there.parameters()), dict(layer.parameters()))
    batch = mx.ones((1, 3), mx.bfloat16)
    assert same(there(batch), layer(batch))


def test_nothing_is_copied_on_the_sending_side():
    array = mx.arange(1000, dtype=mx.float32)
    numbers = np.arange(1000)
    mx.eval(array)
    _, (first, second), _ = take_apart([array, numbers])
    assert np.shares_memory(first, np.array(array, copy=False))
    assert np.shares_memory(second, numbers)


def test_the_structure_holds_no_numbers_of_the_arrays():
    structure, arrays, _ = take_apart({"x": mx.zeros(100_000), "y": [np.zeros(100_000)]})
    assert len(structure) < 1000
    assert [array.nbytes for array in arrays] == [400_000, 800_000]


def test_a_long_list_of_plain_values_is_no_burden():
    numbers = list(range(200_000))
    assert travel({"losses": numbers})["losses"] == numbers


def test_a_list_that_holds_itself():
    loop = [mx.array(1)]
    loop.append(loop)
    there = travel(loop)
    assert there[1] is there and there[0].item() == 1


def test_what_cannot_be_sent_is_refused_with_its_place():
    with open("/dev/null") as file:
        for value, place, kind in (
            ({"model": {"layers": [1, lambda x: x]}}, r"\['model'\]\['layers'\]\[1\]", "function"),
            ({"log": file}, r"\['log'\]", "TextIOWrapper"),
            ((mx.array(1), (i for i in ())), r"\[1\]", "generator"),
            ({"b": Batch(images=0, labels=file)}, r"\['b'\]\.labels", "TextIOWrapper"),
            ({"d": mx.float32}, r"\['d'\]", "Dtype"),
            (file, "it", "TextIOWrapper"),
        ):
            with pytest.raises(TypeError, match=rf"^{place} is a {kind}: ") as caught:
                take_apart(value)
            assert "\n" not in str(caught.value)


def test_another_byte_order_stays():
    assert travel(np.arange(3, dtype=">i4")).dtype == np.dtype(">i4")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False])
def test_pieces_land_in_the_memory_of_the_array(dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(pieces, "PIECE", 16)
    value = {
        "w": random_array(dtype, (5, 7)),
        "n": np.arange(24.0).reshape(4, 6),
        "one": mx.ones(1),
    }
    parts = take_apart(value)
    sent = pieces.Sent.of(parts)
    landed = {index: pieces.Landing(form) for index, form in sent.forms.items()}
    for index, offset in pieces.places(sent.forms):
        landed[index].put(offset, pieces.piece(parts.arrays[index], offset))
    assert len(sent.small) == 1 and same(sent.put_together(landed), value)
