"""A peer that is read slowly is not taken for a dead one: uvicorn with our protocols in this process."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from aecnn_deploy.runtimes.edge_gate import Gate, GuardSettings
from aecnn_deploy.runtimes.edge_guard import Guard
from aecnn_deploy.runtimes.edge_protocol import EdgeWebSocket, http_protocol
from aecnn_deploy.runtimes.peer_limits import PeerLimits
from tests.test_guard import UPGRADE, frame

PING_S = 0.4
PING, CLOSE = 0x89, 0x88  # first bytes of a server's frames
PING_BYTES = 6


async def swallow(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads every message and says nothing."""
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@contextmanager
def server(limits: PeerLimits) -> Iterator[int]:
    """The port of a server that pings, and waits for the answer, for ``PING_S`` each."""
    gate = Gate(GuardSettings(limits=limits))
    config = uvicorn.Config(
        Guard(swallow, gate),
        http=http_protocol(gate),
        ws=EdgeWebSocket,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        proxy_headers=False,
    )
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(running.serve(sockets=[listener]),))
        thread.start()
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()


def test_a_peer_that_is_slowed_outlives_its_pings_and_a_dead_one_does_not() -> None:
    limits = PeerLimits(bytes_per_s=50_000, burst_bytes=1000)
    with server(limits) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(UPGRADE)
        assert peer.recv(4096).startswith(b"HTTP/1.1 101")
        began_s = time.monotonic()
        for _ in range(100):  # two seconds' worth; it answers no ping
            peer.sendall(frame(b"x" * 1000))
        seen = bytearray()
        while CLOSE not in seen[::PING_BYTES]:  # pings, one after the other, and then its last frame
            seen += peer.recv(4096)
        assert time.monotonic() - began_s > 4 * PING_S  # when all was read, nobody answered
        assert seen[0] == PING
        assert b"keepalive ping timeout" in seen
