"""Measures a model on the ranks of a notebook, as they hold it and shared in other ways."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mlxbench_kernel.errors import BenchError, CellTimeout, UsageError
from mlxbench_kernel.models.measuring import FIGURES
from mlxbench_kernel.remote.asking import Tell, ask_ranks
from mlxbench_kernel.remote.on_benchmark import on_benchmark
from mlxbench_kernel.units import format_bytes

if TYPE_CHECKING:
    from mlxbench_kernel.remote.language_model import ModelOnRanks

WAYS = ("tensor", "pipeline", "data")
Progress = Callable[[float, str], None]
Found = TypeVar("Found", bound="Benchmark")


@dataclass
class Benchmark:
    """The figures of `mlx_lm.benchmark`, of a model on ranks.

    Attributes
    ----------
    model, architecture : str
        What was measured.
    prompt, generate, repeat, batch : int
        Tokens of the prompt, generated ones, runs, prompts at a time.
    rows : list of dict
        Of each run ``shard``, ``run`` (from 1), ``prompt_tps`` and ``generation_tps`` (tokens per
        second), ``peak_memory`` (GB of 10^9 bytes, MLX's of the rank with most; with what else the
        rank holds) and ``total_time`` (seconds).
    ranks : list of dict
        By rank ``host``, and what `measuring.machine` tells.
    backend : str
        Of the group.
    commands : dict
        By sharding, what measures the same with mlx-lm.
    failed : dict
        By sharding, why it was not measured.
    interrupted : bool
        Whether Ctrl-C ended it before all was measured.
    """

    model: str
    architecture: str
    prompt: int
    generate: int
    repeat: int
    batch: int
    ranks: list[dict[str, Any]]
    backend: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """By sharding, the mean of each figure: what `mlx_lm.benchmark` calls averages."""
        ways = dict.fromkeys(row["shard"] for row in self.rows)
        found = {}
        for way in ways:
            rows = [row for row in self.rows if row["shard"] == way]
            found[way] = {name: sum(row[name] for row in rows) / len(rows) for name in FIGURES}
        return found

    @property
    def about(self) -> dict[str, str]:
        """Versions and hardware: a text for each; where ranks differ, of each of them."""
        told = [{**each, "memory": format_bytes(each["memory"])} for each in self.ranks]
        names = ("host", "chip", "cores", "memory", "os", "python", "mlx", "mlx-lm", "mlxbench")
        found = {"ranks": f"{len(told)}, {self.backend}" if len(told) > 1 else "1"}
        for name in names:
            values = [str(each[name]) for each in told]
            found[name] = values[0] if len(set(values)) == 1 else " | ".join(values)
        return found

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each run; `about` is in its ``attrs``."""
        import pandas

        frame = pandas.DataFrame(self.rows, columns=["shard", "run", *FIGURES])
        frame.attrs.update(self.about)
        return frame

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write each run with what was measured, the versions and the hardware."""
        asked = {
            name: getattr(self, name)
            for name in ("model", "architecture", "prompt", "generate", "batch")
        }
        self.to_dataframe().assign(**asked, **self.about).to_csv(path, index=False)


def benchmark(
    lm: ModelOnRanks,
    made: type[Found],
    prompt: int = 512,
    generate: int = 128,
    repeat: int = 5,
    batch: int = 1,
    ways: Sequence[str] = (),
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
) -> Found:
    """Measure; see `LanguageModel.benchmark`.

    Parameters
    ----------
    lm
        The model.
    made
        What is given back.
    prompt, generate, repeat, batch, ways
        As there.
    progress, show
        Told how far it is, and who is late.

    Raises
    ------
    UsageError
        A number or a way cannot be; nothing was measured.
    ClusterError
        A rank is gone, before anything was measured.
    """
    ways = tuple(ways) or (lm.shard,)
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"ways={way!r}: type some of {', '.join(map(repr, WAYS))}")
    numbers = (prompt, generate, repeat, batch)

    def ask(call: str, *arguments: Any, ranks: Sequence[int], **options: Any) -> dict[int, Any]:
        return ask_ranks(
            lm.cluster, ranks, lm.tell, None, call, *arguments,
            of=on_benchmark, show=show, **options,
        )  # fmt: skip

    ask("check", lm.name, *numbers, ranks=lm.ranks)
    machines = ask("machine", ranks=lm.ranks)
    infos = lm.cluster.info.ranks
    found = made(
        lm.path, lm.architecture, prompt, generate, repeat, batch,
        [{"host": infos[rank].host, **machines[rank]} for rank in lm.ranks],
        lm.cluster.info.backend,
    )  # fmt: skip
    for number, way in enumerate(ways):
        runs = _Runs(found, way, _part_of(progress, number, len(ways)))
        try:
            measured = lm if way == lm.shard else _loaded(lm, way)
            try:
                found.commands[way] = _command(measured, *numbers)
                ranks = [0] if way == "data" else lm.ranks
                ask("runs", measured.name, *numbers, ranks=ranks, heard=runs)
            except (KeyboardInterrupt, CellTimeout):  # the latter where a rank is slow to stop
                found.interrupted = True
            finally:
                if measured is not lm:
                    measured.forget()
        except KeyboardInterrupt:
            found.interrupted = True
        except BenchError as error:
            found.failed[way] = str(error)
        found.rows += runs.rows()
        if found.interrupted:
            break
    if not found.rows and not found.interrupted and len(ways) == 1:
        raise UsageError(found.failed[ways[0]])
    return found


def _part_of(progress: Progress, number: int, count: int) -> Progress:
    """Of one of several pieces of work."""
    return lambda done, text: progress((number + done) / count, text)


def _loaded(lm: ModelOnRanks, way: str) -> ModelOnRanks:
    """The model's files loaded beside it, shared in another way: what it has learned stays."""
    from mlxbench_kernel.remote.language_model import ModelOnRanks

    return ModelOnRanks.load(lm.path, way, cluster=lm.cluster, name="_mlxbench_measured")


