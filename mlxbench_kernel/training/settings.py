"""What of a run can be changed between two steps: numbers of the optimizer, clipping, the order
of batches, and what is trained."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError

_LIMITS = {
    "learning_rate": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "dampening": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "eps": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "clip": (0.0, math.inf),
}
BETAS = "betas"
NONE = ("none", "off", "")
Part = TypeVar("Part")


class Settings:
    """The settings of one run.

    Parameters
    ----------
    optimizers
        By a prefix of their settings, "" for one alone.
    counters
        Where ``clip`` and ``shuffle`` are kept: what a snapshot holds.
    own
        Which of these two the run has.
    """

    def __init__(
        self,
        optimizers: Mapping[str, optim.Optimizer],
        counters: dict[str, Any],
        own: Iterable[str],
    ) -> None:
        self._optimizers, self._counters, self._own = optimizers, counters, tuple(own)

    def values(self) -> dict[str, float | None]:
        """All settings with their values; None for one that is off."""
        found: dict[str, float | None] = {}
        for prefix, optimizer in self._optimizers.items():
            for name, value in optimizer.state.items():
                if isinstance(value, mx.array) and value.size == 1 and name != "step":
                    found[prefix + name] = value_of(value)
            for name, value in vars(optimizer).items():
                if isinstance(value, (int, float)) and not name.startswith("_"):
                    found[prefix + name] = float(value)
                elif name == BETAS:  # what Adam and those like it have for momentum
                    found |= {f"{prefix}beta{n}": float(beta) for n, beta in enumerate(value, 1)}
        return found | {name: self._counters[name] for name in self._own}

    def check(self, name: str, value: Any) -> float | None:
        """The value as it will be set.

        Raises
        ------
        UsageError
            There is no such setting, or it cannot have this value.
        """
        known = self.values()
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            raise UsageError(
                f"there is no setting {name!r}: "
                + (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else f"there are {', '.join(known)}"
                )
            )
        off = name in self._own
        if off and (value is None or (isinstance(value, str) and value.lower() in NONE)):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"{name} is a number, not {value!r}: type {name}=0.001") from None
        low, high = _LIMITS.get(name.rpartition(".")[2], (-math.inf, math.inf))
        if math.isinf(number):
            raise UsageError(f"{name} cannot be {number:g}: type a finite number")
        if not low <= number <= high or math.isnan(number):
            what = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            raise UsageError(f"{name} cannot be {number:g}: it is {what}")
        if name == "shuffle" and number != int(number):
            raise UsageError(f"shuffle is the seed of an order, a whole number, not {number:g}")
        return number

    def set(self, name: str, value: float | None) -> None:
        """Change a setting, which `check` has checked; a schedule of it ends."""
        if name in self._own:
            self._counters[name] = int(value) if name == "shuffle" and value is not None else value
            return
        prefix, _, own = name.rpartition(".")
        optimizer = self._optimizers[f"{prefix}." if prefix else ""]
        if own in optimizer.state:
            dtype = optimizer.state[own].dtype
            optimizer._schedulers.pop(own, None)
            optimizer.state[own] = mx.array(value or 0.0, dtype)
        elif own not in vars(optimizer):
            betas = list(getattr(optimizer, BETAS))
            betas[int(own.removeprefix("beta")) - 1] = value or 0.0
            setattr(optimizer, BETAS, betas)  # another list: kept states have the one before
        else:
            kind = type(vars(optimizer)[own])
            setattr(optimizer, own, kind(value))


def value_of(array: mx.array) -> float:
    """The number in an array of one."""
    value: Any = array.item()
    return float(value)


def part(modules: Mapping[str, Module], path: str) -> Module:
    """A module by its path.

    Parameters
    ----------
    modules
        By name; the paths in one alone begin below it.
    path
        As ``layers.0`` or ``model.layers.0``.

    Raises
    ------
    UsageError
        There is none.
    """
    known = parts(modules)
    if path not in known:
        near = difflib.get_close_matches(str(path), known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "they are as layers.0"
        raise UsageError(f"there is no layer {path!r}: {hint}")
    return known[path]


def parts(modules: Mapping[str, Module]) -> dict[str, Module]:
    """All modules by their paths."""
    found = over(modules, lambda module: module.named_modules())
    return {path: module for path, module in found if path}


def over(
    modules: Mapping[str, Module], inside: Callable[[Module], Iterable[tuple[str, Part]]]
) -> Iterator[tuple[str, Part]]:
    """What is in modules by path; below its name, where there are several.

    Parameters
    ----------
    modules
        By name.
    inside
        Gives the parts of one by their paths in it.
    """
    alone = len(modules) == 1
    for name, module in modules.items():
        for path, each in inside(module):
            yield (path if alone else ".".join(filter(None, (name, path)))), each


def frozen_parts(modules: Mapping[str, Module]) -> list[str]:
    """The paths of the modules of which nothing is trained, the outermost only."""
    found: list[str] = []
    for path, module in sorted(parts(modules).items()):
        if any(path.startswith(f"{each}.") for each in found):
            continue
        if _count(module.parameters()) and not _count(module.trainable_parameters()):
            found.append(path)
    return found


def _count(tree: Any) -> int:
    if isinstance(tree, mx.array):
        return 1
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(_count(each) for each in inside)
