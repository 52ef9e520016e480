"""One thread after the other uses the ranks."""

from __future__ import annotations

import signal
import threading

import pytest

from mlxbench_kernel.cluster.turns import Turns
from mlxbench_kernel.errors import GivenUp


def taken_by_another(turns: Turns) -> tuple[threading.Thread, threading.Event]:
    """A thread that uses the ranks, and what ends that."""
    inside, enough = threading.Event(), threading.Event()

    def background() -> None:
        with turns.taken(lambda text: None):
            inside.set()
            assert enough.wait(20)

    thread = threading.Thread(target=background)
    thread.start()
    assert inside.wait(20)
    return thread, enough


def test_one_waits_for_the_other_and_says_for_whom() -> None:
    turns = Turns()
    thread, enough = taken_by_another(turns)
    said: list[str] = []

    def show(text: str) -> None:
        said.append(text)
        enough.set()

    with turns.taken(show), turns.taken(show):  # a thread that has its turn goes on
        pass
    thread.join()
    assert set(said) == {"waiting for what runs on the ranks in the background, as a chat's answer"}


def test_a_ctrl_c_gives_the_waiting_up_and_leaves_the_other_alone() -> None:
    turns = Turns()
    thread, enough = taken_by_another(turns)
    with (
        pytest.raises(GivenUp, match="nothing was run, it was waiting for what runs"),
        turns.taken(lambda text: signal.raise_signal(signal.SIGINT)),
    ):
        pytest.fail("it has begun")
    enough.set()
    thread.join()
    with pytest.raises(KeyboardInterrupt) as caught, turns.taken(lambda text: None):
        raise KeyboardInterrupt
    assert not isinstance(caught.value, GivenUp)
    with turns.taken(lambda text: pytest.fail("nobody has it")):
        pass
