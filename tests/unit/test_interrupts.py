"""Ctrl-C waits for what must not be broken off."""

import os
import signal

import pytest

from mlxbench_kernel.interrupts import held


def test_a_held_block_runs_to_its_end_and_then_the_interrupt_comes():
    done = []

    def work():
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens():
    with held():
        pass
