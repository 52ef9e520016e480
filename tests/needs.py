"""What tests need of the machine: missing, a test is skipped; in CI it fails."""

from __future__ import annotations

import os

import pytest


def require(there: bool, reason: str) -> None:
    """Skip the test with `reason` where something is not there; fail where all must be."""
    if there:
        return
    if os.environ.get("MLXBENCH_REQUIRE_ALL") == "1":
        pytest.fail(f"MLXBENCH_REQUIRE_ALL is set, and {reason}")
    pytest.skip(reason)
