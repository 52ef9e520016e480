"""What a rank keeps of what it did for a notebook."""

from __future__ import annotations

import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote import results

TEXT = ("mlxbench_kernel.units", "parse_bytes")
OTHER = ("mlxbench_kernel.units", "format_bytes")


def test_a_result_is_kept_until_it_is_taken_and_each_function_has_its_own() -> None:
    assert results.keep(*TEXT, "2kB") is None, "a cell prints nothing"
    results.keep(*OTHER, 5)
    assert results.take(*TEXT) == 2000
    assert results.take(*TEXT) is None and results.take(*OTHER) == "5 B"


def test_what_fails_leaves_no_older_result() -> None:
    results.keep(*TEXT, "2kB")
    with pytest.raises(UsageError, match="is not a size"):
        results.keep(*TEXT, "much")
    assert results.take(*TEXT) is None
