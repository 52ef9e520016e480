"""An allocation that failed, in the words of MLX's sources, told with sizes and what to do."""

from __future__ import annotations

import signal
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel.memory import MemorySample, explain, format_bytes, overflow, samples

GB = 10**9

# ml-explore/mlx 846d176, 2026-08-22, mlx/backend/metal/allocator.cpp: MetalAllocator::malloc.
TOO_LARGE = (
    "[metal::malloc] Attempting to allocate 120000000000 bytes which is greater than"
    " the maximum allowed buffer size of 86586540032 bytes."
)
TOO_MANY = "[metal::malloc] Resource limit (499000) exceeded."
# The same file, and mlx/backend/cuda/allocator.cpp: CudaAllocator::malloc_async.
REFUSED = "[malloc] Unable to allocate 40000000000 bytes."
# mlx/allocator.cpp before 7b7e235 (2025-03-20).
REFUSED_ONCE = "[malloc_or_wait] Unable to allocate 40000000000 bytes."
# mlx/backend/metal/device.cpp puts Metal's description in; as users report it of macOS 15 and 26.
GPU_RAN_OUT = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
)
# mlx/backend/cuda/utils.cpp: "{} failed: {}" with the call and cudaGetErrorString, which is "out
# of memory" for cudaErrorMemoryAllocation (CUDA Runtime API, "Error Handling").
CUDA = [
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
    "cudaMallocManaged(&data, size) failed: out of memory",
    "cudaGraphLaunch(graph_exec, stream_) failed: out of memory",
]


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac with 64 GB, of which a rank holds 30."""
    held = MemorySample(
        active=30 * GB,
        cache=4 * GB,
        peak=31 * GB,
        footprint=35 * GB,
        total=64 * GB,
        available=20 * GB,
        limit=48 * GB,
    )
    monkeypatch.setattr(samples, "sample", lambda: held)
    monkeypatch.setattr(mx, "get_memory_limit", lambda: 60 * GB)


HELD = (
    "(MLX holds 30.0 GB active and 4.00 GB cached, its memory limit is 60.0 GB; 20.0 GB of "
    "64.0 GB are available)"
)


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("text", [REFUSED, REFUSED_ONCE])
def test_a_refused_allocation(text: str) -> None:
    assert explain(RuntimeError(text)) == (
        f"out of memory: 40.0 GB asked for {HELD}; delete what is not needed, take a smaller batch "
        "or context, mx.clear_cache(); the GPU may have 48.0 GB of the pool, which sudo sysctl "
        "iogpu.wired_limit_mb=… in a terminal can raise; %mlx_mem shows what holds it"
    )


@pytest.mark.usefixtures("mac")
def test_what_can_never_fit_is_said_so() -> None:
    said = explain(RuntimeError(REFUSED.replace("40000000000", "70000000000")))
    assert said is not None
    assert "70.0 GB asked for" in said
    assert "it cannot fit here: take a smaller batch or context, or shard it over more" in said
    assert "clear_cache" not in said, "that would not help"


@pytest.mark.usefixtures("mac")
def test_one_buffer_has_a_limit_of_its_own() -> None:
    assert explain(RuntimeError(TOO_LARGE)) == (
        "an array of 120 GB is more than Metal allows for one buffer, 86.6 GB, however much is "
        f"free: split it, or take a smaller batch or context {HELD}"
    )


@pytest.mark.usefixtures("mac")
def test_too_many_buffers_is_not_a_matter_of_size() -> None:
    said = explain(RuntimeError(TOO_MANY))
    assert said is not None
    assert said.startswith("there are more than the 499,000 buffers that Metal allows")


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("text", [GPU_RAN_OUT, *CUDA])
def test_the_gpu_ran_out_and_does_not_say_of_what(text: str) -> None:
    said = explain(RuntimeError(text))
    assert said == (
        f"out of memory {HELD}; delete what is not needed, take a smaller batch or context, "
        "mx.clear_cache(); %mlx_mem shows what holds it"
    )


@pytest.mark.usefixtures("mac")
def test_numpy_and_python_run_out_too() -> None:
    with pytest.raises(MemoryError) as of_numpy:
        np.ones((10**7, 10**7))
    assert "out of memory" in (explain(of_numpy.value) or "")
    with pytest.raises(MemoryError) as of_python:
        bytearray(10**15)
    assert "out of memory" in (explain(of_python.value) or "")


@pytest.mark.usefixtures("mac")
def test_what_it_was_raised_from_is_looked_at() -> None:
    cause = RuntimeError(REFUSED)
    outer = ValueError("cannot load the model")
    outer.__cause__ = cause
    assert explain(outer) == explain(cause)
    cause.__cause__ = outer  # a ring
    other = ValueError("no")
    other.__cause__ = ValueError("neither")
    assert explain(other) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[matmul] Last dimension of first input with shape (2,3) must match",
        "cudaMemcpyAsync(a, b, n, kind, stream) failed: invalid argument",
        "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002).",
        "the model's author ran out of memory",
    ],
)
def test_other_errors_are_left_alone(text: str) -> None:
    assert explain(RuntimeError(text)) is None


def test_it_speaks_also_where_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> MemorySample:
        raise OSError("the system did not answer")

    monkeypatch.setattr(samples, "sample", broken)
    said = explain(RuntimeError(REFUSED))
    assert said is not None
    assert said.startswith("out of memory: 40.0 GB asked for; delete")
    assert overflow.explain(RuntimeError(TOO_LARGE)) is not None


def test_the_numbers_are_of_this_process() -> None:
    held = mx.ones((50_000_000,)) + 1
    mx.eval(held)
    said = explain(MemoryError()) or ""
    assert f"MLX holds {format_bytes(mx.get_active_memory())} active" in said


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="what MLX's CPU allocator does")
@pytest.mark.skipif(sys.platform != "linux", reason="macOS promises any size")
def test_mlx_on_the_cpu_raises_nothing_to_explain() -> None:
    """Seen with MLX 0.32.4: should this ever fail, the CPU has an error to explain as well."""
    code = (
        "import mlx.core as mx\n"
        "mx.eval(mx.contiguous(mx.broadcast_to(mx.array(1.0), (10**7, 10**7))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGSEGV, "")
