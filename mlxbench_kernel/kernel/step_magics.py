"""``%mlx_step``: drives the stepper of the ranks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from mlxbench_kernel.errors import GivenUp, StorageError, UsageError
from mlxbench_kernel.kernel.frames import only_frames_of_the_user
from mlxbench_kernel.kernel.words import Word, help_text, read
from mlxbench_kernel.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from mlxbench_kernel.kernel.magics import RanksMagics
    from mlxbench_kernel.remote.stepping import Stepping

WORDS = {
    "": Word("", "", "the dashboard of the ranks' stepper"),
    "N": Word("", "100", "take so many steps; Ctrl-C pauses"),
    "until": Word("EXPR", "until loss < 0.1", "take steps until a condition holds"),
    "play": Word("", "play", "take steps in the background; cells may run meanwhile"),
    "pause": Word("", "pause", "stop after this step, on all ranks"),
    "back": Word("[N]", "back 10", "go back by a step, or by so many"),
    "to": Word("N", "to 40", "go to the state after a step"),
    "branch": Word("[NAME] [at N]", "branch warm at 40", "begin another course, here or earlier"),
    "switch": Word("NAME", "switch main", "go to the last step of a branch"),
    "delete": Word("NAME", "delete warm", "forget a branch"),
    "compare": Word("A B", "compare main warm", "how far apart two branches' parameters are"),
    "set": Word("NAME=VALUE …", "set learning_rate=1e-3", "change settings from here on"),
    "freeze": Word("LAYER", "freeze layers.0", "train a layer no more"),
    "unfreeze": Word("LAYER", "unfreeze layers.0", "train a layer again"),
    "break": Word("EXPR", "break spike", "stop when that happens"),
    "nobreak": Word("EXPR", "nobreak spike", "do not stop for it any more"),
    "budget": Word("SIZE", "budget 2GB", "memory for the states that are kept"),
    "equalize": Word("RANK", "equalize 0", "give all ranks the state of one"),
    "save": Word("FOLDER", "save run-1", "write a checkpoint"),
    "load": Word("FOLDER", "load run-1", "go on from a checkpoint"),
    "restart-batches": Word("", "restart-batches", "begin with the first batch again"),
    "reset": Word("", "reset", "go to the beginning, and forget all steps"),
    "graph": Word("", "graph", "the graph of the last step, at the first operation that gave NaN"),
    "script": Word("[FILE]", "script replay.py", "a program that takes these steps again"),
    "status": Word("", "status", "how it stands, in a line"),
}


@magics_class
class StepMagics(Magics):
    """The magic of one shell.

    Parameters
    ----------
    ranks
        The magics that hold the cluster.
    """

    def __init__(self, ranks: RanksMagics) -> None:
        super().__init__(ranks.shell)
        self._ranks = ranks
        self._stepping: Stepping | None = None

    @line_magic
    def mlx_step(self, line: str) -> Any:
        """Step the training of the ranks forwards and back.

        ::

            %%mlx_dist
            stepper = Stepper(model, optimizer, loss_fn, batches)

            %mlx_step                           the dashboard
            %mlx_step 100                       take steps
            %mlx_step until loss < 0.1          until a condition holds
            %mlx_step play | pause              in the background; cells may run meanwhile
            %mlx_step back 10 | to 40 | reset   to another step
            %mlx_step branch warm | switch main to another course
            %mlx_step set learning_rate=1e-3    settings from here on
            %mlx_step --help                    all of it
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in ("--help", "-h", "help"):
            print(help_text("%mlx_step", WORDS))
            return None
        if name.isdigit():
            if rest:
                raise UsageError(f"%mlx_step {name} takes nothing after it: type %mlx_step {name}")
            name, rest = "N", name
        elif name in ("run", "step"):
            known = rest.isdigit() or (rest and rest.partition(" ")[0] in WORDS)
            raise UsageError(f"there is no {name!r}: type %mlx_step {rest if known else 1}")
        else:
            name, rest = read("%mlx_step", WORDS, line)
        stepping = self._of_ranks()
        if not name:
            from mlxbench_kernel.widgets.stepping import StepperView

            display(StepperView(stepping))
            return None
        try:
            return self._do(stepping, name, rest)
        except GivenUp:
            raise
        except KeyboardInterrupt:
            with only_frames_of_the_user(self._ranks.shell):
                raise KeyboardInterrupt from None

    def _of_ranks(self) -> Stepping:
        from mlxbench_kernel.remote.driving import stepping_of

        cluster = self._ranks.cluster
        if cluster is None:
            raise UsageError("no ranks are running: type %mlx_dist up -n 2 first")
        self._stepping = stepping_of(cluster)
        self._stepping.tell = lambda text: print(text, file=sys.stderr)
        return self._stepping

    def names(self, word: str) -> list[str]:
        """What can follow a word, as last heard of the ranks."""
        if self._stepping is None or self._stepping.cluster is not self._ranks.cluster:
            return []
        state = self._stepping.state
        branches = [each.name for each in state.branches]
        return {
            "switch": branches,
            "delete": branches,
            "compare": branches,
            "set": [f"{name}=" for name in state.settings],
            "freeze": [*state.layers],
            "unfreeze": [*state.frozen],
            "until": [*state.measured, "plateau(", "spike("],
            "break": [*state.breakpoints, *state.measured],
            "nobreak": [*state.active],
            "equalize": [str(rank) for rank in range(self._stepping.size)],
        }.get(word, [])

    def _do(self, stepping: Stepping, name: str, rest: str) -> None:
        if name in ("N", "until"):
            return self._run(stepping, name, rest)
        if name == "compare":
            return self._compare(stepping, rest.split())
        if name == "graph":
            return self._graph(stepping)
        if name == "script":
            return self._script(stepping, rest)
        if name == "set":
            stepping.set(**_settings(rest))
        elif name == "branch":
            _branch(stepping, rest.split())
        elif name == "budget":
            stepping.keep(parse_bytes(rest))
        elif name in ("to", "equalize") or (name == "back" and rest):
            getattr(stepping, name)(_whole(name, rest))
        elif name != "status":
            method = {"break": "break_at", "nobreak": "no_break"}.get(name, name)
            getattr(stepping, method.replace("-", "_"))(*[rest] * bool(rest))
        print(said(stepping))
        return None

    def _run(self, stepping: Stepping, name: str, rest: str) -> None:
        from mlxbench_kernel.widgets.stepping_run import wait

        first = stepping.state.step
        if name == "N":
            stepping.run(_whole("N", rest))
        else:
            stepping.until(rest)
        try:
            wait(stepping, first, int(rest) if name == "N" else 0)
        except KeyboardInterrupt:
            print(said(stepping))
            raise
        print(said(stepping))

    def _compare(self, stepping: Stepping, names: list[str]) -> None:
        from mlxbench_kernel.widgets.table import Table

        if len(names) != 2:
            raise UsageError("%mlx_step compare takes two branches: %mlx_step compare main warm")
        found = stepping.compare(*names)
        rows = [(name, f"{apart:.4g}") for name, apart in found]
        display(Table(("parameter", "relative difference"), rows, f"{names[0]} → {names[1]}"))

    def _graph(self, stepping: Stepping) -> None:
        from mlxbench_kernel.widgets import graphs

        found = stepping.graph()
        print(found.said)
        display(graphs.view_of_step(found))

    def _script(self, stepping: Stepping, file: str) -> None:
        text = stepping.script()
        if not file:
            print(text)
            return
        try:
            Path(file).expanduser().write_text(text)
        except OSError as error:
            raise StorageError(f"{file} could not be written: {error.strerror}") from None
        print(f"written to {file}")


