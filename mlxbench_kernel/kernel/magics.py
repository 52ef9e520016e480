"""``%mlx_dist``, ``%%mlx_dist`` and ``%%local``: they read the line and delegate."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, line_cell_magic, magics_class
from IPython.display import display

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.kernel import commands, subcommands
from mlxbench_kernel.kernel.arguments import nearest
from mlxbench_kernel.kernel.auto import AutoMode, check_cell
from mlxbench_kernel.kernel.command import Help
from mlxbench_kernel.kernel.ranks import RankSelection, ranks_text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mlxbench_kernel.cluster import Cluster


@magics_class
class RanksMagics(Magics):
    """The magics of one shell, with the cluster that it holds.

    Parameters
    ----------
    shell
        The IPython shell.

    Attributes
    ----------
    cluster
        The ranks that are up, None without.
    auto
        Auto mode of the shell.
    """

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.cluster: Cluster | None = None
        self.auto = AutoMode(shell)
        self._process = os.getpid()
        atexit.register(self.leave)

    @line_cell_magic
    def mlx_dist(self, line: str, cell: str | None = None) -> None:
        """Ranks of one MLX program, held by this notebook.

        ::

            %mlx_dist up -n 2                   start two ranks on this machine
            %mlx_dist up --hostfile hosts.json  or on the hosts of a hostfile of mlx.launch
            %mlx_dist status                    what every rank does and holds
            %mlx_dist push lr batch             send variables to the ranks
            %mlx_dist pull loss --ranks 0       fetch variables from ranks
            %mlx_dist auto on                   run every following cell on the ranks
            %mlx_dist interrupt                 stop what they run; their variables stay
            %mlx_dist heal                      bring back a rank that died
            %mlx_dist log                       what collectives they did, side by side
            %mlx_dist restart | down | attach | doctor
            %mlx_dist up --help                 the options of a subcommand

            %%mlx_dist [--ranks 0,2-3] [--timeout S] [--out NAME] [--setup]
            loss = step(batch)                  this cell runs on the ranks

        In every rank ``mx``, ``nn``, ``optim``, ``np``, ``rank``, ``size`` and ``group`` are
        there. Values of this notebook can stand in the line: ``--ranks {busy}``.
        """
        with held():
            import mlxbench_kernel.cluster  # noqa: F401  (what is imported later is there then)

            command = commands.read_line(line) if cell is None else commands.read_cell(line)
        match command:
            case Help():
                print(command.text)
            case commands.RunCell():
                self._run_cell(command, cell or "")
            case subcommands.Up():
                self._up(command)
            case subcommands.Status():
                self._status()
            case subcommands.Restart():
                self._restart(command)
            case subcommands.Heal():
                self._heal(command)
            case subcommands.Interrupt():
                self._interrupt(command)
            case subcommands.Attach():
                self._attach(command)
            case subcommands.Down():
                self._down()
            case subcommands.Log():
                self._log(command)
            case subcommands.Doctor():
                self._doctor(command)
            case subcommands.Push():
                self._push(command)
            case subcommands.Pull():
                self._pull(command)
            case subcommands.Auto():
                self._auto(command)

    @cell_magic
    def local(self, line: str, cell: str) -> None:
        """Run the cell in this notebook's kernel, also when auto mode is on.

        ::

            %%local
            plt.plot(losses)
        """
        if line.strip():
            raise UsageError(f"%%local takes nothing after it, not {line.strip()!r}; type %%local")
        # Typed cells do not come here: auto mode's transformer has already read the line.
        self.shell.run_cell(cell).raise_error()

    def leave(self) -> None:
        """End the ranks as the notebook's kernel ends, unless they were started with --keep."""
        if self.cluster is None or os.getpid() != self._process:  # a fork does not own them
            return
        if not self.cluster.info.options.keep:
            with suppress(BenchError):  # the ranks end by themselves when they miss this process
                self.cluster.down()

    def _running(self) -> Cluster:
        if self.cluster is None:
            raise UsageError("no ranks are running: type %mlx_dist up -n 2 first")
        return self.cluster

    def _nothing_runs(self) -> None:
        if self.cluster is not None:
            raise UsageError(
                f"{ranks_text(range(self.cluster.size))} of cluster {self.cluster.id} are running "
                "already; type %mlx_dist restart to start them afresh, or %mlx_dist down first"
            )

    def _ranks(self, selection: RankSelection | None) -> list[int]:
        size = self._running().size
        return list(range(size)) if selection is None else selection.among(size)

    def _forget(self) -> None:
        self.auto.switch_off()
        self.cluster = None

    def _forget_if_ended(self, cluster: Cluster) -> None:
        if not cluster.info.home.exists():
            self._forget()

    def _show(self, cluster: Cluster, states: bool = False) -> None:
        from mlxbench_kernel.widgets import RanksTable

        display(RanksTable(cluster.status(), cluster.info, states))

    def _run_cell(self, command: commands.RunCell, cell: str) -> None:
        cluster = self._running()
        ranks = self._ranks(command.ranks)
        check_cell(cell)
        from mlxbench_kernel.kernel.cells import run_cell
        from mlxbench_kernel.widgets import RanksMarker

        if command.auto:
            display(RanksMarker(ranks_text(ranks)))
        with cluster.between():
            run_cell(self.shell, cluster, cell, ranks, command.timeout, command.setup)
            if command.out is not None:
                self.shell.push({command.out: cluster.results(ranks)})

    def _up(self, command: subcommands.Up) -> None:
        self._nothing_runs()
        from mlxbench_kernel.cluster import Cluster
        from mlxbench_kernel.widgets import ProgressBar

        with ProgressBar() as progress:
            self.cluster = Cluster.up(
                command.n,
                hostfile=command.hostfile,
                backend=command.backend or "",
                env=dict(command.env),
                python=command.python,
                timeout=command.timeout,
                keep=command.keep,
                seed=command.seed,
                progress=progress,
            )
        self._show(self.cluster)

    def _status(self) -> None:
        if self.cluster is None:
            print("no ranks are running: type %mlx_dist up -n 2")
        else:
            self._show(self.cluster, states=True)

    def _heal(self, command: subcommands.Heal) -> None:
        cluster = self._running()
        from mlxbench_kernel.widgets import ProgressBar

        size = cluster.size
        try:
            with ProgressBar() as progress:
                cluster.heal(command.drop, progress, print)
        except BaseException:
            self._forget_if_ended(cluster)
            raise
        if cluster.size != size and self.auto.on:
            self.auto.switch_on(cluster.size)
        self._show(cluster)

    def _restart(self, command: subcommands.Restart) -> None:
        cluster = self._running()
        ranks = None if command.ranks is None else self._ranks(command.ranks)
        from mlxbench_kernel.widgets import ProgressBar

        try:
            with ProgressBar() as progress:
                cluster.restart(ranks, progress, print)
        except BaseException:
            self._forget_if_ended(cluster)  # the old ranks are gone and there are no new ones
            raise
        self._show(cluster)

    def _interrupt(self, command: subcommands.Interrupt) -> None:
        ranks = self._ranks(command.ranks)
        said: list[str] = []
        for state, where in self._running().interrupt(ranks, said.append).items():
            print(f"{ranks_text(where)}: {state}")
        for line in said:
            print(line)

    def _attach(self, command: subcommands.Attach) -> None:
        from mlxbench_kernel.cluster import Cluster
        from mlxbench_kernel.widgets import ClustersTable

        id = command.id
        if id is None:
            clusters = Cluster.running()
            free = [each.id for each in clusters if not each.owner_alive]
            if not clusters:
                print("no cluster is running: type %mlx_dist up -n 2")
                return
            if len(free) != 1 or self.cluster is not None:
                display(ClustersTable(clusters))
                return
            id = free[0]
        self._nothing_runs()
        self.cluster = Cluster.attach(id)
        self._show(self.cluster)
        from mlxbench_kernel.kernel.past import show_last_cell

        show_last_cell(self.shell, self.cluster)

    def _down(self) -> None:
        if self.cluster is None:
            print("no ranks are running")
            return
        cluster = self.cluster
        try:
            left = cluster.down()
        finally:
            self._forget_if_ended(cluster)
        print("\n".join([f"{ranks_text(range(cluster.size))} ended", *left]))

    def _log(self, command: subcommands.Log) -> None:
        cluster = self._running()
        from mlxbench_kernel.widgets import CollectivesTable

        collectives = cluster.collectives(self._ranks(command.ranks))
        if any(collectives.values()):
            display(CollectivesTable(collectives, command.n))
        logs = cluster.logs(self._ranks(command.ranks), command.n)
        if cluster.info.backend == "mpi":  # mpirun writes one log for all
            print(f"── all ranks ──\n{next(iter(logs.values())).rstrip()}")
            return
        for rank, text in logs.items():
            print(f"── rank {rank} on {cluster.info.ranks[rank].host} ──\n{text.rstrip()}")

    def _doctor(self, command: subcommands.Doctor) -> None:
        from mlxbench_kernel.cluster.doctor import examine

        for finding in examine(command.hostfile, command.python):
            print(finding)

    def _push(self, command: subcommands.Push) -> None:
        ranks = self._ranks(command.ranks)
        here: dict[str, Any] = self.shell.user_ns
        for name in command.names:
            if name not in here:
                hidden = self.shell.user_ns_hidden
                own = [each for each in here if each not in hidden and not each.startswith("_")]
                near = nearest(name, own)
                hint = f", the nearest is {near}" if near else ""
                raise UsageError(
                    f"%mlx_dist push: there is no variable {name!r} in this notebook{hint}; "
                    f"type %mlx_dist push {near or 'NAMES'}"
                )
        from mlxbench_kernel.widgets import ProgressBar

        with ProgressBar() as progress:
            self._running().push({name: here[name] for name in command.names}, ranks, progress)
        print(f"{', '.join(command.names)} → {ranks_text(ranks)}")

    def _pull(self, command: subcommands.Pull) -> None:
        ranks = self._ranks(command.ranks)
        from mlxbench_kernel.widgets import ProgressBar

        with ProgressBar() as progress:
            arrived = self._running().pull(command.names, ranks, progress)
        for name in command.names:
            by_rank = {rank: arrived[rank][name] for rank in ranks}
            value = by_rank[ranks[0]] if len(ranks) == 1 else by_rank
            self.shell.push({command.target or name: value})
            form = "" if len(ranks) == 1 else ", a dictionary by rank"
            print(f"{command.target or name} ← {ranks_text(ranks)}{form}")

    def _auto(self, command: subcommands.Auto) -> None:
        if not command.on:
            self.auto.switch_off()
            print("auto is off: cells run here")
            return
        size = self._running().size
        self.auto.switch_on(size)
        print(
            f"auto is on: the following cells run on {ranks_text(range(size))}; "
            "%%local cells and %mlx_ magics run here, %mlx_dist auto off ends it"
        )
