"""Loading a model by its name on the hub, from a server that speaks the hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlxbench_kernel.models.small import make_small_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/small"
PIECES = 12
SCRIPT = """
import json, sys
from huggingface_hub import constants
from mlxbench_kernel.models import folder
constants.DOWNLOAD_CHUNK_SIZE = 1 << 14  # else a file as small as this comes at once
told = []
found = folder.find(sys.argv[1], tell=lambda come, of: told.append((come, of)))
print(json.dumps([str(found), told]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a hub with one model, and the folder of that; weights come slowly."""
    folder = make_small_model(tmp_path / "model", "llama")
    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
    files = sorted(sizes)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPO}/tree"):
                self._answer(json.dumps([{"type": "file", "oid": name, "path": name,
                    "size": sizes[name]} for name in files]).encode(), "tree")  # fmt: skip
            elif path.startswith(f"/api/models/{REPO}"):
                siblings = [{"rfilename": name, "size": sizes[name]} for name in files]
                about = {"id": REPO, "sha": COMMIT, "siblings": siblings}
                self._answer(json.dumps(about).encode(), "about")
            elif (name := path.rsplit("/", 1)[-1]) in files:
                self._answer((folder / name).read_bytes(), name)
            else:
                self.send_error(404)

        def _answer(self, body: bytes, tag: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            slow = tag.endswith(".safetensors")
            step = -(-len(body) // PIECES) if slow else len(body)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                time.sleep(0.25 * slow)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
    finally:
        server.shutdown()
        server.server_close()


def test_a_download_tells_how_far_it_is(hub: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = hub
    own = {
        "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "30",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, REPO]
    env = {**os.environ, **own}
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=50)
    assert not done.returncode, done.stderr
    found, told = json.loads(done.stdout)
    total = sum(each.stat().st_size for each in folder.iterdir())
    assert {each.name for each in Path(found).iterdir()} == {each.name for each in folder.iterdir()}
    assert len(told) > 2 and {of for _, of in told} == {total}
    come = [each for each, _ in told]
    assert come == sorted(come) and come[0] < come[-1] <= total
    # What was downloaded is found without a server, and nothing is told of it.
    alone = {**env, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = subprocess.run(command, env=alone, text=True, capture_output=True, timeout=50)
    assert json.loads(again.stdout) == [found, []]