def said(stepping: Stepping) -> str:
    """How it stands, in a line."""
    state = stepping.state
    last = stepping.histories[0].last(state.branch)
    parts = [f"step {state.step}", f"branch {state.branch}", state.doing]
    if "loss" in last and last["step"] == state.step:
        parts.append(f"loss {last['loss']:.6g}")
    if state.said and not state.playing and state.said != f"step {state.step}":
        parts.append(state.said)
    kept = len(state.kept)
    states = "state" if kept == 1 else "states"
    parts.append(
        f"{kept} {states} kept, {format_bytes(state.used)} of {format_bytes(state.budget)}"
    )
    return " · ".join(parts)


def _whole(name: str, text: str, what: str = "a whole number") -> int:
    if not text.isdigit():
        raise UsageError(
            f"%mlx_step {name} takes {what}, not {text!r}: type %mlx_step {WORDS[name].example}"
        )
    return int(text)


def _settings(text: str) -> dict[str, str]:
    found = dict(re.findall(r"([\w.]+)\s*=\s*([^\s,]+)", text))
    if not found or re.sub(r"([\w.]+)\s*=\s*([^\s,]+)[\s,]*", "", text).strip():
        raise UsageError(
            f"%mlx_step set takes NAME=VALUE, not {text!r}: type %mlx_step set learning_rate=1e-3"
        )
    return found


def _branch(stepping: Stepping, words: list[str]) -> None:
    at = None
    if "at" in words:
        place = words.index("at")
        at = _whole("branch", " ".join(words[place + 1 :]), "after at a whole number")
        words = words[:place]
    if len(words) > 1:
        raise UsageError("a branch has one word for a name: type %mlx_step branch warm at 40")
    stepping.branch(words[0] if words else "", at)
