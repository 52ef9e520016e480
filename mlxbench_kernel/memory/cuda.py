"""NVIDIA GPUs, through what `mx.device_info` tells of them.

``mlx/backend/cuda/device_info.cpp`` (ml-explore/mlx 846d176, 2026-08-22) asks NVML, which sees
all programs, and only where that is missing the CUDA runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxbench_kernel.memory import samples


@dataclass(frozen=True)
class CudaDevice:
    """One GPU with memory of its own; sizes in bytes.

    Attributes
    ----------
    index
        Among the GPUs that this process sees (``CUDA_VISIBLE_DEVICES``).
    name, uuid
        As ``nvidia-smi -L`` has them.
    total, free
        Of the GPU, all programs counted.
    """

    index: int
    name: str
    uuid: str | None
    total: int
    free: int

    @property
    def used(self) -> int:
        """By all programs and the driver."""
        return max(0, self.total - self.free)

    def others(self, ours: int) -> int:
        """Bytes of other programs and the driver, where `ours` are this process's.

        What the CUDA context of this process takes beside MLX's buffers is in it: MLX counts
        its buffers alone (`mx.get_active_memory` and `mx.get_cache_memory`).
        """
        return max(0, self.used - ours)


def device() -> CudaDevice | None:
    """The GPU that MLX uses by default here, with memory of its own; None where there is none.

    Only that one: to ask the CUDA runtime for another's would make a context on it.
    """
    info = samples.gpu_info()
    if "free_memory" not in info:
        return None
    return CudaDevice(
        index=samples.gpu_index(),
        name=str(info.get("device_name", "")),
        uuid=info.get("uuid"),
        total=info["total_memory"],
        free=info["free_memory"],
    )
