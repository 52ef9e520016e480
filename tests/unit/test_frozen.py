"""What dicts and lists of arrays hold, kept by reference and put back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from mlxbench_kernel.rank import frozen


class Hiding(dict[str, Any]):
    """A dict that shows less than it holds, and another thing than it holds."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> Any:
        return [key for key in dict.__iter__(self) if not key.startswith("_")]

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)


def held(tree: Any) -> Any:
    """What is there, without a subclass's own methods."""
    if isinstance(tree, dict):
        return [(key, held(value)) for key, value in dict.items(tree)]
    if isinstance(tree, (list, tuple)):
        return [held(each) for each in tree]
    return tree.tolist() if isinstance(tree, mx.array) else tree


@pytest.mark.parametrize("kind", [dict, OrderedDict, Hiding, lambda of: defaultdict(list, of)])
def test_all_of_it_comes_back_whatever_is_done_meanwhile(kind: Any) -> None:
    inner = kind({"x": mx.array([1.0, 2.0]), "_number": 3, "none": None})
    tree = [kind({"_a": mx.array(1), "inner": inner, "pair": (mx.array(2), "b")}), mx.array(5)]
    before = held(tree)
    parts = frozen.freeze(tree)
    assert parts is not None
    for _ in range(2):  # what is kept can be used again
        dict.__getitem__(inner, "x")[0] = 9.0
        inner["_number"] = 4
        tree[0].pop("_a")
        tree.append(mx.array(6))
        frozen.put_back(parts)
        assert held(tree) == before
    assert dict.__getitem__(tree[0], "inner") is inner


def test_what_is_not_evaluated_is_not_complete() -> None:
    lazy = [mx.array(1.0) + 1]
    assert frozen.freeze(lazy) is None and frozen.freeze(lazy, complete=False) is not None
