"""What every rank of a plan needs, for each way to share a model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.hosts import Host
from mlxbench_kernel.memory.fit.inference import generating
from mlxbench_kernel.memory.fit.need import Need, Unknown
from mlxbench_kernel.memory.fit.pace import Link, token_seconds
from mlxbench_kernel.memory.fit.source import Source
from mlxbench_kernel.memory.fit.splits import best, even, sharded, staged, takes_split, weigh
from mlxbench_kernel.memory.fit.training import adapted, training

_ADAM = 2  # states of a parameter's size


@dataclass(frozen=True)
class Shared:
    """A model shared out among ranks.

    Attributes
    ----------
    needs
        Of each rank.
    split
        Layers of each rank of a pipeline; empty for other ways.
    note
        What could not be predicted, and why; "" where everything was.
    """

    needs: tuple[Need, ...]
    split: tuple[int, ...] = ()
    note: str = ""


class Sharing:
    """Shares a model out, for any context and batch.

    Parameters
    ----------
    source
        The model.
    hosts
        The hosts.
    mode
        "infer", "lora" or "train".
    margin
        Part of what is free that stays free.
    snapshots
        Earlier states that training keeps.
    """

    def __init__(
        self, source: Source, hosts: Sequence[Host], mode: str, margin: float, snapshots: int
    ) -> None:
        self._source, self._mode, self._snapshots = source, mode, snapshots
        self._size = sum(len(host.ranks) for host in hosts)
        self._room = [
            int(host.free * (1 - margin)) // len(host.ranks) for host in hosts for _ in host.ranks
        ]
        self.model = source.model
        if self.model is not None and mode == "lora":
            self.model = adapted(self.model, source.name)
        self._parts: dict[Any, Module] = {}
        self._known: dict[tuple[str, int, int], Shared] = {}

    def share(self, way: str, context: int, batch: int) -> Shared:
        """What each rank needs.

        Raises
        ------
        UsageError
            The model cannot be shared out in this way.
        """
        key = (way, context, batch)
        if key not in self._known:
            self._known[key] = self._share(way, context, batch)
        return self._known[key]

    def _share(self, way: str, context: int, batch: int) -> Shared:
        size = self._size
        if self.model is None:
            own = -(-batch // size)
            return Shared((self._guess(context, own),) * size, note=self._source.missing)
        if way == "pipeline":
            return self._pipeline(context, batch)
        if way == "tensor":
            part = self._sharded()
        else:
            part, batch = self.model, -(-batch // size)
        need, note = self._need(part, Rank(0, size), context, batch)
        return Shared((need,) * size, note=note)

    def token_seconds(self, way: str, link: Link) -> float:
        """Seconds from one generated token to the next, see `pace.token_seconds`.

        Raises
        ------
        Unknown
            The model cannot be called as language models are.
        """
        if self.model is None:
            raise Unknown(self._source.missing)
        part = self._sharded() if way == "tensor" else self.model
        return token_seconds(self.model, part, way, self._size, link)

    def _sharded(self) -> Module:
        assert self.model is not None
        if "tensor" not in self._parts:
            self._parts["tensor"] = sharded(self.model, Rank(0, self._size))
        return self._parts["tensor"]

    def _pipeline(self, context: int, batch: int) -> Shared:
        assert self.model is not None
        inner: Any = self.model.model
        layers, size = len(inner.layers), self._size
        split = even(layers, size)
        if takes_split(self.model):
            whole, _ = self._need(self.model, Rank(0, 1), context, batch)
            weights = weigh(self.model, whole.cache or 0)
            aside = weights.rest + (whole.activations or 0)
            split = best(weights, [room - aside for room in self._room])
        return self.staged(split, context, batch)

    def staged(self, split: tuple[int, ...], context: int, batch: int) -> Shared:
        """What each rank of a pipeline needs that is split so."""
        assert self.model is not None
        needs, notes = [], []
        for number in range(self._size):
            rank = Rank(number, self._size)
            if (split, number) not in self._parts:
                self._parts[split, number] = staged(self.model, rank, split)
            need, note = self._need(self._parts[split, number], rank, context, batch)
            needs.append(need)
            notes.append(note)
        return Shared(tuple(needs), split, next(filter(None, notes), ""))

    def _need(self, part: Module, rank: Rank, context: int, batch: int) -> tuple[Need, str]:
        """What a rank needs that holds this part, and what could not be predicted."""
        try:
            if self._mode == "infer":
                found = generating(part, rank, context, batch)
            else:
                found = training(part, rank, context, batch, self._snapshots)
        except Unknown as error:
            if rank.size() > 1 and part is not self.model:
                raise UsageError(
                    f"FitPlan: the model does not run on {rank.size()} ranks in this way "
                    f"({error}): give another number of ranks, or another shard"
                ) from None
            return self._guess(context, batch), f"the model could not be called ({error})"
        note = "" if found.activations is not None else "the native module is not there"
        return found, note

    def _guess(self, context: int, batch: int) -> Need:
        """What can be said without calling the model."""
        parameters = self._source.parameters
        if self._mode == "infer":
            cache = self._source.cache_bytes(context, batch)
            return Need(parameters, cache=cache, activations=None)
        if self._mode == "lora":
            return Need(parameters, activations=None)
        state = _ADAM * parameters
        found = Need(parameters, gradients=parameters, optimizer=state, activations=None)
        return replace(found, snapshots=self._snapshots * (parameters + state))
