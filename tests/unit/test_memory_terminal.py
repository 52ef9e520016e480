"""The pools in a terminal: ``python -m mlxbench_kernel.memory``."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from mlxbench_kernel import memory
from mlxbench_kernel.memory import Pool
from mlxbench_kernel.memory.__main__ import draw

GB = 10**9
COMMAND = [sys.executable, "-m", "mlxbench_kernel.memory"]


def test_once_and_plain_where_it_is_no_terminal() -> None:
    text = subprocess.check_output(COMMAND, text=True)
    assert "\x1b" not in text
    head, bar, figures = text.splitlines()[-3:]
    assert "system" in head
    assert "programs" in head
    (pool,) = memory.pools()[-1:]
    assert bar.startswith(pool.name)
    assert f"of {memory.format_bytes(pool.total)} used" in bar
    assert "pressure" in figures
    assert "swap" in figures


def test_for_programs() -> None:
    answer = json.loads(subprocess.check_output([*COMMAND, "--json"], text=True))
    (pool,) = answer["pools"][-1:]
    assert Pool(**pool).key == memory.pools()[-1].key
    assert pool["total"] == memory.pools()[-1].total
    assert answer["host"]
    assert answer["time"] > 1e9


def test_again_and_again_until_it_is_interrupted() -> None:
    watching = subprocess.Popen(
        [*COMMAND, "--json", "--watch", "0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    times = [json.loads(watching.stdout.readline())["time"] for _ in range(3)]
    assert times[0] < times[1] < times[2]
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=20)
    assert (watching.returncode, errors) == (0, "")


def test_a_reader_that_goes_away_ends_it() -> None:
    watching = subprocess.Popen(
        [*COMMAND, "--watch", "0.01"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.stdout.close()
    assert watching.wait(timeout=20) == 0
    assert watching.stderr is not None
    with watching.stderr as errors:
        assert errors.read() == ""


@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_has_colours_unless_it_wants_none(plain: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **({"NO_COLOR": "1"} if plain else {})}
    if not plain:
        environment.pop("NO_COLOR", None)
    done = subprocess.run(COMMAND, stdout=theirs, env=environment)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert ("\x1b[" in text) is not plain


@pytest.mark.parametrize("seconds", ["0", "-1", "often", "inf", "nan"])
def test_a_wrong_interval_says_what_to_type(seconds: str) -> None:
    done = subprocess.run([*COMMAND, f"--watch={seconds}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{seconds!r} is no number of seconds above 0, as 1 or 0.5" in done.stderr


def test_the_bar_is_to_scale() -> None:
    pool = Pool("unified", 100 * GB, 40 * GB, wired=15 * GB, compressed=5 * GB, cap=75 * GB)
    bar, figures = draw(pool, 50, colour=False)
    assert bar == f"unified  {'▓' * 10}{'█' * 20}{'░' * 20}  60.0 GB of 100 GB used (60 %)"
    assert figures.strip() == (
        "40.0 GB available · wired 15.0 GB · compressed 5.00 GB · GPU unknown of at most 75.0 GB "
        "· pressure unknown · swap unknown of unknown"
    )


def test_unknown_is_not_zero_and_a_group_is_named() -> None:
    pool = Pool("host", 4 * GB, GB, swap_used=0, swap_total=0, pressure="warn", limited_by="/cg/a")
    bar, figures = draw(pool, 8, colour=False)
    assert bar.startswith(f"host     {'█' * 6}{'░' * 2}  ")
    for said in ("wired unknown", "compressed unknown", "pressure warn", "no swap", "by /cg/a"):
        assert said in figures
    _, coloured = draw(pool, 8, colour=True)
    assert "\x1b[33mwarn\x1b[0m" in coloured


def test_a_gpu_of_its_own_has_its_own_bar() -> None:
    pool = Pool("cuda:0", 80 * GB, 60 * GB, gpu_used=20 * GB, uuid="GPU-0123")
    bar, figures = draw(pool, 40, colour=False)
    assert bar.startswith(f"cuda:0   {'█' * 10}{'░' * 30}  20.0 GB of 80.0 GB used (25 %)")
    assert figures.strip() == "60.0 GB available · GPU-0123"
