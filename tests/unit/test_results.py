"""What a rank keeps of what it did for a notebook."""

from __future__ import annotations

import gc
import weakref

import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote import results

TEXT = ("mlxbench_kernel.units", "parse_bytes")
OTHER = ("mlxbench_kernel.units", "format_bytes")


def test_a_result_is_kept_until_it_is_taken_and_each_function_has_its_own() -> None:
    assert results.keep(*TEXT, "2kB") is None, "a cell prints nothing"
    results.keep(*OTHER, 5)
    assert results.take(*TEXT) == 2000
    assert results.take(*TEXT) is None and results.take(*OTHER) == "5 B"


def test_what_fails_leaves_no_older_result() -> None:
    results.keep(*TEXT, "2kB")
    with pytest.raises(UsageError, match="is not a size"):
        results.keep(*TEXT, "much")
    assert results.take(*TEXT) is None


class Model:
    """What is to be let go of."""


HELD: list[weakref.ref[Model]] = []


def fails() -> None:
    model = Model()
    HELD.append(weakref.ref(model))

    def step() -> None:
        assert model
        raise KeyboardInterrupt

    try:
        step()
    except KeyboardInterrupt as error:
        raise ValueError("while it was stopped") from error


def test_an_error_holds_nothing_of_what_was_at_work() -> None:
    with pytest.raises(ValueError, match="while it was stopped") as found:
        results.keep(__name__, "fails")
    gc.collect()
    assert isinstance(found.value.__cause__, KeyboardInterrupt), "which was not let go of"
    assert HELD.pop()() is None


def test_an_interrupt_that_comes_twice_holds_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget = results._forget_frames

    def interrupted(error: BaseException) -> None:
        monkeypatch.setattr(results, "_forget_frames", forget)
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "_forget_frames", interrupted)
    with pytest.raises(KeyboardInterrupt) as found:
        results.keep(__name__, "fails")
    gc.collect()
    assert isinstance(found.value.__context__, ValueError), "which was not let go of"
    assert HELD.pop()() is None
