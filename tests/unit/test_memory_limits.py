"""MLX's limits: set, put back, and said beforehand as MLX's three allocators mean them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import pytest

from mlxbench_kernel import memory
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory import Limits, limits, samples
from mlxbench_kernel.units import parse_bytes

MB = 10**6
GB = 10**9
MLX_KEEPS = 32 << 20  # CommonAllocator's cache limit, mlx/backend/no_gpu/allocator.cpp
cpu_only = pytest.mark.skipif(mx.is_available(mx.gpu), reason="what MLX's CPU allocator does")


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    limits._SEEN.limits = Limits(None, None, None)
    memory_limit = mx.get_memory_limit()
    cache = mx.set_cache_limit(MLX_KEEPS)
    mx.set_cache_limit(cache)
    yield
    limits._SEEN.limits = Limits(None, None, None)
    mx.set_memory_limit(memory_limit)
    mx.set_cache_limit(cache)
    mx.clear_cache()


def cached(count: int) -> None:
    """Have MLX keep that many freed bytes."""
    mx.set_cache_limit(4 * GB)
    mx.clear_cache()
    array = mx.ones((count // 4,)) + 1
    mx.eval(array)
    del array
    mx.synchronize()
    assert mx.get_cache_memory() >= count


@cpu_only
def test_the_limits_are_those_that_mlx_has() -> None:
    mx.set_memory_limit(7 * GB)
    mx.set_cache_limit(123 * MB)
    assert limits.current() == Limits(memory=7 * GB, cache=None, wired=None), "nobody tells"
    assert limits.current(idle=True).cache == 123 * MB
    assert mx.set_cache_limit(MLX_KEEPS) == 123 * MB, "asking changed nothing"
    assert limits.current().cache == 123 * MB, "as last seen"
    cached(200 * MB)
    assert limits.current().cache is None, "more is cached than that: it was changed since"


@cpu_only
def test_asking_keeps_what_is_cached() -> None:
    cached(50 * MB)
    before = mx.get_cache_memory()
    limits.current(idle=True)
    assert mx.get_cache_memory() == before


@cpu_only
def test_setting_gives_back_what_was() -> None:
    mx.set_memory_limit(8 * GB)
    before = limits.apply(memory="5GB", cache="64 MiB")
    assert before == Limits(memory=8 * GB, cache=MLX_KEEPS, wired=None)
    assert limits.current() == Limits(memory=5 * GB, cache=64 * 1024**2, wired=None)
    assert limits.apply(memory=before.memory, cache=before.cache).cache == 64 * 1024**2
    assert limits.current() == before
    limits.apply(memory="50%")
    assert mx.get_memory_limit() == memory.sample().total // 2, "of the pool"


@cpu_only
def test_it_happens_as_it_was_said() -> None:
    cached(50 * MB)
    was = mx.get_cache_memory()
    said = limits.said_beforehand(cache="40MB")
    least = was - 40 * MB
    assert f"at least {memory.format_bytes(least)} of {memory.format_bytes(was)}" in said
    assert "at once" in said
    assert mx.get_cache_memory() == was, "said, not done"
    limits.apply(cache="40MB")
    assert was - mx.get_cache_memory() >= least

    cached(50 * MB)
    assert "no freed buffer is kept" in limits.said_beforehand(cache=0)
    limits.apply(cache=0)
    assert mx.get_cache_memory() == 0
    array = mx.ones((MB,)) + 1
    mx.eval(array)
    del array
    mx.synchronize()
    assert mx.get_cache_memory() == 0

    kept = mx.ones((20 * MB,)) + 1
    mx.eval(kept)
    said = limits.said_beforehand(memory="10MB")
    assert "evaluation gets slower until arrays are deleted" in said
    limits.apply(memory="10MB")
    more = kept + 1
    mx.eval(more)  # nothing is refused
    assert mx.get_active_memory() >= 160 * MB


@cpu_only
def test_clearing_and_the_peak() -> None:
    cached(50 * MB)
    assert limits.clear_cache() >= 50 * MB
    assert limits.clear_cache() == 0 == mx.get_cache_memory()
    array = mx.ones((10 * MB,)) + 1
    mx.eval(array)
    assert limits.reset_peak() >= 40 * MB
    assert mx.get_peak_memory() == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"memory": -1}, "memory limit: a size cannot be negative, as -1 is"),
        ({"cache": "-2GB"}, "cache limit: a size cannot be negative, as '-2GB' is"),
        ({"cache": "much"}, "cache limit: 'much' is not a size: type bytes, 4GB, 512MiB or 75%"),
        ({"cache": True}, "cache limit: True is not a size"),
        ({"memory": "200%"}, "memory limit: .* is more than the pool, .*: type at most that"),
        ({"memory": 10**16}, "memory limit: 10000 TB is more than the pool"),
    ],
)
def test_bad_limits_change_nothing(wrong: dict[str, Any], said: str) -> None:
    good = {"memory": "1GB", "cache": "1MB"}
    before = limits.current(idle=True)
    for call in (limits.apply, limits.said_beforehand):
        with pytest.raises(UsageError, match=said) as raised:
            call(**{**good, **wrong})
        assert "\n" not in str(raised.value)
    assert limits.current(idle=True) == before


@cpu_only
def test_no_wired_limit_without_metal() -> None:
    with pytest.raises(UsageError, match="MLX has none with the CPU; type memory or cache"):
        limits.apply(memory="1GB", wired="1GB")
    assert mx.get_memory_limit() != GB


@dataclass
class Allocator:
    """MLX's functions over a GPU's allocator: its setters swap, and nothing is freed by them."""

    active: int = 0
    cache: int = 0
    limits: dict[str, int] = field(default_factory=dict)

    def set(self, name: str, limit: int) -> int:
        before = self.limits[name]
        self.limits[name] = limit
        return before


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    fake = Allocator(limits={"memory": 30 * GB, "cache": 30 * GB, "wired": 0})
    for name in fake.limits:
        monkeypatch.setattr(mx, f"set_{name}_limit", lambda limit, name=name: fake.set(name, limit))
    monkeypatch.setattr(mx, "get_memory_limit", lambda: fake.limits["memory"])
    monkeypatch.setattr(mx, "get_active_memory", lambda: fake.active)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: fake.cache)
    return fake


@pytest.fixture
def metal(gpu: Allocator, monkeypatch: pytest.MonkeyPatch) -> Allocator:
    """``mlx/backend/metal/allocator.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    info = {"max_recommended_working_set_size": 24 * GB, "memory_size": 32 * GB}
    monkeypatch.setattr(samples, "gpu_info", lambda: info)
    monkeypatch.setattr(samples, "host_pool", lambda: (32 * GB, 20 * GB))
    return gpu


