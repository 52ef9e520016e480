"""Whether a model fits on some hosts: `FitPlan`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit import advice, table
from mlxbench_kernel.memory.fit.hosts import Host, KnowsFreeMemory, read_hosts
from mlxbench_kernel.memory.fit.longest import largest
from mlxbench_kernel.memory.fit.need import Need
from mlxbench_kernel.memory.fit.pace import Link
from mlxbench_kernel.memory.fit.ranks import Shared, Sharing
from mlxbench_kernel.memory.fit.source import read_source
from mlxbench_kernel.memory.fit.splits import WAYS, even, names_of, takes_split, ways

if TYPE_CHECKING:
    from pandas import DataFrame

MODES = ("infer", "lora", "train")
MOST_TOKENS = 1 << 20  # looked at where a model does not say how long its context may be
MOST_SEQUENCES = 1024
NO_SENDING = "MLX has no send and receive over this link"
TOKENS = 256  # a KV cache grows by so many (mlx-lm, ``KVCache.step``)


@dataclass(frozen=True)
class Row:
    """What one rank needs, against what is free on its host; all in bytes.

    Attributes
    ----------
    rank, host
        The rank, and the name of its host.
    layers
        Of a pipeline, those that it holds: ``16–31``; "" where it holds (a part of) all.
    parameters, cache, gradients, optimizer, snapshots, activations
        See `need.Need`; None where it is not known.
    need
        The sum of what is known.
    free, margin, left
        Of the host, which its ranks share: what is free, what of it is to stay free, and what is
        left of the rest when all its ranks have what they need. Negative: so much is missing.
    """

    rank: int
    host: str
    layers: str
    parameters: int
    cache: int | None
    gradients: int
    optimizer: int
    snapshots: int
    activations: int | None
    need: int
    free: int
    margin: int
    left: int

    @property
    def fits(self) -> bool:
        """Whether its host has room for all its ranks."""
        return self.left >= 0


class FitPlan:
    """Whether a model fits on hosts, how it is best shared out, and how long a context may be.

    Found from shapes alone: of a folder only the headers of its files are read, nothing is
    loaded or evaluated, and a model that is given is not touched. The model is built by mlx-lm and
    called with tokens lazily, as ``mlx_lm.generate`` and ``mlx_lm.lora`` call it, and the graph of
    that gives the peak (`graph.predict`, which follows MLX's CPU backend). On a CPU peaks measured
    in the tests are within 10 % of it. Not predicted: temporary buffers of kernels, and on a GPU
    buffers that stay as long as their command buffer (see `graph.peak`); what MLX keeps in its
    cache, which it gives back when it comes near its limit; the process itself; what loading takes
    for a moment (a tensor that is sharded is read whole before). `margin` is there for these.

    Parameters
    ----------
    model_or_path
        An ``mlx.nn.Module``; or the folder of a model as mlx-lm reads it (``config.json``,
        ``model*.safetensors``, quantized or not), or the name of one that was downloaded.
    hosts
        A number of ranks on this host, which share what is free here now; a list of what is free
        (bytes or ``"64GB"``), of ``(name, free)`` or of ``(name, free, ranks)``; a mapping of names
        to what is free or to ``(free, ranks)``; or an object whose ``free_memory()`` gives such a
        mapping. Ranks are numbered in that order.
    context
        Tokens of a sequence: prompt and answer, or what is trained on.
    batch
        Sequences at once, on all ranks together.
    mode
        "infer": generation with a KV cache, prompts read 2 048 tokens at a time. "lora": a step
        of ``mlx_lm.lora`` with its defaults (rank 8, the last 16 layers, Adam). "train": a step of
        Adam on everything that is not frozen.
    shard
        "tensor" (``model.shard``: parts of each layer on every rank), "pipeline" (whole layers),
        "data" (everything on every rank, which shares out the batch), or "auto": of those that
        fit the quickest over `link`.
    link
        For "auto": what reading weights and a collective take on these ranks, as
        `LanguageModel.load` measures it. Without it tensor goes before pipeline before data.
    margin
        Part of what is free on each host that is to stay free.
    snapshots
        Of training: earlier states that are kept beside the present one. Two are what protected
        state takes at most (`rank.protection`); the stepper keeps more where there is room. 0 for
        a loop without.
    trust_remote_code
        Whether Python code that comes with the model may run, as for mlx-lm's ``load``.

    Attributes
    ----------
    rows : tuple of Row
        A row for each rank.
    fits : bool
        Whether every host has room. Where something is not known this says that the rest fits.
    certain : bool
        Whether everything is known.
    shard : str
        How it is shared out; of "auto", what was chosen.
    why : str
        Why it was chosen, in a line; "" if it was given.
    split : tuple of int
        Layers of each rank of a pipeline; rank 0 has the last ones. Empty otherwise.
    notes : tuple of str
        What else there is to know, a line each.

    Raises
    ------
    UsageError
        Something that was given cannot be, as no hosts, a folder without config, a corrupt file,
        a way in which the model cannot be shared out; it says which ways there are.

    Examples
    --------
    >>> plan = FitPlan("~/models/Qwen3-32B-4bit", {"studio": "48GB", "mini": "12GB"})
    >>> plan.fits, plan.split, plan.longest_context
    """

    def __init__(
        self,
        model_or_path: Module | str | os.PathLike[str],
        hosts: int | Mapping[str, Any] | Iterable[Any] | KnowsFreeMemory,
        context: int = 8192,
        batch: int = 1,
        mode: str = "infer",
        shard: str = "auto",
        *,
        link: Link | None = None,
        margin: float = 0.1,
        snapshots: int = 2,
        trust_remote_code: bool = False,
    ) -> None:
        _one_of("mode", mode, MODES)
        _one_of("shard", shard, (*WAYS, "auto"))
        _at_least("context", context, 1)
        _at_least("batch", batch, 1)
        _at_least("snapshots", snapshots, 0)
        if not isinstance(margin, (int, float)) or not 0 <= margin < 1:
            raise UsageError(f"FitPlan: margin={margin!r} is no part of what is free: type 0.1")
        self.context, self.batch, self.mode, self.margin = context, batch, mode, float(margin)
        self.link = link
        self._given: tuple[Any, dict[str, Any]] = model_or_path, {
            "context": context, "batch": batch, "mode": mode, "margin": margin,
            "snapshots": snapshots, "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        self.hosts = read_hosts(hosts)
        self.ranks = sum(len(host.ranks) for host in self.hosts)
        self.source = read_source(model_or_path, trust_remote_code)
        self._sharing = Sharing(self.source, self.hosts, mode, self.margin, snapshots)
        self.against = ways(self.source.model, mode, self.ranks)
        if link is not None and not link.sends:
            self.against["pipeline"] = self.against["pipeline"] or NO_SENDING
        self.shard, self.why = (shard, "") if shard != "auto" else self._choose()
        if reason := self.against[self.shard]:
            possible = " or ".join(repr(way) for way, wrong in self.against.items() if not wrong)
            raise UsageError(
                f"FitPlan: {self.source.architecture} cannot be shared out as {shard!r}: {reason}; "
                f"type shard={possible}"
            )
        shared = self._sharing.share(self.shard, context, batch)
        self.split = shared.split
        self.rows = self._rows(shared)
        self.fits = all(row.fits for row in self.rows)
        self.certain = not shared.note
        self.notes = tuple(self._notes(shared))

    def left(self, shard: str, context: int, batch: int) -> int:
        """Bytes that are left on the fullest host, with others than this plan's; negative: missing.

        Raises
        ------
        UsageError
            The model cannot be shared out so.
        """
        return self._least(self._sharing.share(shard, context, batch))

    def fits_on(self, names: Iterable[str]) -> bool:
        """Whether it would fit, in any way, with these hosts alone, by name."""
        wanted = set(names)
        hosts = [
            (host.name, host.free, len(host.ranks)) for host in self.hosts if host.name in wanted
        ]
        model, options = self._given
        try:
            return bool(hosts) and FitPlan(model, hosts, **options).fits
        except UsageError:
            return False

    def token_seconds(self, shard: str) -> float:
        """Seconds from one generated token to the next over this plan's link: an estimate.

        Raises
        ------
        UsageError
            The plan has no link.
        Unknown
            The model cannot be called as language models are.
        """
        if self.link is None:
            raise UsageError("FitPlan: no link is known: give link=Link(…)")
        return self._sharing.token_seconds(shard, self.link)

    @cached_property
    def longest_context(self) -> int:
        """Tokens of the longest context that still fits, in steps of 256; 0 if none does.

        Not more than the model is made for, where it says so. Where activations are not known,
        only the rest counts.
        """
        most = self.source.longest or MOST_TOKENS
        return largest(lambda tokens: self.left(self.shard, tokens, self.batch), most, TOKENS)

    @cached_property
    def largest_batch(self) -> int:
        """Sequences that still fit at once with this plan's context, 1024 at most; 0 if none."""
        return largest(lambda many: self.left(self.shard, self.context, many), MOST_SEQUENCES, 1)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dicts, by the names of `Row`."""
        return [dict(vars(row)) for row in self.rows]

    def to_dataframe(self) -> DataFrame:
        """The rows as a table, by the names of `Row`, in bytes."""
        import pandas

        return pandas.DataFrame(self.to_dicts())

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Whether it fits and what to change, and a table."""
        return table.text(self)

    def _repr_markdown_(self) -> str:
        return table.markdown(self)

    @cached_property
    def changes(self) -> tuple[str, ...]:
        """What could be changed so that it fits, as can be typed; empty where it fits."""
        return () if self.fits else tuple(advice.changes(self))

    def _choose(self) -> tuple[str, str]:
        if self.ranks == 1:
            return "data", "one rank holds everything"
        return advice.choose(self)

    def _least(self, shared: Shared) -> int:
        return min(self._left(host, shared.needs) for host in self.hosts)

    def _left(self, host: Host, needs: tuple[Need, ...]) -> int:
        return host.free - self._margin(host) - sum(needs[rank].total for rank in host.ranks)

    def _margin(self, host: Host) -> int:
        return int(host.free * self.margin)

    def _rows(self, shared: Shared) -> tuple[Row, ...]:
        layers = names_of(shared.split) or [""] * self.ranks
        rows = []
        for host in self.hosts:
            for rank in host.ranks:
                need = shared.needs[rank]
                rows.append(
                    Row(
                        rank=rank, host=host.name, layers=layers[rank],
                        parameters=need.parameters, cache=need.cache, gradients=need.gradients,
                        optimizer=need.optimizer, snapshots=need.snapshots,
                        activations=need.activations, need=need.total, free=host.free,
                        margin=self._margin(host), left=self._left(host, shared.needs),
                    )
                )  # fmt: skip
        return tuple(rows)

    def _notes(self, shared: Shared) -> Iterable[str]:
        if shared.note:
            unknown = [
                name for name in ("cache", "activations") if vars(self.rows[0])[name] is None
            ]
            yield f"not known: {' and '.join(unknown)}; {shared.note}"
        if self.source.longest and self.context > self.source.longest:
            yield f"the model is made for contexts up to {self.source.longest:,} tokens"
        if self.shard == "pipeline":
            yield from self._about_split(shared)

    def _about_split(self, shared: Shared) -> Iterable[str]:
        model = self.source.model
        assert model is not None
        own = even(sum(shared.split), self.ranks)
        if own == shared.split:
            return
        if takes_split(model):
            other = self._least(self._sharing.staged(own, self.context, self.batch))
            lacks = "fits too" if other >= 0 else f"{table.size(-other)} would be missing"
            yield (
                f"mlx-lm itself splits evenly, {list(own)}, with which {lacks}; for this split: "
                f"model.model.pipeline(group, split={list(shared.split)})"
            )


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise UsageError(
            f"FitPlan: {name}={value!r} is not known: type one of {', '.join(map(repr, known))}"
        )


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"FitPlan: {name}={value!r}: type a whole number, {least} or more")
