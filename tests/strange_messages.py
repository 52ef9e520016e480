"""A program that says strange things to ports of a cluster, and tells what they said.

``python strange_messages.py`` reads its orders as JSON from standard input: ``addresses``
(``"ip:port"``), ``idents`` of ranks, ``code`` that nobody may run, ``curve`` (whether to speak
CurveZMQ, with a key of its own), ``key`` (the cluster's, to see that with it the code does run).
It says ``ready`` when everything was sent, keeps all its connections open until its standard
input ends, and then prints what was received, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys

import zmq
from jupyter_client.session import Session

# A greeting of ZMTP 3.0 that names the mechanism NULL; then a frame that says it is huge.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
RAW = [
    b"\x00" * 200,
    b"\xff" * 4096,
    b"GET / HTTP/1.1\r\nHost: ranks\r\n\r\n",
    GREETING[:1],
    GREETING[:10],
    GREETING,
    GREETING
    + b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00",
    GREETING + b"\x02" + b"\xff" * 8,
]
SOCKETS = (zmq.DEALER, zmq.ROUTER, zmq.PUB, zmq.SUB, zmq.PUSH)


def messages(idents: list[str], code: str, key: str) -> list[list[bytes]]:
    """What would run code or end ranks, unsigned and signed with a key that is not the one."""
    content: dict[str, dict[str, object]] = {
        "execute_request": {"code": code, "silent": False, "store_history": False},
        "registration_request": {"uuid": idents[0], "id": 0, "queue": idents[0]},
        "unregistration_request": {"id": 0},
        "shutdown_request": {"restart": False},
        "mlxbench_request": {"call": "leave", "arguments": {}},
        "interrupt_request": {},
        "abort_request": {},
    }
    if key:
        content = {"execute_request": content["execute_request"]}
    found = []
    for each in [key.encode()] if key else [b"", b"a-key-that-is-not-the-one"]:
        session = Session(key=each)
        for kind, said in content.items():
            frames = session.serialize(session.msg(kind, content=said))
            found += [[ident.encode(), *frames] for ident in idents] + [frames]
    return [
        *found,
        [b""],
        [b"x" * 10] * 10,
        [b"<IDS|MSG>"],
        [b"<IDS|MSG>", b"", b"{", b"", b"", b""],
    ]


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    context = zmq.Context()
    context.linger = 0
    kept = []
    for address in orders["addresses"]:
        ip, port = address.rsplit(":", 1)
        for said in RAW:
            try:
                raw = socket.create_connection((ip, int(port)), timeout=2)
                raw.sendall(said)
                kept.append(raw)
            except OSError:  # the port hung up, which is as good
                pass
        for kind in SOCKETS:
            stranger = context.socket(kind)
            stranger.sndtimeo = 0
            if orders["curve"]:
                stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
                stranger.curve_serverkey = zmq.curve_keypair()[0]
            if kind == zmq.SUB:
                stranger.subscribe(b"")
            stranger.connect(f"tcp://{address}")
            kept.append(stranger)
            for frames in messages(orders["idents"], orders["code"], orders["key"]):
                try:
                    if kind != zmq.SUB:
                        stranger.send_multipart(frames)
                except zmq.ZMQError:  # without a peer nothing is taken
                    break
    print("ready", flush=True)
    sys.stdin.read()
    received = []
    for stranger in kept:
        if isinstance(stranger, zmq.Socket) and stranger.socket_type not in (zmq.PUB, zmq.PUSH):
            while stranger.poll(0):
                said = b" ".join(stranger.recv_multipart())
                received.append([stranger.last_endpoint.decode(), said.decode(errors="replace")])
    print(json.dumps(received))


if __name__ == "__main__":
    main()
