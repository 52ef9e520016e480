"""On a machine with an NVIDIA GPU: what is told of its pool against what nvidia-smi says."""

from __future__ import annotations

import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from needs import require

from mlxbench_kernel import memory
from mlxbench_kernel.memory import cuda, limits

MB = 2**20


@pytest.fixture(scope="module")
def device() -> cuda.CudaDevice:
    seen = cuda.device() if mx.is_available(mx.gpu) else None
    if seen is None:  # nothing that CI could install
        pytest.skip("there is no NVIDIA GPU")
    require(shutil.which("nvidia-smi") is not None, "no nvidia-smi")
    mx.eval(mx.ones((1000,)) + 1)  # what the process takes at its first use is taken
    return seen


def smi(device: cuda.CudaDevice) -> tuple[int, int, int]:
    """Total, free and used bytes; nvidia-smi prints MiB (``--help-query-gpu``)."""
    query = "--query-gpu=memory.total,memory.free,memory.used"
    text = subprocess.check_output(
        ["nvidia-smi", f"--id={device.uuid}", query, "--format=csv,noheader,nounits"], text=True
    )
    total, free, used = (int(number) * MB for number in text.split(","))
    return total, free, used


def test_the_pool_is_what_nvidia_smi_says(device: cuda.CudaDevice) -> None:
    total, free, _ = smi(device)
    pool = memory.pools()[0]
    assert pool.uuid == device.uuid
    print(f"nvidia-smi: {total} total, {free} free; pools: {pool.total}, {pool.available}")
    # NVML's older call counts what the driver keeps as used, and nvidia-smi as reserved.
    assert pool.total == pytest.approx(total, abs=0.02 * total)
    assert pool.available == pytest.approx(free, abs=0.02 * total)


def test_an_array_shows_up_in_both(device: cuda.CudaDevice) -> None:
    _, free_before, _ = smi(device)
    before = memory.pools()[0]
    held = mx.ones((1024 * MB // 4 * 2,)) + 1  # 2 GiB
    mx.eval(held)
    _, free_after, _ = smi(device)
    after = memory.pools()[0]
    print(f"nvidia-smi: {free_before - free_after}; pools: {before.available - after.available}")
    assert before.available - after.available == pytest.approx(
        free_before - free_after, abs=64 * MB
    )
    assert before.available - after.available >= 2048 * MB - 64 * MB
    assert after.gpu_used == after.total - after.available


def test_what_others_have_leaves_out_what_is_ours(device: cuda.CudaDevice) -> None:
    held = mx.ones((256 * MB,)) + 1
    mx.eval(held)
    seen = cuda.device()
    assert seen is not None
    ours = mx.get_active_memory() + mx.get_cache_memory()
    assert seen.others(ours) == seen.total - seen.free - ours
    print(f"others and this process's CUDA context: {memory.format_bytes(seen.others(ours))}")


def test_the_limits_are_those_of_its_pool(device: cuda.CudaDevice) -> None:
    now = limits.current()
    assert now.cache is not None, "CUDA's allocator can be asked"
    assert now.wired is None
    before = limits.apply(memory="50%")
    try:
        assert before.memory == now.memory
        assert limits.current().memory == device.total // 2
    finally:
        limits.apply(memory=before.memory)


def test_too_large_is_explained(device: cuda.CudaDevice) -> None:
    """In a process of its own: MLX may not go on after this (ml-explore/mlx #2821)."""
    code = (
        "import mlx.core as mx\n"
        "from mlxbench_kernel.memory import cuda, explain\n"
        "rows = cuda.device().total // 10**6\n"
        "try:\n"
        "    mx.eval(mx.contiguous(mx.broadcast_to(mx.array(1.0), (rows, 10**6))))\n"
        "except Exception as error:\n"
        "    print(error, '->', explain(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    print(done.returncode, done.stdout, done.stderr[-2000:])
    assert "-> out of memory" in done.stdout
