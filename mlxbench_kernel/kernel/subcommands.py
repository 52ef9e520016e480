"""The subcommands of ``%mlx_dist`` with their options; each is a dataclass of what was typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from mlxbench_kernel.kernel.arguments import Parser, name, one_of, seconds, variable, whole
from mlxbench_kernel.kernel.command import Command, hostfile_options, ranks_option
from mlxbench_kernel.kernel.ranks import RankSelection


@dataclass(frozen=True)
class Up(Command):
    """Start ranks."""

    magic = "%mlx_dist up"
    summary = "Start ranks, on this machine or on the hosts of a hostfile."
    example = "-n 2"

    n: int | None
    hostfile: str | None
    python: str | None
    backend: str | None
    env: list[tuple[str, str]]
    seed: int | None
    timeout: float
    keep: bool

    @classmethod
    def options(cls, parser: Parser) -> None:
        from mlxbench_kernel.cluster.hostfile import BACKENDS

        parser.option(
            "-n", "-n 2", type=whole("a number of ranks", 1), metavar="N", help="number of ranks"
        )
        hostfile_options(parser)
        parser.option(
            "--backend", "--backend ring", type=one_of((*BACKENDS, "any")),
            metavar="B", help=f"{', '.join(BACKENDS)} or any",
        )  # fmt: skip
        parser.option(
            "--env", "--env NAME=VALUE", action="append", type=variable, default=[],
            metavar="K=V", help="environment variable of the ranks; may be repeated",
        )  # fmt: skip
        parser.option(
            "--seed", "--seed 0", type=whole("a random seed", 0, 2**64 - 1), metavar="N",
            help="random seed of all ranks",
        )  # fmt: skip
        parser.option(
            "--timeout", "--timeout 60", type=seconds, default=60.0, metavar="S",
            help="seconds to wait for the ranks (60)",
        )  # fmt: skip
        parser.option(
            "--keep", action="store_true",
            help="the ranks outlive this notebook; %%mlx_dist attach finds them",
        )  # fmt: skip


@dataclass(frozen=True)
class Status(Command):
    """Show the table of ranks."""

    magic = "%mlx_dist status"
    summary = "Show what every rank does and holds, also while it is busy."


@dataclass(frozen=True)
class Heal(Command):
    """Bring back what a fault has taken."""

    magic = "%mlx_dist heal"
    summary = "Bring back ranks that died, the group, or the controller; the rest keeps its state."
    detail = (
        "A rank that is started again repeats the cells marked --setup and all imports, and gets "
        "what was protected with protect(model=model, …) from a healthy rank."
    )

    drop: bool

    @classmethod
    def options(cls, parser: Parser) -> None:
        parser.option(
            "--drop", action="store_true",
            help="go on without ranks that are gone or silent; the others get new numbers",
        )  # fmt: skip


@dataclass(frozen=True)
class Restart(Command):
    """Start ranks afresh."""

    magic = "%mlx_dist restart"
    summary = "Start the ranks afresh; their variables are gone."
    detail = (
        "They get the options that up had. With --ranks only those are started again, as by heal, "
        "and the others keep their variables."
    )

    ranks: RankSelection | None

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)


@dataclass(frozen=True)
class Interrupt(Command):
    """Interrupt what ranks do."""

    magic = "%mlx_dist interrupt"
    summary = "Interrupt the cell that ranks are running; their variables stay."

    ranks: RankSelection | None

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)


@dataclass(frozen=True)
class Attach(Command):
    """Take over a running cluster, or list them."""

    magic = "%mlx_dist attach"
    summary = "Take over running ranks with all their variables; shows their last cell's output."
    detail = (
        "Without ID: those that no notebook holds, when there is one such cluster; otherwise "
        "a list."
    )
    words = "[ID]"

    id: str | None

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        if len(words) > 1:
            raise parser.wrong("takes one cluster's ID", words[0])
        return cls(words[0] if words else None)


@dataclass(frozen=True)
class Down(Command):
    """End all ranks."""

    magic = "%mlx_dist down"
    summary = "End the ranks; their variables are gone."


@dataclass(frozen=True)
class Log(Command):
    """Show the ranks' logs."""

    magic = "%mlx_dist log"
    summary = "Show the ranks' last collectives side by side, and the last lines of their logs."
    detail = "The first collective on which ranks disagree is marked. Also while a cell runs."

    ranks: RankSelection | None
    n: int

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)
        parser.option(
            "-n", "-n 20", type=whole("a number of lines", 1), default=20, metavar="LINES",
            help="lines per rank (20)",
        )  # fmt: skip


@dataclass(frozen=True)
class Doctor(Command):
    """Check what usually goes wrong."""

    magic = "%mlx_dist doctor"
    summary = "Check this machine, or the hosts of a hostfile, for what usually goes wrong."

    hostfile: str | None
    python: str | None

    @classmethod
    def options(cls, parser: Parser) -> None:
        hostfile_options(parser)


def _names(parser: Parser, words: list[str]) -> tuple[str, ...]:
    """The names among `words`; commas between them are fine."""
    names = [part for word in words for part in word.split(",") if part]
    if not names:
        raise parser.wrong("the names of the variables are missing")
    for each in names:
        if not each.isidentifier():
            raise parser.wrong(f"takes names of variables, not {each!r}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Push(Command):
    """Send variables of the notebook to ranks."""

    magic = "%mlx_dist push"
    summary = "Send variables of this notebook to the ranks, bit-exact, under the same names."
    words = "NAMES"
    example = "lr batch"

    names: tuple[str, ...]
    ranks: RankSelection | None

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        return cls(_names(parser, words), values["ranks"])


@dataclass(frozen=True)
class Pull(Command):
    """Fetch variables of ranks into the notebook."""

    magic = "%mlx_dist pull"
    summary = "Fetch variables of the ranks, bit-exact."
    detail = (
        "From one rank the name is bound to the value, from several to a dictionary {rank: value}. "
        "Nothing is bound unless all arrived."
    )
    words = "NAMES"
    example = "loss --ranks 0"

    names: tuple[str, ...]
    ranks: RankSelection | None
    target: str | None

    @classmethod
    def options(cls, parser: Parser) -> None:
        ranks_option(parser)
        parser.option(
            "--as", "loss --as first_loss", dest="target", type=name, metavar="NAME",
            help="bind it to this name here",
        )  # fmt: skip

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        names = _names(parser, words)
        if values["target"] and len(names) > 1:
            raise parser.wrong(
                f"--as goes with one name, not with {len(names)}",
                f"{names[0]} --as {values['target']}",
            )
        return cls(names, **values)


@dataclass(frozen=True)
class Auto(Command):
    """Switch auto mode."""

    magic = "%mlx_dist auto"
    summary = "on: every following cell runs on the ranks; off: here again."
    detail = (
        "Also then, cells that begin with %%local or an %mlx_ magic run here, as does exit alone. "
        "So do cells that other code of this notebook runs, and those that the front-end runs "
        "behind the scenes."
    )
    words = "on|off"
    example = "on"

    on: bool

    @classmethod
    def read(cls, parser: Parser, values: dict[str, Any], words: list[str]) -> Self:
        if words not in (["on"], ["off"]):
            raise parser.wrong(f"takes on or off, not {' '.join(words) or 'nothing'!r}")
        return cls(words == ["on"])


SUBCOMMANDS: dict[str, type[Command]] = {
    command.magic.split()[-1]: command
    for command in (
        Up, Status, Restart, Heal, Interrupt, Attach, Down, Log, Doctor, Push, Pull, Auto
    )
}  # fmt: skip