@pytest.fixture
def cuda(gpu: Allocator, monkeypatch: pytest.MonkeyPatch) -> Allocator:
    """``mlx/backend/cuda/allocator.cpp`` (ml-explore/mlx 846d176, 2026-08-22)."""
    info = {"total_memory": 80 * GB, "free_memory": 70 * GB}
    monkeypatch.setattr(samples, "gpu_info", lambda: info)
    return gpu


def test_on_metal(metal: Allocator) -> None:
    metal.active, metal.cache = 12 * GB, 5 * GB
    assert limits.current() == Limits(memory=30 * GB, cache=30 * GB, wired=None)
    said = limits.said_beforehand(memory="28GB", cache="1GB", wired="16GB")
    assert said.splitlines() == [
        "memory limit 28.0 GB (now 30.0 GB): while more is active, evaluation waits for what it "
        "has begun; no array is refused or freed; beyond 22.8 GB active and cached, cached "
        "buffers are given back",
        "cache limit 1.00 GB (now 30.0 GB): at least 4.00 GB of 5.00 GB of cached buffers are "
        "given back at the next allocation; of buffers freed later, MLX keeps that much for new "
        "arrays",
        "wired limit 16.0 GB: macOS (from 15 on) keeps up to that much of MLX's buffers "
        "resident, and has as much less for all other programs",
    ]
    assert metal.limits == {"memory": 30 * GB, "cache": 30 * GB, "wired": 0}, "said, not done"
    before = limits.apply(memory="28GB", cache="1GB", wired="16GB")
    assert before == Limits(memory=30 * GB, cache=30 * GB, wired=0)
    assert limits.current() == Limits(memory=28 * GB, cache=GB, wired=16 * GB)
    with pytest.raises(UsageError, match=r"24\.0 GB that macOS .* iogpu\.wired_limit_mb=28611 "):
        limits.apply(cache="2GB", wired="30GB")
    assert metal.limits["cache"] == GB


def test_on_cuda(cuda: Allocator) -> None:
    cuda.cache = 10 * GB
    said = limits.said_beforehand(memory="75%", cache="500MB")
    assert "beyond 60.0 GB active and cached, cached buffers are given back" in said
    assert "10.0 GB of 10.0 GB of cached buffers are given back at the next allocation" in said
    with pytest.raises(UsageError, match="none with CUDA"):
        limits.apply(wired=1)
    with pytest.raises(UsageError, match=r"81\.0 GB is more than the pool, 80\.0 GB"):
        limits.apply(memory="81GB")


@cpu_only
def test_asking_beside_a_running_cell_does_not_wait_for_it() -> None:
    """The CPU's allocator would, and hold the interpreter meanwhile."""
    asked: list[str] = []
    wait = mx.set_cache_limit
    mx.set_cache_limit = lambda limit: asked.append("waits") or wait(limit)  # type: ignore[func-returns-value]
    try:
        thread = threading.Thread(target=lambda: asked.append(str(limits.current().memory)))
        thread.start()
        thread.join()
        limits.said_beforehand(cache="1MB")
    finally:
        mx.set_cache_limit = wait
    assert asked == [str(mx.get_memory_limit())]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("4GB", 4 * GB),
        ("4 gb", 4 * GB),
        ("4G", 4 * GB),
        ("1.5GB", 1_500_000_000),
        (".5 kB", 500),
        ("512 MiB", 512 * 1024**2),
        ("2Ki", 2048),
        ("7B", 7),
        ("0", 0),
        ("75%", 750),
        (" 12.5 % ", 125),
    ],
)
def test_sizes_as_people_write_them(text: int | str, count: int) -> None:
    assert parse_bytes(text, 1000) == count


@pytest.mark.parametrize("text", ["", "GB", "4 QB", "1e9", "4GB5", "nan", "%", None, 1.5, False])
def test_what_is_not_a_size(text: Any) -> None:
    with pytest.raises(UsageError, match="is not a size: type bytes, 4GB, 512MiB or 75%"):
        parse_bytes(text, 1000)


def test_percent_of_nothing_is_not_a_size() -> None:
    with pytest.raises(UsageError, match=r"'75%' is not a size: type bytes, 4GB, 512MiB$"):
        parse_bytes("75%")
