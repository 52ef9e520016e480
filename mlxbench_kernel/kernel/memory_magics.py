"""``%mlx_mem``: the pools of all hosts, and what ranks hold in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.kernel.ranks import RankSelection
from mlxbench_kernel.kernel.words import Word, help_text, read
from mlxbench_kernel.memory.limits import NAMES as LIMITS
from mlxbench_kernel.units import format_bytes

if TYPE_CHECKING:
    from mlxbench_kernel.kernel.magics import RanksMagics
    from mlxbench_kernel.memory.fit import FitPlan
    from mlxbench_kernel.remote.memory import Memory

WORDS = {
    "": Word("", "", "the view: pools, timelines, what holds memory, limits"),
    "status": Word("", "status", "pools and ranks, in a table"),
    "fit": Word(
        "MODEL [NAME=VALUE …]",
        "fit ./Llama-3B context=16384 mode=lora",
        "whether a model fits on the ranks: context, batch, mode, shard",
    ),
    "limit": Word("NAME=SIZE …", "limit cache=1GB", "set limits: memory, cache, wired"),
    "limits": Word("", "limits", "the limits of now"),
    "clear-cache": Word("", "clear-cache", "give MLX's cache back to the system"),
    "reset-peak": Word("", "reset-peak", "have the peak begin anew"),
    "holds": Word("[RANK]", "holds 1", "what holds a rank's memory, and what would free most"),
    "grew": Word("CELL", "grew 7", "what grew since cell 7; --ranks 1 for another rank than 0"),
    "growth": Word("", "growth", "ranks whose memory grows step after step, and why"),
    "mark": Word("[NAME]", "mark epoch 2", "begin a span in the timelines; without a name end it"),
    "csv": Word("FILE", "csv memory.csv", "write all samples as a table"),
    "html": Word("FILE", "html memory.html", "write a report that stands alone"),
}

OF_RANKS = ("limit", "clear-cache", "reset-peak", "grew")
PLANNED = ("context", "batch", "mode", "shard")


@magics_class
class MemoryMagics(Magics):
    """The magic of one shell.

    Parameters
    ----------
    ranks
        The magics that hold the cluster.
    """

    def __init__(self, ranks: RanksMagics) -> None:
        super().__init__(ranks.shell)
        self._ranks = ranks

    @line_magic
    def mlx_mem(self, line: str) -> None:
        """Watch and limit memory: of the ranks, or without any of this kernel.

        ::

            %mlx_mem                            the view
            %mlx_mem status                     pools and ranks, in a table
            %mlx_mem limit cache=1GB            set limits; --ranks 0,2-3 for some
            %mlx_mem clear-cache | reset-peak
            %mlx_mem mark epoch 2               begin a span in the timelines
            %mlx_mem --help                     all of it
        """
        text, ranks = _split(line)
        if text in ("--help", "-h", "help"):
            print(help_text("%mlx_mem", WORDS))
            return
        self._do(*read("%mlx_mem", WORDS, text), ranks)

    def _do(self, name: str, rest: str, chosen: RankSelection | None) -> None:
        from mlxbench_kernel.widgets import memory as view
        from mlxbench_kernel.widgets import memory_tables

        memory = view.watched(self._ranks.cluster)
        ranks = None if chosen is None else chosen.among(memory.size)
        if ranks is not None and name not in OF_RANKS:
            raise UsageError(
                f"%mlx_mem {name} takes no --ranks; with it are {', '.join(OF_RANKS)}: "
                f"type %mlx_mem {WORDS[name].example}".rstrip()
            )
        if name == "":
            display(view.MemoryView(memory))
        elif name == "status":
            display(memory_tables.status(memory))
        elif name == "limits":
            memory.look_at_limits()  # a cell may have set others since the last look
            display(memory_tables.limits(memory))
        elif name == "limit":
            sizes = _sizes(rest)
            print(memory.said_beforehand(ranks, **sizes))
            memory.set_limits(ranks, **sizes)
        elif name == "clear-cache":
            print(f"{format_bytes(memory.clear_cache(ranks))} were given back to the system")
        elif name == "reset-peak":
            memory.reset_peak(ranks)
        elif name == "fit":
            print(_plan(rest, self._ranks))
        elif name == "holds":
            found = memory.look(_rank(rest or "0"))
            print(" · ".join(f"{kind} {format_bytes(n)}" for kind, n in found.by_kind().items()))
            if waiting := memory_tables.waiting(found):
                print(waiting)
            display(memory_tables.freeable_table(found))
        elif name == "grew":
            for rank in ranks or [0]:
                display(memory_tables.grown_table(memory.grew(rank, rest)))
        elif name == "growth":
            print(
                "\n".join(memory.said_of_growth(ask=True))
                or "no rank grows step after step, as far as was seen"
            )
        elif name == "mark":
            memory.mark(rest)
        else:
            self._write(memory, name, Path(rest).expanduser())

    def _write(self, memory: Memory, kind: str, file: Path) -> None:
        from mlxbench_kernel.widgets import memory_report

        try:
            if kind == "csv":
                memory_report.to_csv(memory, file)
            else:
                memory_report.to_html(memory, file)
        except OSError as error:
            raise StorageError(f"{file} could not be written: {error.strerror or error}") from None
        print(f"written to {file}")


def _split(line: str) -> tuple[str, RankSelection | None]:
    """A line without its ``--ranks``, and what that says."""
    words = line.replace("--ranks=", "--ranks ").split()
    if "--ranks" not in words:
        return line, None
    place = words.index("--ranks")
    if place + 1 >= len(words):
        raise UsageError("%mlx_mem: --ranks takes numbers: type --ranks 0,2-3")
    try:
        chosen = RankSelection.parse(words[place + 1])
    except ValueError as error:
        raise UsageError(f"%mlx_mem: --ranks {error}") from None
    return " ".join([*words[:place], *words[place + 2 :]]), chosen


def _plan(text: str, ranks: RanksMagics) -> FitPlan:
    from mlxbench_kernel.memory.fit import FitPlan

    model, *words = text.split()
    settings: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in PLANNED or not value:
            raise UsageError(
                f"%mlx_mem fit takes {', '.join(f'{each}=' for each in PLANNED)} after the model, "
                f"not {word!r}: type %mlx_mem {WORDS['fit'].example}"
            )
        settings[name] = int(value) if value.isdigit() else value
    known = ranks.shell.user_ns.get(model, model)
    return FitPlan(known, 1 if ranks.cluster is None else ranks.cluster, **settings)


def _rank(text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"%mlx_mem holds takes a rank, not {text!r}: type %mlx_mem holds 0")
    return int(text)


def _sizes(text: str) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for word in text.split():
        name, _, size = word.partition("=")
        if name not in LIMITS or not size:
            raise UsageError(
                f"%mlx_mem limit takes {', '.join(f'{each}=SIZE' for each in LIMITS)}, not "
                f"{word!r}: type %mlx_mem limit cache=1GB"
            )
        found[name] = size
    return found
