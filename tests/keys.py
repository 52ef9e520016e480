"""Where the keys of a cluster must not be seen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import psutil
from running import Recorded

from mlxbench_kernel.cluster import Cluster


def nobody_is_shown_a_key(cluster: Cluster, homes: Sequence[Path]) -> None:
    """Not by a command line, an environment, a log, a message, or another's file."""
    path = cluster.info.home / "security" / f"ipcontroller-{cluster.id}-client.json"
    connection = json.loads(path.read_text())
    (key,) = {connection["key"], connection["curve_serverkey"]} - {"", None}
    spellings = {key, json.dumps(key)[1:-1]}

    def shows(text: str) -> bool:
        return any(spelling in text for spelling in spellings)

    looked = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            assert not shows("\n".join(process.cmdline())), process
            assert not shows(Path(f"/proc/{process.pid}/environ").read_text(errors="replace"))
            looked += 1
    assert looked > 4
    with_key = set()
    for home in homes:
        assert home.stat().st_mode & 0o777 == 0o700
        for file in home.rglob("*"):
            if file.is_file() and shows(file.read_text(errors="replace")):
                with_key.add(file)
    security = cluster.info.home / "security"
    curve = {security / "controller-curve.json"} & set(security.iterdir())
    assert with_key == {*security.glob("ipcontroller-*.json"), *curve}
    for file in with_key:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    output = Recorded()
    cluster.execute("import os\nprint(dict(os.environ))\nraise ValueError", output=output)
    assert "IPP_CONNECTION_INFO" not in str(output.messages) and "HOME" in str(output.messages)
    assert not shows(str(output.messages))
    assert not shows("\n".join([*cluster.logs(lines=1000).values(), repr(cluster)]))
