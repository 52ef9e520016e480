"""``python -m mlxbench_kernel.kernel -f FILE``: the kernel "MLX Bench", started by Jupyter."""

from mlxbench_kernel.kernel.app import BenchKernelApp

if __name__ == "__main__":
    BenchKernelApp.launch_instance()
