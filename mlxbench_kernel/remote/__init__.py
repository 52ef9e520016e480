"""The notebook's side of what ranks do for it: graphs captured there, and what they say."""

from mlxbench_kernel.remote.graphs import capture_on
from mlxbench_kernel.remote.replays import nonfinite_on, profile_on

__all__ = ["capture_on", "nonfinite_on", "profile_on"]
