"""Serves a language model to other programs: mlx-lm's OpenAI-compatible server, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.interrupts import held
from mlxbench_kernel.models.answering import Answering
from mlxbench_kernel.models.door import Door
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.rank.answers import ANSWERS

SILENCE_SECONDS = 30.0  # of the notebook, after which nobody is there to stop the server


class Served:
    """The server of a model on this rank; all ranks of a split model make one alike.

    It answers during a `turn`, which all ranks begin, and which ends on all of them between two
    tokens; requests that come outside, or are not answered yet, wait for the next one.

    Parameters
    ----------
    part
        Of the model.
    model_id
        What requests call it.
    port
        Where rank 0 listens, on its machine's loopback only; 0 for one that is free.
    options
        See `answering.OPTIONS`.

    Attributes
    ----------
    port : int
        Where it listens; 0 on other ranks.

    Raises
    ------
    UsageError
        The port is taken, or there is no such option.
    """

    def __init__(
        self, part: Part, model_id: str, port: int = 0, options: dict[str, Any] | None = None
    ) -> None:
        _evaluate(part)
        self._answering = Answering(part, model_id, options or {})
        self._turns = self._answering.turns
        self._door: Door | None = None
        self._heard = time.monotonic()
        if part.rank == 0:
            try:
                self._door = Door(self._answering, port)
            except UsageError:
                self.close()
                raise
        self.port = 0 if self._door is None else self._door.port
        ANSWERS.update(self._answers())

    def _answers(self) -> dict[str, Callable[..., Any]]:
        """What a rank answers on its control channel while it has a server."""
        return {"server": self.state, "server_pause": self.pause}

    def turn(self) -> str:
        """Answer requests until somebody asks for a pause, see `pause`.

        Returns
        -------
        str
            "" after a pause; else why the server has closed.

        Raises
        ------
        Exception
            What ended the thread that generates; the server is closed then, as after an interrupt.
        """
        self._heard = time.monotonic()
        self._turns.begin()
        try:
            try:
                while not self._turns.has_rested():
                    if self._is_alone():
                        self._answering.stop()
            except KeyboardInterrupt:
                self.pause()
                while not self._turns.has_rested():
                    pass
                raise
            if self._turns.error is not None:
                raise self._turns.error
        except BaseException:
            with held():  # ranks are interrupted when another one is gone, which may be now
                self.close()
            raise
        if self._turns.over:
            self.close()
            return f"nothing was heard of the notebook for {SILENCE_SECONDS:g} s"
        return ""

    def _is_alone(self) -> bool:
        return self._door is not None and time.monotonic() - self._heard > SILENCE_SECONDS

    def pause(self) -> None:
        """Have the turn end on all ranks, soon; on rank 0, from any thread."""
        if self._door is not None:
            self._answering.pause()

    def state(self) -> dict[str, Any]:
        """``requests`` so far and ``port``, for somebody who is there; from any thread."""
        self._heard = time.monotonic()
        return {"requests": self._answering.requests_so_far, "port": self.port}

    def close(self) -> None:
        """Stop; clients that wait get an error. May be called again."""
        for name, answer in self._answers().items():
            if ANSWERS.get(name) == answer:
                del ANSWERS[name]
        self._turns.close()
        if self._turns.has_rested():
            self._answering.join()
        else:  # it waits for a rank that will not come
            self._answering.give_up()
        if self._door is not None:
            self._door.close()


def _evaluate(part: Part) -> None:
    """What layers hold beside parameters may be lazy, and then only this thread can evaluate it."""
    modules: list[Module] = [part.model, *([] if part.draft is None else [part.draft])]
    for model in modules:
        for module in model.modules():
            mx.eval([value for value in module.values() if isinstance(value, mx.array)])
