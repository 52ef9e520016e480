"""``python -m mlxbench_kernel.rank``: one rank, started by the launchers of ``cluster/``."""

from mlxbench_kernel.rank.engine import RankEngine

if __name__ == "__main__":
    RankEngine.launch_instance()