class _Runs:
    """Hears what ranks measure."""

    def __init__(self, found: Benchmark, way: str, progress: Progress) -> None:
        self._repeat, self._way, self._progress = found.repeat, way, progress
        self._heard: dict[int, list[dict[str, float]]] = {}
        progress(0.0, f"{way}: warming up")

    def __call__(self, rank: int, told: dict[str, Any]) -> None:
        runs = self._heard.setdefault(rank, [])
        runs.append(told["run"])
        if rank == 0:
            text = f"{self._way}: run {min(len(runs), self._repeat)} of {self._repeat}"
            self._progress(len(runs) / (self._repeat + 1), text)

    def rows(self) -> list[dict[str, Any]]:
        """Of the runs that all ranks have ended: the figures of rank 0, the most memory of all."""
        found = []
        for number, by_rank in enumerate(zip(*self._heard.values(), strict=False)):
            if number:  # the first one does not count
                peak = max(each["peak_memory"] for each in by_rank)
                first = self._heard[0][number]
                found.append({"shard": self._way, "run": number, **first, "peak_memory": peak})
        return found


def _command(lm: ModelOnRanks, prompt: int, generate: int, repeat: int, batch: int) -> str:
    """What measures the same in a terminal."""
    words = ["mlx_lm.benchmark", "--model", lm.path, "-p", prompt, "-g", generate, "-n", repeat]
    words += ["-b", batch] if batch > 1 else []
    words += ["--pipeline"] if lm.shard == "pipeline" else []
    if lm.size > 1 and lm.shard != "data":
        info = lm.cluster.info
        if all(host.is_local for host in info.hosts):
            where: list[Any] = ["-n", lm.size]
        else:
            where = ["--hostfile", info.options.hostfile or "hosts.json"]
        words = ["mlx.launch", *where, "--backend", info.backend, "--", *words]
    return shlex.join(map(str, words))
