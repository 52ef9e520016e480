"""Protected state: the last completed values of what matters, kept by reference.

An evaluation that is broken off leaves some arrays of a step new, others old, and MLX calls all
of them evaluated. `protect` names the trees that must not end like that. Whenever an evaluation
has completed, handles of their arrays are kept: no copy is made, but an array that the next step
replaces stays in memory until the step after it, so up to two more copies of what is protected.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import mlx.core as mx
import mlx.optimizers as optim

from mlxbench_kernel import native
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import HOLDERS
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.collectives import GROUP
from mlxbench_kernel.rank.frozen import Parts, containers

NUMBERS = (bool, int, float, str, type(None))
KEPT = 2  # ranks that were stopped in a step are one completed evaluation apart at most


@dataclass
class Kept:
    """The values after one completed evaluation.

    Attributes
    ----------
    count
        How many had completed; the same on all ranks that run the same program, and made the same
        again after a cell that was another one on each (`Protection.number`).
    parts
        (original, copy) of each dict and list, by the name of the tree that it is in; "" for
        those in variables.
    variables
        Arrays and numbers that are variables themselves, by name.
    random
        Key of ``mx.random``: uint32 of shape [2].
    """

    count: int
    parts: dict[str, Parts]
    variables: dict[str, Any]
    random: mx.array


class Companion(Protocol):
    """What goes with a protected tree to a rank that is started anew, and is none itself."""

    def give(self, own: bool) -> Any:
        """What there is, as it pickles, for another rank or for this one (`own`)."""

    def take(self, given: Any) -> str:
        """Have what was given; the tree is there already. What is to be told, "" for nothing."""


class Protection:
    """What `PROTECTION` is: the protected state of this process."""

    def __init__(self) -> None:
        self.trees: dict[str, Any] = {}
        self.companions: dict[str, Companion] = {}  # by the name of the tree
        self.kept: deque[Kept] = deque(maxlen=KEPT)
        self.namespace: dict[str, Any] = {}
        self._count = 0
        self._evaluate = mx.eval
        self._watching = False
        self.holds = 0  # blocks, as of `held`, that it is in
        # Takes note that what the user's variables hold is complete; of the shell, where one is.
        self.settle: Callable[[], None] = lambda: None

    def protect(self, trees: Mapping[str, Any]) -> None:
        """Begin with these trees; see `protect`."""
        if not trees:
            raise UsageError("protect: nothing is named; type protect(model=model, step=step)")
        for name, tree in trees.items():
            _check(name, tree)
            if _is_variable(tree) and not _is_it(self.namespace.get(name, tree), tree):
                raise UsageError(
                    f"protect: {name} is a {type(self.namespace[name]).__name__} and not "
                    f"what was given for it; name the variable itself, as {name}={name}"
                )
        mx.eval([_arrays(tree) for tree in trees.values()])
        self.trees = {**self.trees, **trees}
        self._watch()
        self.kept.clear()
        self.commit()

    def _watch(self) -> None:
        """Have each completed ``mx.eval`` followed by a `commit`."""
        if self._watching:
            return
        self._watching = True
        evaluate = self._evaluate

        def completed(*trees: Any) -> None:
            evaluate(*trees)
            self.completed(trees)

        functools.update_wrapper(completed, evaluate)  # a capture looks for MLX's own below it
        mx.eval = completed

    def completed(self, trees: Any) -> None:
        """Take note that these were evaluated."""
        module = native.load()
        if module is not None:
            module.settle_tree(trees)
        if not self.holds:
            self.commit()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What completes in the block is not kept: it is in the middle of something."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1

    def commit(
        self, given: Mapping[str, Parts] | None = None, random: mx.array | None = None
    ) -> None:
        """Keep the values of now, if all of them are complete.

        Parameters
        ----------
        given
            What is frozen already, by the name of the tree.
        random
            The key of ``mx.random`` that goes with it; None for the one of now.
        """
        if not self.trees or not GROUP.intact:
            return
        found = self._frozen(given or {})
        if found is None:
            return
        parts, variables = found
        if self.kept and _same(self.kept[-1], parts, variables):
            return
        # Rarely evaluated by the user: what is drawn needs the other half of each split.
        key = frozen.random_key() if random is None else random
        if frozen.freeze([key]) is None:
            self._evaluate(key)
        if GROUP.alone and self.kept:
            self.kept.pop()  # counts mean the same on all ranks, so this is no other one
        else:
            self._count += 1
        self.kept.append(Kept(self._count, parts, variables, key))

    def _frozen(
        self, given: Mapping[str, Parts] = MappingProxyType({})
    ) -> tuple[dict[str, Parts], dict[str, Any]] | None:
        """The parts and variables of `Kept`, as they are now; None when some are incomplete."""
        found: dict[str, Parts] = {}
        values: dict[str, Any] = {}
        for name, tree in self.trees.items():
            if _is_variable(tree):
                values[name] = self.namespace.get(name, tree)
                continue
            parts = given.get(name) or frozen.freeze(containers(tree))
            if parts is None:
                return None
            found[name] = parts
        of_variables = frozen.freeze([*values.values()])
        if of_variables is None:
            return None
        copies = of_variables[0][1]  # of the list just made, which is no container of the user's
        found[""] = of_variables[1:]
        return found, dict(zip(values, copies, strict=True))

    def counts(self) -> list[int]:
        """The completed evaluations whose values are kept."""
        return [kept.count for kept in self.kept]

    def put_back(self, count: int) -> list[str]:
        """Put all trees back to the values after `count` evaluations, in place.

        Returns
        -------
        list of str
            The names that were protected.

        Raises
        ------
        KeyError
            These values are not kept.
        """
        kept = next((each for each in self.kept if each.count == count), None)
        if kept is None:
            raise KeyError(count)
        while self.kept[-1].count > count:
            self.kept.pop()
        self._count = count
        for parts in kept.parts.values():
            frozen.put_back(parts)
        frozen.seed(kept.random)
        for name, value in kept.variables.items():
            if name in self.namespace:
                self.namespace[name] = frozen.handle(value)
        return list(self.trees)

    def begin_again(self, count: int) -> None:
        """Forget what is kept, and keep the values of now as those after `count` evaluations."""
        self.kept.clear()
        self._count = count - 1
        self.commit()

    def number(self, count: int) -> None:
        """Call the last kept values those after `count` evaluations, and forget those before.

        Counts come apart where a cell has one rank alone change and evaluate what is protected.
        """
        if self.kept:
            last = self.kept[-1]
            self.kept.clear()
            self._count = last.count = count
            self.kept.append(last)

    def standing(self) -> tuple[int, bool]:
        """How many evaluations have completed, and whether the values are still those of then."""
        last = self.kept[-1].count if self.kept else 0
        if not self.trees or native.load() is None:
            return last, True
        found = self._frozen()
        return last, found is not None and bool(self.kept) and _same(self.kept[-1], *found)

    def step(self) -> int | None:
        """The last kept value of a protected number called ``step``."""
        value = self.kept[-1].variables.get("step") if self.kept else None
        if isinstance(value, mx.array) and value.size == 1:
            value = value.item()
        return value if isinstance(value, int) else None

    def held_arrays(self) -> dict[str, list[Any]]:
        """The arrays of the values that are kept, by the count of their evaluation."""
        return {
            f"evaluation {kept.count}": [
                *(array for parts in kept.parts.values() for array in frozen.arrays(parts)),
                *kept.variables.values(),
                kept.random,
            ]
            for kept in list(self.kept)
        }


PROTECTION = Protection()
HOLDERS["protected values"] = PROTECTION.held_arrays


def protect(**trees: Any) -> None:
    """Name what must never be left half changed by a fault.

    From then on, whenever an evaluation completes (``mx.eval``, or the end of a cell), its
    values are kept. When a collective is broken off, all ranks go back to the last values that
    all of them have completed; a rank that is started again gets them from a healthy one.

    This keeps references and makes no copy; but an array that a step replaces stays in memory
    for one or two steps more, so up to two more copies of what is protected.

    Parameters
    ----------
    **trees
        By the name of the variable: modules, optimizers, dicts, lists or tuples of arrays,
        arrays, numbers. What is an array or a number is put back to the variable of that name.
        The state of ``mx.random`` is always protected with them.

    Raises
    ------
    UsageError
        Something else was given.

    Examples
    --------
    >>> protect(model=model, optimizer=optimizer, step=step)
    """
    PROTECTION.protect(trees)


def _check(name: str, tree: Any) -> None:
    known = (mx.array, dict, list, tuple, optim.Optimizer, *NUMBERS)
    if not isinstance(tree, known):
        raise UsageError(
            f"protect: {name} is a {type(tree).__name__}; it takes modules, optimizers, dicts, "
            "lists, arrays and numbers"
        )
    if _holds_itself(tree):
        raise UsageError(f"protect: {name} holds itself; give the parts of it that hold arrays")


def _holds_itself(tree: Any) -> bool:
    path: list[Any] = []
    around: set[int] = set()
    waiting = [(0, tree)]
    while waiting:
        depth, value = waiting.pop()
        while len(path) > depth:
            around.discard(id(path.pop()))
        if id(value) in around:
            return True
        if isinstance(value, (dict, list, tuple)):
            path.append(value)
            around.add(id(value))
            inside = value.values() if isinstance(value, dict) else value
            waiting += [
                (depth + 1, each) for each in inside if isinstance(each, (dict, list, tuple))
            ]
    return False


def _is_it(variable: Any, given: Any) -> bool:
    return variable is given or (isinstance(given, NUMBERS) and variable == given)


def _is_variable(tree: Any) -> bool:
    return isinstance(tree, (mx.array, tuple, *NUMBERS))


def _arrays(tree: Any) -> Any:
    """What of a tree can be evaluated."""
    if isinstance(tree, optim.MultiOptimizer):
        return [each.state for each in tree.optimizers]
    return tree.state if isinstance(tree, optim.Optimizer) else tree


def _same(kept: Kept, parts: dict[str, Parts], variables: dict[str, Any]) -> bool:
    """Whether nothing has changed since."""
    return frozen.is_same([kept.parts, kept.variables], [parts, variables])
