"""The bar that moves a stepper through its steps."""

from __future__ import annotations

from mlxbench_kernel.remote.mirror import State
from mlxbench_kernel.widgets.controls import Ask, button, count, field, row, sure, together, wanted
from mlxbench_kernel.widgets.stepping_source import Stepping


class Movement:
    """The bar of buttons that step, play, and go back.

    Parameters
    ----------
    stepping
        What is moved.
    ask
        Runs a command.
    """

    def __init__(self, stepping: Stepping, ask: Ask) -> None:
        self._stepping, self._ask = stepping, ask
        self.back_by, self.run_by = count(1, 1, "steps to go back"), count(100, 1, "steps to run")
        self.target = count(0, 0, "step to go to")
        self.condition = field("loss < 0.1", self._until, "14em")
        self.name = field("name of a branch", self._branch, "10em")
        self.playing = button("Play", self._play, "play", "Play until something stops it, or pause")
        self.widget = row(
            sure("Reset", self._reset, "fast-backward", "Go back to the beginning"),
            together(
                button("Back", self._back, "step-backward", "Go back so many steps"), self.back_by
            ),
            button("Step", self._step, "step-forward", "Take one step on all ranks"),
            together(button("Run", self._run, "forward", "Take so many steps"), self.run_by),
            self.playing,
            together(
                button("Until", self._until, "flag-checkered", "Play until this holds"),
                self.condition,
            ),
            together(button("To step", self._to, "map-marker", "Go to this step"), self.target),
            together(
                button("Branch", self._branch, "code-fork", "Begin a branch at this step"),
                self.name,
            ),
        )

    def show(self, state: State) -> None:
        """Show whether it plays."""
        label, icon = ("Pause", "pause") if state.playing else ("Play", "play")
        if self.playing.description != label:
            self.playing.description, self.playing.icon = label, icon

    def _step(self) -> None:
        self._ask("taking a step", self._stepping.step)

    def _run(self) -> None:
        steps = self.run_by.value
        self._ask(f"running {steps} steps", lambda: self._stepping.run(steps))

    def _play(self) -> None:
        if self._stepping.state.playing:
            self._ask("pausing", self._stepping.pause)
        else:
            self._ask("beginning to play", self._stepping.play)

    def _until(self) -> None:
        text = self.condition.value
        self._ask(
            f"playing until {text}", lambda: self._stepping.until(wanted(text, "the condition"))
        )

    def _back(self) -> None:
        steps = self.back_by.value
        self._ask(f"going back {steps} step{'s'[: steps > 1]}", lambda: self._stepping.back(steps))

    def _to(self) -> None:
        step = self.target.value
        self._ask(f"going to step {step}", lambda: self._stepping.to(step))

    def _branch(self) -> None:
        name = self.name.value.strip()

        def command() -> None:
            self._stepping.branch(name)
            self.name.value = ""

        self._ask(f"beginning the branch {name}".rstrip(), command)

    def _reset(self) -> None:
        self._ask("going back to the beginning", self._stepping.reset)
