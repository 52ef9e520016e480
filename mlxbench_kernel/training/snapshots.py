"""The states that one can go back to: kept by reference, thinned with age, then on disk.

A snapshot is no copy: what a step has not replaced is shared with the state of now. So k of them
take at most k times what a step changes. When they take more than the budget, those that lie
closest to their neighbours, for their age, go; the gaps so grow with age. Those that would leave
too large a gap are written to files instead, as far as an eighth of the free disk goes.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import HOLDERS, host_pool
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.files import private_folder
from mlxbench_kernel.rank.frozen import Parts

Flags = list[tuple[Module, frozenset[str], bool]]  # modules, what they do not train, training

DENSE = 0.25  # gap over age, below which a snapshot can go without being missed
MOST = 256  # then what is let go of is used again, and no step waits for fresh memory


@dataclass(eq=False, slots=True)
class Snapshot:
    """The state after a step.

    Attributes
    ----------
    branch, step
        Of which branch, after how many steps.
    parts
        From `frozen.freeze`; None while it is on disk only.
    random
        Key of ``mx.random``.
    flags
        Of each module what it does not train, and whether it is in training mode.
    others
        State of ``random`` and ``numpy.random``; None where a step does not use them.
    bytes
        What it holds that its successor does not.
    file
        Where it was written, if it was.
    pinned
        Whether it must stay: the beginning, the tip of a branch, where one leaves another.
    """

    branch: str
    step: int
    parts: Parts | None
    random: mx.array
    flags: Flags
    others: tuple[Any, Any] | None
    bytes: int = 0
    file: Path | None = None
    pinned: bool = False
    skeleton: Parts | None = None  # the parts with places instead of arrays, where on disk

    def put_back(self) -> None:
        """Make it the state of now, in place."""
        frozen.put_back(self._read() if self.parts is None else self.parts)
        frozen.seed(self.random)
        for module, no_grad, training in self.flags:
            module._no_grad = set(no_grad)
            module._training = training
        if self.others is not None:
            random.setstate(self.others[0])
            np.random.set_state(self.others[1])

    def arrays(self) -> Iterable[mx.array]:
        """What it holds in memory."""
        return frozen.arrays(self.parts or [])

    def write(self, folder: Path) -> None:
        """Put its arrays into a file, and let go of them."""
        assert self.parts is not None
        found: dict[int, mx.array] = {}
        self.skeleton = [(original, _named(copy, found)) for original, copy in self.parts]
        file = folder / f"{id(self):x}.safetensors"
        try:
            mx.save_safetensors(str(file), {str(number): each for number, each in found.items()})
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self.file, self.parts = file, None

    def _read(self) -> Parts:
        arrays: Any = mx.load(str(self.file))
        mx.eval(arrays)
        return [(original, _filled(copy, arrays)) for original, copy in self.skeleton or ()]


class Snapshots:
    """All of them, within a budget.

    Parameters
    ----------
    budget
        Bytes of memory.

    Raises
    ------
    UsageError
        The budget is no number of bytes.

    Attributes
    ----------
    used : int
        Bytes of memory that they take beside the state of now.
    generators : bool
        Whether the states of ``random`` and ``numpy.random`` are kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = _checked(budget)
        self.used = 0
        self.generators = True
        self._kept: dict[tuple[str, int], Snapshot] = {}  # in the order in which they were taken
        self._changes = 0  # bytes that a step replaces, as last looked at
        self._looked = 0
        self._folder: Path | None = None
        self._room = 0  # bytes that may still be put there
        _ALL[next(_NUMBERS)] = self  # the order in which they were made

    def take(
        self,
        branch: str,
        step: int,
        parts: Parts,
        random: mx.array,
        flags: Flags,
        pinned: bool,
    ) -> Snapshot:
        """Keep a state, all of which is evaluated, the random key too."""
        others = other_generators() if self.generators else None
        taken = Snapshot(branch, step, parts, random, flags, others, pinned=pinned)
        self.forget_at(branch, step)
        last = next(reversed(self._kept.values()), None)
        self._kept[branch, step] = taken
        self._looked -= 1
        if last is not None and last.parts is not None:
            if self._looked <= 0:
                self._looked = 64
                self._changes = changed_bytes(last, taken)
            self.used += self._changes - last.bytes
            last.bytes = self._changes
        if self.used > self.budget or len(self._kept) > MOST:
            self._thin()
        return taken

    def look_again(self) -> None:
        """Steps may change more from now on, or less."""
        self._looked = 0

    def find(self, branch: str, step: int) -> Snapshot | None:
        """The one after this step in this branch."""
        return self._kept.get((branch, step))

    def before(self, path: Iterable[tuple[str, int]], step: int) -> Snapshot | None:
        """The last one up to a step.

        Parameters
        ----------
        path
            Branches with the step up to which they count, from `Branches.path`.
        step
            The step.
        """
        limits = dict(path)
        found = [
            each
            for each in self._kept.values()
            if each.branch in limits and each.step <= min(step, limits[each.branch])
        ]
        return max(found, key=lambda each: each.step, default=None)

    def all(self) -> list[Snapshot]:
        """In the order in which they were taken."""
        return list(self._kept.values())

    def forget_at(self, branch: str, step: int) -> None:
        """Forget the one after this step, if there is one."""
        if found := self._kept.get((branch, step)):
            self._drop([found])

    def forget_after(self, branch: str, step: int) -> None:
        """Forget those after a later step of a branch."""
        self._drop([each for each in self.all() if each.branch == branch and each.step > step])

    def forget(self, branch: str) -> None:
        """Forget those of a branch."""
        self._drop([each for each in self.all() if each.branch == branch])

    def set_budget(self, budget: int) -> None:
        """Take so many bytes at most from now on."""
        self.budget = _checked(budget)
        self._thin()

    def close(self) -> None:
        """Remove what is on disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _drop(self, gone: Iterable[Snapshot]) -> None:
        for each in gone:
            del self._kept[each.branch, each.step]
            self.used -= each.bytes if each.parts is not None else 0
            if each.file is not None:
                self._room += each.file.stat().st_size if each.file.exists() else 0
                each.file.unlink(missing_ok=True)

    def _thin(self) -> None:
        """Come below nine tenths of the budget, so that this is not done at each step."""
        target = 0.9 * self.budget
        while self.used > target or len(self._kept) > MOST:
            scores = self._gaps()
            if not scores:
                return
            scores.sort(key=lambda scored: scored[0])
            few = max(1, len(scores) // 10)
            if scores[0][0] < DENSE or len(self._kept) > MOST:
                # No two neighbours at once: each is missed by the other.
                gone: list[Snapshot] = []
                touched: set[int] = set()
                for _, place, each in scores[:few]:
                    if not {place - 1, place + 1} & touched:
                        gone.append(each)
                        touched.add(place)
                self._drop(gone)
            elif not self._spill(min(scores, key=lambda scored: scored[1])[2]):
                self._drop([scores[0][2]])

    def _spill(self, snapshot: Snapshot) -> bool:
        """Put one on disk; whether there was room for it."""
        if self._folder is None:
            self._folder = private_folder("snapshots")
            self._room = shutil.disk_usage(self._folder).free // 8
        size = sum(array.nbytes for array in snapshot.arrays())
        if size > self._room:
            return False
        try:
            snapshot.write(self._folder)
        except (OSError, RuntimeError):  # MLX's: the disk is full, or is gone
            self._room = 0
            return False
        self._room -= size
        self.used -= snapshot.bytes
        return True

    def _gaps(self) -> list[tuple[float, int, Snapshot]]:
        """For those that may go: how large a gap each leaves, over its age; and its place."""
        found = []
        kept = self.all()
        now = kept[-1].step if kept else 0
        for place in range(1, len(kept) - 1):
            each, older, newer = kept[place], kept[place - 1], kept[place + 1]
            if each.pinned or each.parts is None:
                continue
            gap = abs(newer.step - older.step) if newer.branch == older.branch else now
            found.append((gap / (abs(now - each.step) + 1), place, each))
        return found


_ALL: weakref.WeakValueDictionary[int, Snapshots] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def _held() -> dict[str, Any]:
    """The arrays of all states that are kept in memory, by branch and step."""
    return {
        f"{each.branch} {each.step}" + (f" of stepper {number}" if number else ""): list(
            each.arrays()
        )
        for number, snapshots in enumerate(list(_ALL.values()))
        for each in snapshots.all()
    }


HOLDERS["kept states"] = _held


def default_budget() -> int:
    """An eighth of the memory that is free, on the host, or on a GPU with less of its own."""
    free = [host_pool()[1]]
    if mx.default_device() == mx.gpu:
        device: dict[str, Any] = mx.device_info()
        free += [device["free_memory"]] if "free_memory" in device else []  # CUDA, MLX 0.32.4
    return min(free) // 8


def _checked(budget: Any) -> int:
    if isinstance(budget, (int, float)) and 0 <= budget < math.inf:
        return int(budget)
    raise UsageError(f"the budget for kept states is a number of bytes, as 2e9, not {budget!r}")


def other_generators() -> tuple[Any, Any]:
    """The states of ``random`` and ``numpy.random``."""
    return random.getstate(), np.random.get_state()


def changed_bytes(older: Snapshot, newer: Snapshot) -> int:
    """Bytes of the arrays of one that the other does not hold."""
    held = {_identity(array) for array in newer.arrays()}
    return sum(array.nbytes for array in older.arrays() if _identity(array) not in held)


def _identity(array: mx.array) -> int:
    from mlxbench_kernel import native

    module = native.load()
    return id(array) if module is None else int(module.array_id(array))


class _Place(int):
    """Where an array was, by its number in a file."""


def _named(copy: Any, found: dict[int, mx.array]) -> Any:
    """A frozen dict or list with places for its arrays; dicts and lists in it are the live ones."""
    if isinstance(copy, dict):
        return {key: _placed(each, found) for key, each in copy.items()}
    return [_placed(each, found) for each in copy]


def _placed(value: Any, found: dict[int, mx.array]) -> Any:
    if isinstance(value, mx.array):
        found[len(found)] = value
        return _Place(len(found) - 1)
    if isinstance(value, tuple):
        return tuple(_placed(each, found) for each in value)
    return value


def _filled(copy: Any, arrays: dict[str, mx.array]) -> Any:
    if isinstance(copy, dict):
        return {key: _taken(each, arrays) for key, each in copy.items()}
    return [_taken(each, arrays) for each in copy]


def _taken(value: Any, arrays: dict[str, mx.array]) -> Any:
    if isinstance(value, _Place):
        return arrays[str(int(value))]
    if isinstance(value, tuple):
        return tuple(_taken(each, arrays) for each in value)
    return value
