"""``python -m mlxbench_kernel.native``: compile the native module now, and say what was done."""

from __future__ import annotations

import time

from mlxbench_kernel import native
from mlxbench_kernel.native.build import target


def main() -> None:
    """Compile and load the module; print one line."""
    was_there = native.ready()
    start = time.monotonic()
    if native.load() is None:
        print(f"No native module (mlxbench works without it): {native.reason()}")
    elif was_there:
        print(f"The native module is there already: {target()}")
    else:
        print(f"Compiled the native module in {time.monotonic() - start:.0f} s: {target()}")


if __name__ == "__main__":
    main()
