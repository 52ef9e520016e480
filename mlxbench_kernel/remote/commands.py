"""What a notebook can have the ranks' stepper do between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import UsageError

if TYPE_CHECKING:
    from mlxbench_kernel.training.origin import StepGraph


class Commands:
    """The commands of `Stepping`; each returns when all ranks have done it."""

    def _command(self, name: str, *arguments: Any) -> Any:
        """Have all ranks call a method of their stepper; what the first of them returned."""
        return next(iter(self._command_all(name, *arguments).values()))

    def _command_all(self, name: str, *arguments: Any) -> dict[int, Any]:
        """As `_command`; what each of them returned."""
        raise NotImplementedError

    def step(self, n: int = 1) -> None:
        """Take n steps."""
        self._command("run", n)

    def back(self, n: int = 1) -> None:
        """Go back by n steps."""
        self._command("back", n)

    def to(self, step: int) -> None:
        """Go to the state after a step of this branch."""
        self._command("to", step)

    def reset(self) -> None:
        """Go to the beginning, and forget everything."""
        self._command("reset")

    def branch(self, name: str = "", at: int | None = None) -> str:
        """Begin another course, here or after an earlier step; what it is called."""
        return str(self._command("branch", name, at))

    def switch(self, name: str) -> None:
        """Go to the last step of a branch."""
        self._command("switch", name)

    def delete(self, name: str) -> None:
        """Forget a branch."""
        self._command("delete", name)

    def compare(self, a: str, b: str) -> list[tuple[str, float]]:
        """How far parameters of two branches are apart; see `Stepper.compare`."""
        found: list[tuple[str, float]] = self._command("compare", a, b)
        return found

    def set(self, /, **values: Any) -> None:
        """Change settings; see `Stepper.set`."""
        self._command("set_all", values)

    def freeze(self, path: str) -> None:
        """Train a layer no more."""
        self._command("freeze", path)

    def unfreeze(self, path: str) -> None:
        """Train a layer again."""
        self._command("unfreeze", path)

    def break_at(self, what: str) -> None:
        """Stop when something happens; see `Stepper.break_at`."""
        self._command("break_at", what)

    def no_break(self, what: str) -> None:
        """Do not stop for this any more."""
        self._command("no_break", what)

    def keep(self, budget_bytes: int) -> None:
        """Take so much memory at most for the states that are kept."""
        self._command("set_budget", budget_bytes)

    def equalize(self, rank: int) -> None:
        """Give all ranks the state of one."""
        self._command("equalize", rank)

    def save(self, path: str) -> None:
        """Write a checkpoint."""
        self._command("save", path)

    def load(self, path: str) -> None:
        """Go on from a checkpoint."""
        self._command("load", path)

    def restart_batches(self) -> None:
        """Begin with the first batch again."""
        self._command("restart_batches")

    def graph(self) -> StepGraph:
        """The graph of the last step, with the operation where NaN begins.

        Raises
        ------
        UsageError
            The step cannot be evaluated again; says why.
        """
        every: list[StepGraph] = list(self._command_all("graph").values())
        found = next((each for each in every if each.graph is not None), None)
        if found is None:
            raise UsageError(every[0].said)
        return found

    def script(self) -> str:
        """A program that takes the steps of this branch again; see `Stepper.script`."""
        return str(self._command("script"))
