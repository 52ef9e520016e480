"""What the table of ranks says about memory, read in the process that it is about."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from typing import Any

import mlx.core as mx
import pytest

from mlxbench_kernel import memory
from mlxbench_kernel.memory import samples

MB = 10**6


def test_an_array_shows_up_in_mlx_and_in_the_footprint() -> None:
    mx.clear_cache()
    before = memory.sample()
    with mx.stream(mx.cpu):
        weights = mx.random.normal((64 * MB,))
        mx.eval(weights)
    held = memory.sample()
    # To a few bytes: the draw also replaces the random state, which may grow or shrink.
    assert 255 * MB < held.active - before.active < 257 * MB
    assert held.peak >= held.active
    assert 0 < held.available < held.total
    # The system charges other things too, but not another array.
    assert 250 * MB < held.footprint - before.footprint < 300 * MB

    del weights
    freed = memory.sample()
    assert 255 * MB < held.active - freed.active < 257 * MB
    # MLX keeps what it may need again; the rest goes back to the system.
    kept, returned = freed.cache - held.cache, held.footprint - freed.footprint
    assert 250 * MB < kept + returned < 300 * MB
    mx.clear_cache()
    assert memory.sample().footprint - before.footprint < 50 * MB


def test_looking_evaluates_nothing() -> None:
    before = memory.sample()
    lazy = mx.ones((64 * MB,))
    assert memory.sample().active - before.active < MB
    mx.eval(lazy)
    assert memory.sample().active - before.active >= 256 * MB


def test_any_thread_can_ask() -> None:
    samples: list[memory.MemorySample] = []
    thread = threading.Thread(target=lambda: samples.append(memory.sample()))
    thread.start()
    thread.join()
    assert samples[0].total == memory.sample().total


def test_a_sample_travels_as_plain_numbers() -> None:
    values = dataclasses.asdict(memory.sample())
    names = ["active", "cache", "peak", "footprint", "total", "available", "limit"]
    assert list(values) == names
    assert all(type(value) is int for value in values.values() if value is not None)
    assert memory.MemorySample(**values).footprint == values["footprint"]


def test_the_notebook_can_import_it_without_mlx() -> None:
    code = "import sys, mlxbench_kernel.memory as m; print('mlx.core' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `mx.device_info` answers for a GPU that this machine need not have."""
    info: dict[str, Any] = {}
    monkeypatch.setattr(samples, "_has_gpu", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda kind: 1)
    monkeypatch.setattr(mx, "device_info", lambda device: info if device.type == mx.gpu else {})
    return info


def test_on_cuda_the_pool_is_the_gpus(gpu: dict[str, Any]) -> None:
    """Keys of ``mlx/backend/cuda/device_info.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    gpu.update(device_name="NVIDIA H200", total_memory=150_754_820_096, free_memory=149_000_000_000)
    seen = memory.sample()
    assert (seen.total, seen.available, seen.limit) == (150_754_820_096, 149_000_000_000, None)
    gpu["free_memory"] = 1_000_000_000
    assert memory.sample().available == 1_000_000_000, "it is asked anew each time"


def test_on_metal_the_pool_is_the_hosts_and_the_gpu_has_a_limit(gpu: dict[str, Any]) -> None:
    """Keys of ``mlx/backend/metal/device_info.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    host = memory.sample().total
    gpu.update(
        device_name="Apple M4 Max",
        memory_size=host,
        max_recommended_working_set_size=115_448_725_504,
        max_buffer_length=86_586_540_032,
        resource_limit=499_000,
    )
    seen = memory.sample()
    assert (seen.total, seen.limit) == (host, 115_448_725_504)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (12_345_678_901, "12.3 GB"),
        (137_438_953_472, "137 GB"),
        (-1_500_000, "-1.50 MB"),
        (2.5e15, "2500 TB"),
    ],
)
def test_bytes_are_written_with_three_digits(count: float, text: str) -> None:
    assert memory.format_bytes(count) == text
