"""Checkpoints in one process: what is saved comes back to the bit, or nothing is touched."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from disks import small_disk
from mlx.utils import tree_flatten, tree_map

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.training.checkpoint import load, restore, save
from mlxbench_kernel.training.replicas import fingerprints


class Pair(NamedTuple):
    first: Any
    second: Any


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, width), nn.BatchNorm(width), nn.Dropout(0.5)]
        self.out = nn.Linear(width, 2)
        self._scale = mx.array(2.0)  # no parameter, so not of load_weights
        self.parts = (nn.Linear(1, 1), mx.ones(1))
        self.act = [nn.relu]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return self.out(x) * self._scale


def train(model: Any, optimizer: Any, steps: int) -> list[float]:
    value_and_grad = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
    losses = []
    for _ in range(steps):
        loss, grads = value_and_grad(mx.random.normal((8, 3)))
        optimizer.update(model, grads)
        mx.eval(loss, model.state, optimizer.state)
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "Adam": lambda: optim.Adam(1e-2),
    "schedule": lambda: optim.AdamW(optim.cosine_decay(1e-1, 10)),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Adam(1e-2), optim.SGD(1e-2, momentum=0.9)], [lambda name, _: "weight" in name]
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("started", [False, True])
def test_training_goes_on_to_the_same_bits(tmp_path: Path, kind: str, started: bool) -> None:
    model, optimizer = Net(), OPTIMIZERS[kind]()
    train(model, optimizer, 3)
    about = {"step": 3, "loss": math.inf, "names": ["a"]}
    place = save(tmp_path / "runs" / "one", {"model": model, "optimizer": optimizer}, about)
    assert place == tmp_path / "runs" / "one"
    expected = train(model, optimizer, 3)

    model, optimizer = Net(), OPTIMIZERS[kind]()
    if started:
        train(model, optimizer, 1)
    layer, act = model.layers[0], model.act[0]
    loaded, read = load(place)
    assert read == about
    assert restore({"model": model, "optimizer": optimizer}, loaded) == {}
    assert train(model, optimizer, 3) == expected
    assert model.layers[0] is layer and model.act[0] is act


def test_mlx_reads_the_parameters_alone(tmp_path: Path) -> None:
    model, other = Net(), Net()
    train(model, optim.SGD(0.1), 1)
    place = save(tmp_path / "c", {"model": model}, {})
    other.load_weights(str(place / "model.safetensors"))
    flat, again = (dict(tree_flatten(each.parameters())) for each in (model, other))
    assert flat.keys() == again.keys()
    assert all(mx.array_equal(flat[name], again[name]) for name in flat)


def test_an_optimizer_without_state_is_put_back_to_that(tmp_path: Path) -> None:
    model, optimizer = Net(), optim.Adam(1e-2)
    place = save(tmp_path / "c", {"optimizer": optimizer}, {})
    before = dict(vars(optimizer))
    train(model, optimizer, 2)
    restore({"optimizer": optimizer}, load(place)[0])
    assert list(optimizer.state) == list(before["_state"]) and not optimizer._initialized


NAN = mx.array(np.array([0x7FC00001, 0x80000000], np.uint32)).view(mx.float32)
DTYPES = (
    "bool_ int8 uint8 int16 uint16 float16 bfloat16 int32 uint32 float32 int64 uint64 complex64"
)
ARRAYS = [
    *(mx.array([[0, 1, 2]]).astype(getattr(mx, dtype)) for dtype in DTYPES.split()),
    NAN,
    mx.array(1.5),
    mx.zeros((0, 3)),
    mx.arange(12).reshape(3, 4).T,
    mx.zeros(5000),
    mx.array(1 / 3, mx.float64),
]


@pytest.fixture
def on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):  # which alone has float64
        yield


def test_all_dtypes_and_numbers(tmp_path: Path, on_cpu: None) -> None:
    numbers = [True, 0, -(10**30), 1.5, math.nan, -math.inf, -0.0, None, "ü"]
    state = {"arrays": ARRAYS, "numbers": numbers, "pair": Pair(mx.ones(1), 3), 7: [], "f": len}
    trees = {"state": state, "step": 7, "key": mx.random.key(3), "both": (mx.zeros(2), {"a": 1})}
    place = save(tmp_path / "c", trees, {})
    new: Any = {"pair": Pair(mx.zeros(1), 0), "f": abs}
    variables = restore(
        {"state": new, "step": 0, "key": mx.zeros(2, mx.uint32), "both": (mx.ones(2), {})},
        load(place)[0],
    )
    marks = [np.array(fingerprints(each)) for each in (ARRAYS, new["arrays"])]
    assert (marks[0] == marks[1]).all()
    assert str(new["numbers"]) == str(numbers)
    assert isinstance(new["pair"], Pair) and new["pair"].first.item() == 1 and new[7] == []
    assert new["f"] is abs and "arrays" in new
    assert variables["step"] == 7 and variables["both"][1] == {"a": 1}
    assert variables["key"].tolist() == mx.random.key(3).tolist()


def test_the_random_states_go_on(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [mx.random.normal((3,)).tolist(), random.gauss(0, 1), np.random.normal()]

    draw()
    place = save(tmp_path / "c", {}, {})
    expected = draw()
    restore({}, load(place)[0])
    assert draw() == expected


def values(tree: Any) -> Any:
    return tree_map(lambda a: a.tolist() if isinstance(a, mx.array) else a, tree)


@pytest.mark.parametrize(
    ("saved", "live", "said"),
    [
        (Net(4), Net(5), r"tree\.layers\.0\.weight is float32 \[5, 3\] here and float32 \[4, 3\]"),
        (
            nn.Sequential(nn.Linear(1, 1)),
            nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
            r"tree\.layers has 2 parts here and 1 in the checkpoint",
        ),
        (nn.Linear(1, 1, bias=False), nn.Linear(1, 1), r"tree\.bias is not in the checkpoint"),
        (nn.Linear(1, 1), nn.Linear(1, 1, bias=False), r"tree\.bias of the checkpoint is"),
        ({"a": mx.ones(2)}, {"a": mx.ones(2, mx.int32)}, r"tree\.a is int32 \[2\] here and"),
        ([len], [], "tree held what no checkpoint keeps"),
    ],
)
def test_other_shapes_change_nothing(tmp_path: Path, saved: Any, live: Any, said: str) -> None:
    place = save(tmp_path / "c", {"first": {"x": 1}, "tree": saved}, {})
    first, before = {"x": 2}, values(live)
    with pytest.raises(UsageError, match=said) as raised:
        restore({"first": first, "tree": live}, load(place)[0])
    assert "\n" not in str(raised.value) and str(raised.value).endswith("nothing was changed")
    assert first == {"x": 2} and values(live) == before


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    place = save(tmp_path / "c", {"model": {}, "step": 1}, {})
    with pytest.raises(UsageError, match="the checkpoint has no optimizer; it has model, step"):
        restore({"optimizer": {}}, load(place)[0])


def damage(place: Path, how: str) -> None:
    file, about = place / "model.safetensors", place / "stepper.json"
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[:-100])
    elif how == "bit":
        file.write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
    elif how == "header":
        file.write_bytes(b"\xff" * 8 + data[8:])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "missing":
        file.unlink()
    elif how == "others":
        mx.save_safetensors(str(file), {"a": mx.ones(2)})
    elif how == "no about":
        about.unlink()
    elif how == "about cut":
        about.write_text(about.read_text()[:-20])
    elif how == "about empty":
        about.write_text("{}")
    elif how == "about binary":
        about.write_bytes(b"\xff\xfe\x00")
    elif how == "newer":
        about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", r"model\.safetensors is damaged"),
        ("bit", r"is damaged \(.* is not what was saved\)"),
        ("header", r"model\.safetensors is damaged"),
        ("empty", r"model\.safetensors is damaged"),
        ("missing", r"model\.safetensors is missing"),
        ("others", "it holds other arrays"),
        ("no about", r"is no checkpoint, or part of one: stepper\.json is missing"),
        ("about cut", r"stepper\.json is damaged"),
        ("about empty", r"stepper\.json is damaged"),
        ("about binary", r"stepper\.json is damaged"),
        ("newer", "was written by a newer mlxbench"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, how: str, said: str) -> None:
    place = save(tmp_path / "c", {"model": Net()}, {})
    damage(place, how)
    with pytest.raises(UsageError, match=said) as raised:
        load(place)
    assert "\n" not in str(raised.value) and str(place) in str(raised.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint at"):
        load(tmp_path / "c")
    left = tmp_path / ".c-0123.old"
    left.mkdir()
    with pytest.raises(UsageError, match=f"an older one was left at {left}"):
        load(tmp_path / "c")


def test_only_checkpoints_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("all of it")
    (tmp_path / "file").touch()
    for name, said in [("thesis", "is a folder of other files"), ("file", "is a file; name")]:
        with pytest.raises(UsageError, match=said):
            save(tmp_path / name, {"step": 1}, {})
    assert (tmp_path / "thesis" / "text").read_text() == "all of it"
    (tmp_path / "empty").mkdir()
    for step in (1, 2):
        save(tmp_path / "empty", {"step": step}, {})
    assert load(tmp_path / "empty")[0]["step"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "file", "thesis"]


@pytest.mark.parametrize(
    ("trees", "about", "said"),
    [
        ({"../x": 1}, {}, "cannot be called '../x'"),
        ({"stepper": 1}, {}, "cannot be called 'stepper'"),
        ({"a": {(1, 2): mx.ones(1)}}, {}, r"has the key \(1, 2\); keys have to be str or int"),
        ({"a": {"n": np.ones(2)}}, {}, r"n is NumPy's ndarray; keep an mx\.array"),
        ({"a": 1}, {"x": mx.ones(1)}, "'x' cannot be kept in a checkpoint"),
    ],
)
def test_what_no_checkpoint_holds(tmp_path: Path, trees: Any, about: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        save(tmp_path / "c", trees, about)
    looped: dict[str, Any] = {}
    looped["self"] = looped
    with pytest.raises(UsageError, match="self holds itself"):
        save(tmp_path / "c", {"looped": looped}, {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 400) as disk:
        place = save(disk.folder / "c", {"model": Net(), "step": 1}, {})
        with pytest.raises(StorageError, match="the disk is full: make room there") as raised:
            save(place, {"model": nn.Linear(1000, 1000), "step": 2}, {})
        assert str(raised.value).startswith(f"cannot write {place}/model.safetensors")
        disk.fill()
        with pytest.raises(StorageError, match="the disk is full"):
            save(place, {"model": Net(), "step": 2}, {})
        assert load(place)[0]["step"] == 1
        (disk.folder / "filler").unlink()
        assert [each.name for each in disk.folder.iterdir()] == ["c"]
        disk.lock()
        with pytest.raises(StorageError, match="the disk is read-only: name a folder on another"):
            save(place, {"step": 3}, {})
        assert load(place)[0]["step"] == 1
