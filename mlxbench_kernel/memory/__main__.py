"""``python -m mlxbench_kernel.memory``: the pools of this host in a terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from mlxbench_kernel.memory.pools import Pool, gpu_used, pools
from mlxbench_kernel.units import format_bytes

COLOURS = {"system": "35", "programs": "34", "free": "2", "warn": "33", "critical": "31"}
MARKS = {"system": "▓", "programs": "█", "free": "░"}
HOME_AND_CLEAR = "\x1b[H\x1b[J"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the pools of this host once, or again and again.

    Parameters
    ----------
    arguments
        Of the command line; None for this process's.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mlxbench_kernel.memory",
        description="The memory that MLX can draw from on this host.",
    )
    parser.add_argument(
        "--watch", type=_seconds, metavar="SECONDS", help="read again so often, until Ctrl-C"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    options = parser.parse_args(arguments)
    if options.watch is not None:  # Ctrl-C is how it ends, also where a shell started it with &
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            _show(sys.stdout, _now(), as_json=options.json, again=options.watch is not None)
            if options.watch is None:
                return 0
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"mlxbench: {error}", file=sys.stderr)
        return 1


def draw(pool: Pool, width: int, colour: bool) -> list[str]:
    """A pool as a bar and what stands beside it.

    Parameters
    ----------
    pool
        What to draw.
    width
        Columns of the bar.
    colour
        Whether to use ANSI colours.

    Returns
    -------
    list of str
        The lines. The bar is system (what cannot be moved, and what is compressed), programs,
        free; what is not known is in none of the first two, and is said to be unknown.
    """
    system = min(pool.used, (pool.wired or 0) + (pool.compressed or 0))
    parts = {"system": system, "programs": pool.used - system, "free": pool.available}
    bar, drawn, seen = "", 0, 0
    for name, size in parts.items():
        seen += size
        columns = round(width * min(1.0, seen / pool.total)) - drawn if pool.total else 0
        bar += _coloured(MARKS[name] * columns, name, colour)
        drawn += columns
    share = 100 * pool.used / pool.total if pool.total else 0
    head = f"{pool.name:<8} {bar}  {format_bytes(pool.used)} of {format_bytes(pool.total)} used"
    return [f"{head} ({share:.0f} %)", f"{'':<8} {' · '.join(_figures(pool, colour))}"]


def _figures(pool: Pool, colour: bool) -> list[str]:
    figures = [f"{format_bytes(pool.available)} available"]
    if pool.name.startswith("cuda"):
        return [*figures, pool.uuid or "uuid unknown"]
    figures.append(f"wired {_size(pool.wired)}")
    figures.append(f"compressed {_size(pool.compressed)}")
    if pool.cap is not None:
        figures.append(f"GPU {_size(pool.gpu_used)} of at most {format_bytes(pool.cap)}")
    pressure = pool.pressure or "unknown"
    figures.append(f"pressure {_coloured(pressure, pressure, colour)}")
    if pool.swap_total == 0 and not pool.swap_used:
        figures.append("no swap")
    else:
        figures.append(f"swap {_size(pool.swap_used)} of {_size(pool.swap_total)}")
    if pool.limited_by is not None:
        figures.append(f"limited by {pool.limited_by}")
    return figures


def _show(stream: TextIO, found: Sequence[Pool], as_json: bool, again: bool) -> None:
    if as_json:
        told = [dataclasses.asdict(pool) for pool in found]
        answer = {"time": time.time(), "host": platform.node(), "pools": told}
        print(json.dumps(answer), file=stream, flush=True)
        return
    terminal = stream.isatty()
    colour = terminal and "NO_COLOR" not in os.environ
    width = max(10, min(60, shutil.get_terminal_size().columns - 45))
    names = "  ".join(f"{_coloured(mark, name, colour)} {name}" for name, mark in MARKS.items())
    lines = [f"{platform.node()} {time.strftime('%H:%M:%S')}  {names}"]
    lines += [line for pool in found for line in draw(pool, width, colour)]
    start = HOME_AND_CLEAR if terminal and again else ""
    print(start + "\n".join(lines), file=stream, flush=True)


def _now() -> list[Pool]:
    """The pools, and of a unified one what the GPU uses: here there is time to ask."""
    found = []
    for pool in pools():
        unknown = pool.name == "unified" and pool.gpu_used is None
        found.append(dataclasses.replace(pool, gpu_used=gpu_used()) if unknown else pool)
    return found


def _size(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)


def _coloured(text: str, name: str, colour: bool) -> str:
    return f"\x1b[{COLOURS[name]}m{text}\x1b[0m" if colour and text and name in COLOURS else text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, as 1 or 0.5")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
