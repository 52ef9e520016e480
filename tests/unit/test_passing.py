"""A cell that passes MLX's memory limit says so; what stays below it says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

MB = 10**6


@pytest.fixture
def limited() -> Iterator[int]:
    limit = mx.get_active_memory() + 8 * MB
    before = mx.set_memory_limit(limit)
    mx.reset_peak_memory()
    yield limit
    mx.set_memory_limit(before)


def make(size: int) -> str:
    return f"import mlx.core as mx\nlarge = mx.ones({size}, mx.uint8)\nmx.eval(large)\ndel large"


def test_it_is_said_once_with_the_sizes(
    shell: Any, limited: int, capfd: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell(make(2 * MB))
    assert capfd.readouterr().err == ""
    shell.run_cell(make(20 * MB))
    said = capfd.readouterr().err
    assert f"limit of {limited / MB:.3g}"[:12] in said
    assert "was passed" in said and "%mlx_mem limit memory=" in said and said.count("\n") == 1
    shell.run_cell("1 + 1")
    assert capfd.readouterr().err == ""


def test_what_it_says_to_type_is_enough(
    shell: Any, limited: int, capfd: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell(make(20 * MB))
    asked = int(capfd.readouterr().err.rpartition("memory=")[2].removesuffix("MB\n")) * MB
    mx.set_memory_limit(asked)
    mx.reset_peak_memory()
    shell.run_cell(make(20 * MB))
    assert capfd.readouterr().err == ""


def test_nothing_is_said_without_the_extension(
    shell: Any, limited: int, capfd: pytest.CaptureFixture[str]
) -> None:
    shell.extension_manager.unload_extension("mlxbench_kernel")
    shell.run_cell(make(20 * MB))
    assert capfd.readouterr().err == ""
    shell.extension_manager.load_extension("mlxbench_kernel")
